"""Memory: what allocator and garbage collector are told at the start.

Purpose: keep the daemon small and quick.  glibc gives each thread an arena of its own and
keeps there what the thread has freed; ours work in turns, so one arena serves them all.
CPython looks for cycles after every 700 new objects (2,000 since 3.12); hundreds of
requests in flight are thousands of objects that live until their answer comes, and looking
through them again and again took a sixth of the daemon's time (bench.machinery).
"""

import contextlib
import ctypes
import gc

_M_ARENA_MAX = -8  # malloc.h
# New objects between two looks for cycles, and looks between two of the next generation.
# Cycles are rare here, and so many small objects are a few MiB at most.
_COLLECT_AFTER = 10_000
_GENERATION_AFTER = 20


def share_one_arena() -> bool:
    """Let all threads that start from now on allocate from one arena.

    Returns whether it was taken; other C libraries than glibc have no arenas.
    """
    with contextlib.suppress(OSError, AttributeError):
        taken: int = ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        return taken == 1
    return False


def collect_seldom() -> None:
    """Look for cycles less often, and never again in what has been imported by now."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, _GENERATION_AFTER, _GENERATION_AFTER)

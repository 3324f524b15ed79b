"""Memory: what the C library's allocator is told at the start.

Purpose: keep the daemon small.  glibc gives each thread an arena of its own and keeps
there what the thread has freed; ours work in turns, so one arena serves them all.
"""

import contextlib
import ctypes

_M_ARENA_MAX = -8  # malloc.h


def share_one_arena() -> bool:
    """Let all threads that start from now on allocate from one arena.

    Returns whether it was taken; other C libraries than glibc have no arenas.
    """
    with contextlib.suppress(OSError, AttributeError):
        taken: int = ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        return taken == 1
    return False

"""From the configuration to a running daemon: all effects on the process, in their order.

Purpose: allocator, garbage collector, signals, the limit of open files, the spool's lock,
recovery, then the event loop with the parts in it.
Invariants: one daemon a spool (the lock); the limit of open files is raised before the
window is bounded by it; the first signal drains, the second leaves at once; nothing is
read again at SIGHUP, which drains like SIGTERM unless it was ignored from the start.
Why the memory settings: glibc gives each thread an arena of its own and
keeps there what the thread has freed; ours work in turns, so one arena serves them all.
CPython looks for cycles after every 700 new objects (2,000 since 3.12); hundreds of
requests in flight are thousands of objects that live until their answer comes, and looking
through them again and again took a sixth of the daemon's time (bench.machinery).
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import time

import uvloop

from inbox_daemon import __version__
from inbox_daemon.contract.config import Config
from inbox_daemon.engine import open_engine
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.gpu.nvml import open_gpu
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.recovery import recover
from inbox_daemon.jobs.system_time import open_clock
from inbox_daemon.ledger import Ledger
from inbox_daemon.service.daemon import Daemon
from inbox_daemon.service.parts import assemble
from inbox_daemon.spool import Spool

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8  # malloc.h
# New objects between two looks for cycles, and looks between two of the next generation.
# Cycles are rare here, and this many small objects are a few MiB at most.
_COLLECT_AFTER = 10_000
_GENERATION_AFTER = 20
SPARE_DESCRIPTORS = 256
# Each request in flight is a connection, and each connection a file here and there.
OPEN_FILES = 65536
_FORCED = 3


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


def serve(config: Config) -> None:
    """Run the daemon in the foreground until a signal ends it.

    Every effect on the whole process stands here, in its order.
    Raises OperatorError: spool, ledger or configuration stand in the way.
    """
    os.umask(0o027)
    share_one_arena()
    collect_seldom()
    # A lease that is broken while we ask for it announces itself by SIGIO, whose
    # default is death.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    spool = Spool(config.spool)
    spool.create()
    spool.check()
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
    spool.lock({"pid": os.getpid(), "since": since})
    log.info("starting", extra={"version": __version__, "spool": str(spool.root)})
    ledger = Ledger(spool.ledger)
    try:
        clock = open_clock(spool, ledger, config.clock.hold_s)
        jobs = recover(spool, ledger, config.intake.ageing_s, clock)
        descriptors = raise_file_limit()
        uvloop.run(_main(config, spool, ledger, jobs, descriptors - SPARE_DESCRIPTORS))
    finally:
        ledger.close()
        spool.unlock()
    log.info("stopped")


def raise_file_limit() -> int:
    """Raise the soft limit of open files; return how many this process may open.

    The usual 1,024 are fewer than the requests in flight, each of which is a connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if soft == resource.RLIM_INFINITY else soft


async def _main(
    config: Config, spool: Spool, ledger: Ledger, jobs: ActiveJobs, max_window: int
) -> None:
    """Put the daemon together and run it; `max_window` bounds the requests in flight."""
    changed = asyncio.Event()
    gpu = open_gpu(config.gpu.index)
    parts = assemble(
        config,
        spool,
        ledger,
        jobs,
        lambda on_change: open_engine(config, spool.ledger, on_change=on_change),
        lambda kind: Governor(config, kind, max_window),
        gpu,
        changed.set,
    )
    daemon = Daemon(parts, changed)

    def on_signal() -> None:
        """Drain at the first signal, leave at once at the second."""
        if daemon.stop.is_set():
            log.warning("leaving_at_once")
            parts.worker.engine.kill()
            os._exit(_FORCED)
        log.info("stopping")
        daemon.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        await daemon.run()
    finally:
        gpu.close()

"""Memory: what allocator and garbage collector are told at the start.

Purpose: keep the daemon small and quick.  glibc gives each thread an arena of its own and
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
from pathlib import Path

import uvloop

from inbox_daemon import __version__
from inbox_daemon.contract.config import Config
from inbox_daemon.engine import open_engine
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.gpu.nvml import open_gpu
from inbox_daemon.intake.control import load_paused
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.recovery import recover
from inbox_daemon.ledger import Ledger
from inbox_daemon.service.daemon import Daemon
from inbox_daemon.spool import Spool

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8  # malloc.h
# New objects between two looks for cycles, and looks between two of the next generation.
# Cycles are rare here, and so many small objects are a few MiB at most.
_COLLECT_AFTER = 10_000
_GENERATION_AFTER = 20
SPARE_DESCRIPTORS = 256
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
        queue = recover(spool, ledger)
        queue.paused, queue.ageing_s = load_paused(ledger), config.intake.ageing_s
        uvloop.run(_main(config, spool, ledger, queue))
    finally:
        ledger.close()
        spool.unlock()
    log.info("stopped")


async def _main(config: Config, spool: Spool, ledger: Ledger, queue: ActiveJobs) -> None:
    changed = asyncio.Event()
    daemon = Daemon(
        config=config,
        spool=spool,
        ledger=ledger,
        queue=queue,
        engine=open_engine(config, state_dir(spool), on_change=changed.set),
        governor=Governor(config, max_window()),
        gpu=open_gpu(config.gpu.index),
        changed=changed,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, daemon)
    try:
        await daemon.run()
    finally:
        daemon.gpu.close()


def max_window() -> int:
    """How many requests may be in flight with the descriptors that this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - SPARE_DESCRIPTORS


def state_dir(spool: Spool) -> Path:
    """Where the engine's start record lies."""
    return spool.ledger


def _on_signal(daemon: Daemon) -> None:
    """The first signal drains, the second leaves at once."""
    if daemon.stop.is_set():
        log.warning("leaving_at_once")
        daemon.engine.kill()
        os._exit(_FORCED)
    log.info("stopping")
    daemon.stop.set()

"""Readings: what the engine, the card and the disk say, brought to whom it concerns.

Purpose: the loops that look at the world at intervals: the governor gets the figures of
the engine and the card, the running jobs their energy, runner and intake the floor of
free space, the reporter all of it.
Invariants: a driver that hangs holds nobody up; the card is read once at a time; nothing
here decides, but passes on what pure code decided.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from inbox_daemon.contract.config import Config
from inbox_daemon.contract.limits import disk_shortage
from inbox_daemon.engine.base import Engine
from inbox_daemon.gpu.energy import EnergyAccounts
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.gpu.nvml import Gpu, GpuSample
from inbox_daemon.intake.loop import Intake
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.report.status import Reporter
from inbox_daemon.run.runner import Runner
from inbox_daemon.service.stalls import HangDetector
from inbox_daemon.spool import Spool

log = logging.getLogger(__name__)

ENGINE_TICK_S = 0.5
GPU_TICK_S = 2.0
GPU_PATIENCE_S = 10.0
DISK_TICK_S = 2.0


@dataclass(slots=True)
class Worker:
    """The loops; each runs until it is cancelled."""

    config: Config
    spool: Spool
    queue: ActiveJobs
    engine: Engine
    governor: Governor
    gpu: Gpu
    runner: Runner
    intake: Intake
    reporter: Reporter
    on_change: Callable[[], None]
    _energy: EnergyAccounts = field(default_factory=EnergyAccounts)
    _sampling: asyncio.Lock = field(default_factory=asyncio.Lock)

    # -- the engine -----------------------------------------------------------------

    async def read_engine(self) -> None:
        """Give the governor the engine's figures, and the runner its state, as they come."""
        finished, state = 0, None
        hangs = HangDetector(self.config.engine.hang_s, self.config.run.request_timeout_s)
        while True:
            await asyncio.sleep(ENGINE_TICK_S)
            info, now, before = self.engine.info, time.monotonic(), self.governor.window
            flying, limited = self.runner.in_flight, self.runner.limited
            before_that, finished = finished, self.runner.collector.finished
            done = finished - before_that
            self.governor.read_engine(info.load, flying, done, now, limited=limited)
            if self.governor.window > before or info.state is not state:
                self.runner.wake()
            state = info.state
            if hangs.update(time.monotonic(), flying, finished, info.load.tokens):
                await self.engine.restart("it neither answered nor made a token for too long")

    # -- the card -------------------------------------------------------------------

    async def read_gpu(self) -> None:
        """Give the governor the card's figures, and the running jobs their energy."""
        while True:
            with contextlib.suppress(TimeoutError):  # a hung driver is told by the next sample
                self._take_gpu(await self._sample_gpu())
            await asyncio.sleep(GPU_TICK_S)

    async def charge_now(self) -> None:
        """Charge what was used since the last reading, so that a short job is charged too."""
        if self.reporter.gpu is not None and self.reporter.gpu.healthy:
            with contextlib.suppress(TimeoutError):
                self._charge(await self._sample_gpu())

    async def _sample_gpu(self) -> GpuSample | None:
        """Read the card, once at a time; raises TimeoutError if the driver hangs."""
        async with self._sampling, asyncio.timeout(GPU_PATIENCE_S):
            return await asyncio.to_thread(lambda: self.gpu.sample(self.engine.pids()))

    def _take_gpu(self, sample: GpuSample | None) -> None:
        if (sample is None) != (self.reporter.gpu is None):
            self.on_change()
        self.reporter.gpu = sample
        self._charge(sample)
        change = self.governor.read_gpu(sample)
        if change is not None:
            log.warning("governor_changed", extra=asdict(change))
            self.on_change()

    def _charge(self, sample: GpuSample | None) -> None:
        """Charge the running jobs; a server that others run may not even be on our card."""
        if sample is not None and not self.config.endpoint.url:
            jobs = [(run.record.id, run) for run in self.queue.runs()]
            self._energy.charge(time.monotonic(), sample.energy_j, sample.power_w, jobs)

    # -- the disk -------------------------------------------------------------------

    async def read_disk(self) -> None:
        """Stop intake and runner below the floor, and let both go on above it."""
        while True:
            free = await asyncio.to_thread(self.spool.free)
            short = disk_shortage(*free, self.config.disk)
            if short != self.runner.paused:
                self.runner.paused = self.intake.paused = short
                log.warning("disk_floor", extra={"reason": short or "there is room again"})
                self.intake.wake()
                self.on_change()
            self.reporter.disk = free
            await self._read_quarantine()
            await asyncio.sleep(DISK_TICK_S)

    async def _read_quarantine(self) -> None:
        """Know within seconds what was set aside, and what somebody has cleared away."""
        found = await asyncio.to_thread(self.spool.quarantined)
        if found != self.reporter.quarantined:
            self.reporter.quarantined = found
            self.on_change()

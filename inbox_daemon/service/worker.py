"""One worker: an engine with its governor and its card, read at intervals.

Purpose: the governor gets the figures of the engine and the card, the running jobs their
energy; a hung engine is restarted.
Invariants: a driver that hangs holds nothing up; the card is read once at a time; nothing
here decides, but passes on what pure code decided.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from inbox_daemon.contract.config import Config
from inbox_daemon.contract.facts import GovernorFacts
from inbox_daemon.engine.base import Engine
from inbox_daemon.gpu.energy import EnergyAccounts
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.gpu.nvml import Gpu, GpuSample
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.run.runner import Runner
from inbox_daemon.service.stalls import HangDetector

log = logging.getLogger(__name__)

ENGINE_TICK_S = 0.5
GPU_TICK_S = 2.0
GPU_PATIENCE_S = 10.0


@dataclass(slots=True)
class Worker:
    """The loops of one engine; each runs until it is cancelled."""

    config: Config
    jobs: ActiveJobs
    engine: Engine
    governor: Governor
    gpu: Gpu
    on_change: Callable[[], None]
    # The newest sample of the card; None where there is none.
    sample: GpuSample | None = None
    _energy: EnergyAccounts = field(default_factory=EnergyAccounts)
    _sampling: asyncio.Lock = field(default_factory=asyncio.Lock)

    def governor_facts(self) -> GovernorFacts:
        """Return what the status shows of the governor."""
        governor = self.governor
        return GovernorFacts(
            governor.window, governor.chunk_size, governor.state.value, tuple(governor.reasons)
        )

    async def read_engine(self, runner: Runner) -> None:
        """Give the governor the engine's figures as they come, and restart a hung engine."""
        finished = flying = 0
        hangs = HangDetector(self.config.engine.hang_s, self.config.run.request_timeout_s)
        while True:
            await asyncio.sleep(ENGINE_TICK_S)
            load, now, before = self.engine.info.load, time.monotonic(), self.governor.window
            done, finished = runner.finished - finished, runner.finished
            if runner.in_flight == 0 and flying:
                # Or the status would go on showing what ran before the last answer came.
                await self.engine.refresh_load()
                load = self.engine.info.load
                self.on_change()
            flying = runner.in_flight
            self.governor.read_engine(load, runner.in_flight, done, now, limited=runner.limited)
            if self.governor.window > before:
                runner.wake()
            if hangs.update(time.monotonic(), runner.unanswered, finished, load.tokens):
                await self.engine.restart("it neither answered nor made a token for too long")

    async def read_gpu(self) -> None:
        """Give the governor the card's figures, and the running jobs their energy."""
        while True:
            with contextlib.suppress(TimeoutError):  # the next sample says that the driver hangs
                sample = await self._read_card()
                if (sample is None) != (self.sample is None):
                    self.on_change()
                self.sample = sample
                self._charge(sample)
                change = self.governor.read_gpu(sample)
                if change is not None:
                    log.warning("governor_changed", extra=asdict(change))
                    self.on_change()
            await asyncio.sleep(GPU_TICK_S)

    async def charge_energy(self) -> None:
        """Charge what was used since the last reading, so that a short job is charged too."""
        if self.sample is not None and self.sample.healthy:
            with contextlib.suppress(TimeoutError):
                self._charge(await self._read_card())

    async def _read_card(self) -> GpuSample | None:
        """Read the card, once at a time; raises TimeoutError if the driver hangs."""
        async with self._sampling, asyncio.timeout(GPU_PATIENCE_S):
            return await asyncio.to_thread(lambda: self.gpu.sample(self.engine.pids()))

    def _charge(self, sample: GpuSample | None) -> None:
        """Charge the running jobs; a server that others run may not even be on our card."""
        if sample is not None and self.engine.kind.owned:
            runs = [(run.record.id, run) for run in self.jobs.runs()]
            self._energy.charge(time.monotonic(), sample.energy_j, sample.power_w, runs)

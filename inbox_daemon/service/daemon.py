"""The daemon: the parts put together, from start to drain.

Purpose: start-up, the loops, signals, shutdown; nothing here decides about a job.
Invariants: one daemon a spool (the lock); a loop that ends by an exception ends the
daemon, so that systemd starts it anew and recovery runs; the first signal drains, the
second leaves at once; a heartbeat is sent only while the loops turn.
"""

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass, field

import sdnotify

from inbox_daemon.contract import job_documents
from inbox_daemon.contract.config import Config
from inbox_daemon.engine.base import Engine
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.gpu.nvml import Gpu
from inbox_daemon.intake.admission import Admission
from inbox_daemon.intake.control import Controller
from inbox_daemon.intake.loop import Intake
from inbox_daemon.intake.redrive import Redriver
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.publish import retention
from inbox_daemon.publish.folder import publish
from inbox_daemon.report.status import Reporter
from inbox_daemon.request.validation import Served
from inbox_daemon.run.runner import Runner
from inbox_daemon.service.stalls import Heartbeat, Turn
from inbox_daemon.service.worker import Worker
from inbox_daemon.spool import Spool

log = logging.getLogger(__name__)

RETENTION_TICK_S = 600.0
MIN_STATUS_GAP_S = 0.2
STALLED_S = 30.0
INTAKE_STALLED_S = 300.0
# Beyond what one request may take: an engine's end and its next start are progress.
PROGRESS_SPARE_S = 120.0


@dataclass(slots=True)
class Daemon:
    """All parts of one running daemon."""

    config: Config
    spool: Spool
    ledger: Ledger
    queue: ActiveJobs
    engine: Engine
    governor: Governor
    gpu: Gpu
    changed: asyncio.Event
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    runner: Runner = field(init=False)
    intake: Intake = field(init=False)
    reporter: Reporter = field(init=False)
    _readings: Worker = field(init=False)
    _heartbeat: Heartbeat = field(init=False)
    _reported_at: float = field(default_factory=time.monotonic)
    _notifier: sdnotify.SystemdNotifier = field(default_factory=sdnotify.SystemdNotifier)

    def __post_init__(self) -> None:
        """Join the parts that need each other."""
        self.runner = Runner(
            self.config,
            self.spool,
            self.ledger,
            self.queue,
            self.engine,
            self.governor,
            self._publish,
        )
        admission = Admission(self.config, self.spool, self.ledger, self.queue, self._served)
        redriver = Redriver(self.spool, self.ledger, admission)
        self.intake = Intake(
            self.config,
            self.spool,
            self.queue,
            admission,
            Controller(self.queue, self.ledger, self.runner, redriver),
            self._on_change,
        )
        self.reporter = Reporter(self.config, self.queue, self.runner, self.intake, self.governor)
        self._readings = Worker(
            self.config,
            self.spool,
            self.queue,
            self.engine,
            self.governor,
            self.gpu,
            self.runner,
            self.intake,
            self.reporter,
            self._on_change,
        )
        longest_s = max(self.config.run.request_timeout_s, self.config.engine.hang_s)
        self._heartbeat = Heartbeat(longest_s + PROGRESS_SPARE_S)

    # -- what the parts ask of each other -------------------------------------------

    def _on_change(self) -> None:
        self.changed.set()
        self.runner.wake()

    def _served(self) -> Served:
        configured = self.config.engine.served_name
        models = self.engine.info.models
        default = configured or (models[0] if models else None)
        return Served(default, frozenset(filter(None, [configured, *models])))

    async def _publish(self, run: RunningJob) -> None:
        await self._readings.charge_now()
        record = run.record.model_copy(update={"energy_j": run.energy_j})
        record = await asyncio.to_thread(publish, record, self.spool, self.ledger)
        run.close()
        self.queue.remove(record.id)
        self.queue.note(job_documents.recent_finished(record))
        self.reporter.dead_letters = await asyncio.to_thread(self.ledger.dead_count)
        self.intake.wake()
        self._on_change()

    # -- the loops ------------------------------------------------------------------

    async def run(self) -> None:
        """Run until told to stop, then drain.

        Raises whatever ended a loop.
        """
        engine = asyncio.create_task(self.engine.run(), name="engine")
        helpers = [
            asyncio.create_task(self._readings.read_engine(), name="engine readings"),
            asyncio.create_task(self._readings.read_gpu(), name="gpu readings"),
            asyncio.create_task(self._readings.read_disk(), name="disk readings"),
            asyncio.create_task(self._retain(), name="retention"),
            asyncio.create_task(self._report(), name="status"),
            asyncio.create_task(self._beat(), name="heartbeat"),
        ]
        loops = [
            asyncio.create_task(self.runner.run(), name="runner"),
            asyncio.create_task(self.intake.run(), name="intake"),
        ]
        stop = asyncio.create_task(self.stop.wait(), name="stop")
        self._notifier.notify("READY=1")
        try:
            await asyncio.wait([engine, *helpers, *loops, stop], return_when="FIRST_COMPLETED")
            _raise_ended([engine, *helpers, *loops])
            await self._drain(loops)
        finally:
            await _cancel([stop, engine, *helpers, *loops])
            await self._write_status()

    async def _drain(self, loops: list[asyncio.Task[None]]) -> None:
        log.info("draining", extra={"in_flight": self.runner.in_flight})
        self._notifier.notify("STOPPING=1")
        self.reporter.stopping = True
        self.intake.stop()
        self.changed.set()
        await self.runner.drain(self.config.run.drain_s)
        await asyncio.gather(*loops)

    async def _retain(self) -> None:
        while True:
            try:
                await asyncio.to_thread(
                    retention.retain, self.config, self.spool, self.ledger, time.time()
                )
            except OSError as error:  # a folder that is being fetched away; the next time then
                log.warning("retention_failed", extra={"reason": str(error)})
            self.reporter.dead_letters = await asyncio.to_thread(self.ledger.dead_count)
            await asyncio.sleep(RETENTION_TICK_S)

    async def _report(self) -> None:
        """Write the status at each change and at least each interval."""
        while True:
            await self._write_status()
            self._reported_at = time.monotonic()
            await asyncio.sleep(MIN_STATUS_GAP_S)
            patience = self.config.status.interval_s - MIN_STATUS_GAP_S
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it loses a cancellation that meets the end of its
                # wait, and the daemon would never stop.
                async with asyncio.timeout(max(patience, MIN_STATUS_GAP_S)):
                    await self.changed.wait()
            self.changed.clear()

    async def _beat(self) -> None:
        """Tell systemd that all turns; its limit is in WATCHDOG_USEC."""
        interval_s = int(os.environ.get("WATCHDOG_USEC", "20000000")) / 1e6 / 4
        while True:
            if self._alive():
                self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    async def _write_status(self) -> None:
        document = self.reporter.build(self.engine.info, time.monotonic())
        self._notifier.notify(f"STATUS={self.reporter.headline(self.engine.info)[:200]}")
        try:
            await asyncio.to_thread(self.spool.write_service_status, job_documents.pretty(document))
        except OSError as error:  # the health file must not take the work down with it
            log.exception("status_not_written", extra={"reason": str(error)})

    def _alive(self) -> bool:
        """Say whether the loops have turned lately, and the work has made progress.

        The runner turns each second by itself; the intake is let off while it reads one
        large drop.
        """
        turns = (
            Turn(self.runner.turned_at, STALLED_S),
            Turn(self.intake.turned_at, self.config.intake.scan_interval_s + INTAKE_STALLED_S),
            Turn(self._reported_at, self.config.status.interval_s + STALLED_S),
        )
        return self._heartbeat.may_beat(time.monotonic(), turns, self._progress())

    def _progress(self) -> object | None:
        """What changes with each step of the work; None while it rests for a known reason."""
        info, collector = self.engine.info, self.runner.collector
        if not self.reporter.at_work(info):
            return None
        jobs = tuple((entry.record.id, entry.run is None) for entry in self.queue.entries.values())
        return (jobs, collector.arrivals, collector.finished, info.load.tokens, info.generation)


def _raise_ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            log.error("loop_ended", extra={"loop": task.get_name()})
            task.result()
            msg = f"the {task.get_name()} loop ended by itself; this is a bug, please report it"
            raise RuntimeError(msg)


async def _cancel(tasks: list[asyncio.Task[bool] | asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

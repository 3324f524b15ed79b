"""The daemon: its loops, from the first turn to the drain.

Purpose: run the parts, write the status, watch the disk, prove that all of it is alive.
Invariants: a loop that ends by an exception ends the daemon, so that systemd starts it
again and recovery runs; the first stop drains; a heartbeat is sent only while the loops
turn.
"""

import asyncio
import contextlib
import logging
import os
import platform
import time
from typing import Any

import sdnotify

from inbox_daemon.contract import job_documents
from inbox_daemon.contract.facts import DiskFacts
from inbox_daemon.contract.limits import disk_full, disk_shortage
from inbox_daemon.jobs.system_time import note_anchor
from inbox_daemon.publish import retention
from inbox_daemon.report import health, status
from inbox_daemon.report.facts import Facts
from inbox_daemon.report.trends import Trends
from inbox_daemon.service.parts import Parts
from inbox_daemon.service.stalls import Heartbeat, Turn

log = logging.getLogger(__name__)

RETENTION_TICK_S = 600.0
DISK_TICK_S = 2.0
CLOCK_TICK_S = 1.0
# How old the newest trusted time may be that a start can go by.
ANCHOR_S = 60.0
MIN_STATUS_GAP_S = 0.2
STALLED_S = 30.0
INTAKE_STALLED_S = 300.0
# Beyond what one request may take: an engine's end and its next start are progress.
PROGRESS_SPARE_S = 120.0


class Daemon:
    """All loops of one running daemon."""

    def __init__(self, parts: Parts, changed: asyncio.Event) -> None:
        """Take the parts; `changed` is set after each change that the status would show."""
        self.parts, self._changed = parts, changed
        self.stop = asyncio.Event()
        config = parts.config
        longest_s = max(config.run.request_timeout_s, config.engine.hang_s)
        self._heartbeat = Heartbeat(longest_s + PROGRESS_SPARE_S)
        self._notifier = sdnotify.SystemdNotifier()
        self._disk: DiskFacts | None = None
        self._stopping = False
        # Set when a new time is trusted, by which more may be over.
        self._corrected = asyncio.Event()
        self._trends = Trends()
        self._seq = 0
        self._started_at, self._reported_at = time.time(), time.monotonic()

    # -- the loops ------------------------------------------------------------------

    async def run(self) -> None:
        """Run until `stop` is set, then drain.

        Raises whatever ended a loop.
        """
        parts, worker = self.parts, self.parts.worker
        # Before anything is taken or sent: the disk may be too full for either.
        await self._read_disk()
        engine = asyncio.create_task(worker.engine.run(), name="engine")
        helpers = [
            asyncio.create_task(worker.read_engine(parts.runner), name="engine readings"),
            asyncio.create_task(worker.read_gpu(), name="gpu readings"),
            asyncio.create_task(self._watch_disk(), name="disk readings"),
            asyncio.create_task(self._watch_clock(), name="clock readings"),
            asyncio.create_task(self._retain(), name="retention"),
            asyncio.create_task(self._report(), name="status"),
            asyncio.create_task(self._beat(), name="heartbeat"),
        ]
        loops = [
            asyncio.create_task(parts.runner.run(), name="runner"),
            asyncio.create_task(parts.intake.run(), name="intake"),
        ]
        stop = asyncio.create_task(self.stop.wait(), name="stop")
        self._notifier.notify("READY=1")
        try:
            await asyncio.wait([engine, *helpers, *loops, stop], return_when="FIRST_COMPLETED")
            for loop in [engine, *helpers, *loops]:
                if loop.done():
                    log.error("loop_ended", extra={"loop": loop.get_name()})
                    loop.result()
                    msg = f"the {loop.get_name()} loop ended; this is a bug, please report it"
                    raise RuntimeError(msg)
            log.info("draining", extra={"in_flight": self.parts.runner.in_flight})
            self._notifier.notify("STOPPING=1")
            self._stopping = True
            self.parts.intake.stop()
            self._changed.set()
            await self.parts.runner.drain(self.parts.config.run.drain_s)
            await asyncio.gather(*loops)
        finally:
            tasks: list[asyncio.Future[Any]] = [stop, engine, *helpers, *loops]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._write_status()

    async def _watch_disk(self) -> None:
        while True:
            await asyncio.sleep(DISK_TICK_S)
            await self._read_disk()

    async def _read_disk(self) -> None:
        """Stop intake and runner below the floor of free space, and let both go on above it."""
        parts = self.parts
        free = await asyncio.to_thread(parts.spool.free)
        short = disk_shortage(*free, parts.config.disk)
        parts.intake.full = disk_full(free[0], parts.config.disk)
        if short != parts.runner.disk_short:
            parts.runner.disk_short = parts.intake.paused = short
            log.warning("disk_floor", extra={"reason": short or "there is room again"})
            parts.intake.wake()
            parts.runner.wake()
            self._changed.set()
        quarantined = tuple(await asyncio.to_thread(parts.spool.quarantined))
        troubles = await asyncio.to_thread(parts.spool.troubles.words)
        found = DiskFacts(*free, quarantined, troubles)
        before = self._disk
        if before is not None and (quarantined, troubles) != (before.quarantined, before.troubles):
            self._changed.set()
        self._disk = found

    async def _watch_clock(self) -> None:
        """Trust a new time once it has held, and note the newest trusted one for a start."""
        jobs, spool, shown, due = self.parts.jobs, self.parts.spool, None, 0.0
        while True:
            correction = jobs.clock.check()
            if correction is not None and not self.parts.runner.disk_short:
                # The jobs first, or those that have time left would be over at once.
                await jobs.correct(correction)
                jobs.clock.trust(correction)
                self._corrected.set()
                due = 0.0
            anchor = jobs.clock.anchor()
            if anchor is not None and time.monotonic() >= due:
                await asyncio.to_thread(note_anchor, spool, anchor)
                due = time.monotonic() + ANCHOR_S
            if jobs.clock.doubt != shown:
                shown = jobs.clock.doubt
                self._changed.set()
            await asyncio.sleep(CLOCK_TICK_S)

    async def _retain(self) -> None:
        parts = self.parts
        while True:
            now = parts.jobs.clock.read().earliest
            try:
                await asyncio.to_thread(
                    retention.retain, parts.config, parts.spool, parts.ledger, now
                )
            except OSError as error:  # a folder that is being fetched away; the next time then
                log.warning("retention_failed", extra={"reason": str(error)})
            await asyncio.to_thread(parts.ledger.clear_dead_readers)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETENTION_TICK_S):
                    await self._corrected.wait()
            self._corrected.clear()

    # -- the status -----------------------------------------------------------------

    async def _report(self) -> None:
        """Write the status at each change and at least each interval."""
        while True:
            await self._write_status()
            self._reported_at = time.monotonic()
            await asyncio.sleep(MIN_STATUS_GAP_S)
            patience = self.parts.config.status.interval_s - MIN_STATUS_GAP_S
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it loses a cancellation that meets the end of its
                # wait, and the daemon would never stop.
                async with asyncio.timeout(max(patience, MIN_STATUS_GAP_S)):
                    await self._changed.wait()
            self._changed.clear()

    async def _write_status(self) -> None:
        dead_letters, now = await asyncio.to_thread(self.parts.ledger.dead_count), time.monotonic()
        self._seq += 1
        facts = self._facts(now, dead_letters)
        self._notifier.notify(f"STATUS={health.headline(facts)[:200]}")
        document = job_documents.pretty(status.build(facts, now))
        try:
            await asyncio.to_thread(self.parts.spool.write_service_status, document)
        except OSError as error:  # the health file must not take the work down with it
            log.exception("status_not_written", extra={"reason": str(error)})

    def _facts(self, now: float, dead_letters: int) -> Facts:
        """Return what all parts say at this moment; `now` in monotonic seconds."""
        parts, info = self.parts, self.parts.worker.engine.info
        queue = parts.jobs.facts()
        return Facts(
            config=parts.config,
            engine=info,
            run=parts.runner.facts(),
            queue=queue,
            intake=parts.intake.facts(),
            governor=parts.worker.governor_facts(),
            gpu=parts.worker.sample,
            disk=self._disk,
            dead_letters=dead_letters,
            speeds=self._trends.speeds(now, queue),
            died_s_ago=self._trends.died_s_ago(now, info.generation),
            clock_doubt=parts.jobs.clock.doubt,
            stopping=self._stopping,
            seq=self._seq,
            written_at=time.time(),
            started_at=self._started_at,
            pid=os.getpid(),
            python=platform.python_version(),
        )

    # -- the heartbeat --------------------------------------------------------------

    async def _beat(self) -> None:
        """Report to systemd that all turns; its limit is in WATCHDOG_USEC.

        The runner turns each second by itself; intake has a longer limit, as it may be
        reading one large drop.
        """
        parts, config = self.parts, self.parts.config
        interval_s = int(os.environ.get("WATCHDOG_USEC", "20000000")) / 1e6 / 4
        intake_s = config.intake.scan_interval_s + INTAKE_STALLED_S
        while True:
            turns = (
                Turn(parts.runner.turned_at, STALLED_S),
                Turn(parts.intake.turned_at, intake_s),
                Turn(self._reported_at, config.status.interval_s + STALLED_S),
            )
            if self._heartbeat.may_beat(time.monotonic(), turns, self._progress()):
                self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)

    def _progress(self) -> object | None:
        """Return what changes with each step of the work; None while none can go on."""
        parts, info = self.parts, self.parts.worker.engine.info
        facts = Facts(parts.config, info, run=parts.runner.facts(), queue=parts.jobs.facts())
        if not health.at_work(facts):
            return None
        states = tuple((e.record.id, e.run is None) for e in parts.jobs.entries.values())
        return states, parts.runner.progress, info.load.tokens, info.generation

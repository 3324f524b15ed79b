"""The runner: admit, collect, commit.

Purpose: keep the engine busy with the requests of the running jobs and bring every
job to its end.
Invariants: a request starts only after the chunk that holds it was committed, or its
failed attempt was; there is no barrier, neither between chunks nor between jobs; while
suspects are hunted, nothing else runs; a job that is ended early is published too.
Known limit: one commit at a time, so a slow disk delays what counts, not what runs.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable

from inbox_daemon.contract.config import Config
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.engine.base import Engine, EngineState
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.commit import HUNT, GroupCommit
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.faults import LineFaultError
from inbox_daemon.request.line import parse_request
from inbox_daemon.run.arrivals import Arrivals
from inbox_daemon.run.attempts import Attempts, Target
from inbox_daemon.run.lifecycle import Lifecycle, Publish
from inbox_daemon.run.poison import Bisection
from inbox_daemon.spool import Spool

log = logging.getLogger(__name__)

# A job that is ended early buries its requests so many at a time, and the loop turns.
SET_ASIDE_AT_ONCE = 500
# So many requests are launched, or lines made that are none, before the loop turns.
LAUNCHES = 1000


class Runner:
    """The loop that turns queued jobs into complete ones."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it joins
        self,
        config: Config,
        spool: Spool,
        ledger: Ledger,
        queue: ActiveJobs,
        engine: Engine,
        governor: Governor,
        publish: Publish,
    ) -> None:
        """Join the parts; nothing runs yet.  `publish` takes a job out of the queue."""
        self._config, self._queue = config, queue
        self._engine, self._governor = engine, governor
        self._wake = asyncio.Event()
        self._hunt = Bisection.load(ledger.get_state(HUNT))
        self._attempts = Attempts(engine, config.run.request_timeout_s, self._wake.set)
        self._committer = GroupCommit(config.run, queue, ledger, self._hunt)
        self.collector = Arrivals(config, queue, self._hunt, self._committer)
        self._background: set[asyncio.Future[None]] = set()
        self.jobs = Lifecycle(spool, ledger, queue, publish, self._in_the_background)
        self._draining = False
        self.paused: str | None = None
        # Whether the window was all that kept requests back at the last admission.
        self.limited = False
        self.turned_at = time.monotonic()

    @property
    def in_flight(self) -> int:
        """How many requests are with the engine."""
        return len(self._attempts)

    @property
    def hunting(self) -> bool:
        """Say whether suspects of an engine death run alone."""
        return bool(self._hunt)

    # -- the loop -------------------------------------------------------------------

    async def run(self) -> None:
        """Work until drained.

        Raises what must end the daemon: LedgerError, OSError, or a bug.
        """
        self._hunt.keep(self.collector.open_suspects())
        self.collector.put_off()
        while not self._drained():
            self.turned_at = time.monotonic()
            self._collect()
            self._clear_doubt()
            self._end_jobs()
            self._admit()
            self._commit()
            self._publish_complete()
            await self._wait()

    def wake(self) -> None:
        """Look again: a job was queued, the engine changed, more is allowed."""
        self._wake.set()

    async def drain(self, grace_s: float) -> None:
        """Start nothing more; wait `grace_s` seconds for what is in flight, drop the rest.

        `run` returns once everything that has finished is committed.
        """
        self._draining = True
        self.wake()
        await self._attempts.finish(grace_s)
        self.wake()

    def _drained(self) -> bool:
        if not self._draining or len(self._attempts) or self._background:
            return False
        unsaved = self._committer.hunt_unsaved or any(r.pending for r in self._queue.runs())
        return not (unsaved or self.collector.suspects)

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            # Not wait_for, which loses a cancellation that meets the end of its wait (3.11).
            async with asyncio.timeout(self._patience()):
                await self._wake.wait()
        # The wait above may return without letting anything else run: what
        # woke us would still be counted as in flight, and its place stay empty for a turn.
        await asyncio.sleep(0)
        self._wake.clear()
        for task in [task for task in self._background if task.done()]:
            self._background.discard(task)
            task.result()

    def _patience(self) -> float:
        """Seconds until something is due by itself, at most one."""
        now = time.monotonic()
        moments = [run.next_due() for run in self._queue.runs()]
        moments += [self._committer.due_at, self.collector.hold_until]
        left = [moment - now for moment in moments if moment is not None and moment > now]
        return max(0.002, min([1.0, *left]))

    def _in_the_background(self, work: Awaitable[None]) -> None:
        """Run beside the loop; an exception there ends the loop too."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(lambda _: self._wake.set())

    def _collect(self) -> None:
        for arrival in self._attempts.take():
            self.collector.take(arrival)
        if self.collector.suspects and not len(self._attempts):
            self.collector.engine_died()

    def _clear_doubt(self) -> None:
        """Ask whether the server means us, if no other request is left that would show it."""
        status, self.collector.in_doubt = self.collector.in_doubt, None
        if status is not None and self.collector.only_refused(self._admittable()):
            self._in_the_background(self._ask(status))

    async def _ask(self, status: int) -> None:
        if await self._engine.accepts_us():
            self.collector.note_accepted(status)

    # -- admit ----------------------------------------------------------------------

    def _admit(self) -> None:
        """Fill the window: suspects alone while a hunt is on, else the jobs by urgency."""
        self.limited = False
        if not self._may_admit():
            return
        self.collector.postpone_paused()
        if self._hunt:
            self._admit_suspects()
            return
        runs = self._admittable()
        if (tried := self.collector.left_to_try(runs)) is not None:
            if not self.in_flight:
                self.collector.recall(tried)
            return
        room = self._governor.window - self.in_flight
        for run in runs:
            room = self._admit_from(run, room)
            self._admit_chunk(run)
            self.limited = self.limited or (room <= 0 and run.startable > 0)
        self.jobs.start_next(runs, room=room > 0)

    def _may_admit(self) -> bool:
        if self._draining or self.paused or self.collector.suspects:
            return False
        # Who is tried next must be on the disk first; and an engine's flights must all
        # have come back before the next one gets any.
        if self._committer.hunt_unsaved or self._attempts.stale:
            return False
        held = self.collector.hold_until > time.monotonic()
        return not held and self._engine.info.state is EngineState.READY

    def _admittable(self) -> list[RunningJob]:
        return [
            run
            for run in self._queue.runs(time.time())
            if run.record.ending is None and not self._queue.is_paused(run.record)
        ]

    def _admit_from(self, run: RunningJob, room: int) -> int:
        now, turns, target = time.monotonic(), 0, self._target()
        while room > 0 and turns < LAUNCHES and (ordinal := run.next_ordinal(now)) is not None:
            room -= self._launch(run, ordinal, target)
            turns += 1
        if turns == LAUNCHES:  # lines that are no requests take no room: let the loop turn
            self.wake()
        return room

    def _admit_chunk(self, run: RunningJob) -> None:
        """Admit the next chunk before the last one is spent, so that nobody waits for it."""
        if run.fully_admitted or run.admitting or run.startable > self._governor.window:
            return
        first, last = run.admit_chunk(self._governor.chunk_size)
        log.debug("chunk_admitted", extra={"job": run.record.name, "first": first, "last": last})

    def _admit_suspects(self) -> None:
        for job_id, line in list(self._hunt.group):
            if self.in_flight >= self._governor.window:
                return
            run = self.collector.run_of(job_id)
            if run is None or not run.is_open(line):
                self.collector.clear((job_id, line))
            elif run.take_suspect(run.input.ordinal_of(line)):
                self._launch(run, run.input.ordinal_of(line), self._target())

    def _launch(self, run: RunningJob, ordinal: int, target: Target) -> int:
        """Send one request, or bury a line that is none; return how many are in flight."""
        fault = run.invalid.get(run.input.line_of(ordinal))
        if fault is None:
            try:
                raw = run.input.read(ordinal, self._config.limits.max_line_bytes)
                request = parse_request(raw, self._config.limits)
            except LineFaultError as error:  # the limits were lowered since
                fault = error.fault
            else:
                self._attempts.launch(run, ordinal, request, target)
                return 1
        self.collector.set_aside_invalid(run, ordinal, fault)
        return 0

    def _target(self) -> Target:
        """Where requests go now; asked once a turn, as it costs as much as a request."""
        info = self._engine.info
        model = self._config.engine.served_name or (info.models[0] if info.models else None)
        return Target(info.generation, model)

    # -- end, commit and publish -----------------------------------------------------

    def _end_jobs(self) -> None:
        """Bring jobs to their end that were cancelled or have expired; needs no engine."""
        for entry in list(self._queue.entries.values()):
            record, run = entry.record, entry.run
            if record.ending is None:
                self.jobs.expire(record)
            elif run is not None:
                self._set_aside_rest(run, record.ending)
            elif not self._draining:
                self.jobs.start(record)

    def _set_aside_rest(self, run: RunningJob, reason: DeadReason) -> None:
        if run.in_flight:
            self._attempts.abort(run)
            return
        for _ in range(SET_ASIDE_AT_ONCE):
            ordinal = run.next_open()
            if ordinal is None:
                return
            self.collector.set_aside_ended(run, ordinal, reason)
        self.wake()

    def _commit(self) -> None:
        if not self._committer.busy and self._committer.due(
            time.monotonic(), draining=self._draining
        ):
            self._committer.busy = True
            self._in_the_background(self._committer.commit())

    def _publish_complete(self) -> None:
        if not self._committer.busy:
            self.jobs.publish_complete()

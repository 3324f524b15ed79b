"""The runner: admit, collect, commit.

Purpose: keep the engine busy with the requests of the running jobs and make every
outcome count exactly once.
Invariants: a request starts only after the chunk that holds it was committed, or its
failed attempt was; an outcome counts only once journal and ledger have it; there is
no barrier, neither between chunks nor between jobs; a death of the engine or of the
daemon is never charged to a request, except to one that alone kills the engine.
Known limit: one commit at a time, so a slow disk delays what counts, not what runs.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable

from inbox_daemon import letters, wire
from inbox_daemon.attempts import Arrival, Attempts, Flight
from inbox_daemon.config import Config
from inbox_daemon.engine.base import Engine, EngineState, Reply
from inbox_daemon.governor import Governor
from inbox_daemon.hunt import DEATHS_ALONE, Hunt, Suspect
from inbox_daemon.jobqueue import JobQueue
from inbox_daemon.jobrun import Batch, JobRun
from inbox_daemon.ledger import Ledger
from inbox_daemon.letters import Burial, Grave
from inbox_daemon.outcomes import Action, Verdict
from inbox_daemon.records import JobRecord
from inbox_daemon.spool import Spool

log = logging.getLogger("inbox_daemon.runner")

COMMIT_RESULTS = 512
COMMIT_BYTES = 8 << 20
BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
REFUSED_PAUSE_S = 30.0
HUNT = "hunt"

Publish = Callable[[JobRun], Awaitable[None]]


class Runner:
    """The loop that turns queued jobs into complete ones."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it joins
        self,
        config: Config,
        spool: Spool,
        ledger: Ledger,
        queue: JobQueue,
        engine: Engine,
        governor: Governor,
        publish: Publish,
    ) -> None:
        """Join the parts; nothing runs yet.  `publish` takes a job out of the queue."""
        self._config, self._spool, self._ledger = config, spool, ledger
        self._queue, self._engine, self._governor = queue, engine, governor
        self._publish = publish
        self._wake = asyncio.Event()
        self._attempts = Attempts(engine, config.run.request_timeout_s, self._wake.set)
        self._background: set[asyncio.Future[None]] = set()
        self._starting = False
        self._publishing: set[str] = set()
        self._committing = False
        self._committed_at = time.monotonic()
        self._suspects: list[Suspect] = []
        self._hunt = Hunt.load(ledger.get_state(HUNT))
        self._hunt_changed = False
        self._hunt_writing = False
        self._hold_until = 0.0
        self._draining = False
        self._rng = random.Random()  # noqa: S311 - jitter is no secret
        self.finished = 0
        self.deaths = 0
        self.problem: str | None = None
        self.paused: str | None = None
        self.last_outcome_at = self.turned_at = time.monotonic()

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
        self._hunt.keep(self._open_suspects())
        while not self._drained():
            self.turned_at = time.monotonic()
            self._collect()
            self._admit()
            self._commit_if_due()
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
        busy = len(self._attempts) or self._background or self._suspects or self._hunt_changed
        return self._draining and not busy and not any(r.pending for r in self._queue.runs())

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._patience())
        self._wake.clear()

    def _patience(self) -> float:
        """Seconds until something is due by itself, at most one."""
        now = time.monotonic()
        moments = [run.next_due() for run in self._queue.runs()]
        moments = [moment for moment in moments if moment is not None and moment > now]
        if self._hold_until > now:
            moments.append(self._hold_until)
        if any(run.dirty for run in self._queue.runs()):
            moments.append(self._committed_at + self._config.run.commit_interval_s)
        return max(0.002, min([1.0, *(moment - now for moment in moments if moment)]))

    def _in_the_background(self, work: Awaitable[None]) -> None:
        """Run beside the loop; an exception there ends the loop too."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Future[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._background.discard(task)
        self._wake.set()

    def _raise_failures(self) -> None:
        for task in self._background:
            if task.done():
                task.result()

    # -- admit ----------------------------------------------------------------------

    def _admit(self) -> None:
        """Fill the window: suspects alone while a hunt is on, else the jobs in order."""
        self._raise_failures()
        if not self._may_admit():
            return
        if self._hunt:
            self._admit_suspects()
            return
        room = self._governor.window - self.in_flight
        for run in self._queue.runs():
            room = self._admit_from(run, room)
            self._admit_chunk(run)
        if room > 0:
            self._start_next_job()

    def _may_admit(self) -> bool:
        if self._draining or self.paused or self._suspects:
            return False
        if self._hunt_changed or self._hunt_writing:  # who is tried next must be known first
            return False
        if self._attempts.stale or self._hold_until > time.monotonic():
            return False
        return self._engine.info.state is EngineState.READY

    def _admit_from(self, run: JobRun, room: int) -> int:
        now = time.monotonic()
        while room > 0 and (ordinal := run.next_ordinal(now)) is not None:
            room -= self._launch(run, ordinal)
        return room

    def _admit_chunk(self, run: JobRun) -> None:
        """Admit the next chunk before the last one is spent, so that nobody waits for it."""
        if run.fully_admitted or run.admitting or run.startable > self._governor.window:
            return
        first, last = run.admit_chunk(self._governor.chunk_size)
        log.debug("chunk_admitted", extra={"job": run.record.name, "first": first, "last": last})

    def _admit_suspects(self) -> None:
        for job_id, line in list(self._hunt.group):
            run = self._run_of(job_id)
            if run is None or not run.is_open(line):
                self._clear((job_id, line))
            elif run.claim_suspect(run.ordinal_of(line)):
                self._launch(run, run.ordinal_of(line))

    def _launch(self, run: JobRun, ordinal: int) -> int:
        """Send one request; one that is none is buried.  Return how many are in flight for it."""
        line, raw = run.line_of(ordinal), run.read(ordinal)
        fault = run.invalid.get(line)
        if fault is None:
            try:
                request = wire.parse_request(raw, self._config.limits)
            except wire.LineFaultError as error:
                fault = error.fault
            else:
                self._attempts.launch(run, ordinal, request, self._model())
                return 1
        buried = letters.bury_invalid(Grave(run.record, line, raw), fault, time.time())
        self._bury(run, ordinal, buried)
        return 0

    def _model(self) -> str | None:
        """The name for lines that leave the model out."""
        models = self._engine.info.models
        return self._config.engine.served_name or (models[0] if models else None)

    def _start_next_job(self) -> None:
        """Begin the next job while the last one's tail still runs."""
        if self._starting or not all(run.fully_admitted for run in self._queue.runs()):
            return
        record = self._queue.next_queued()
        if record is not None:
            self._starting = True
            self._in_the_background(self._start_job(record))

    async def _start_job(self, record: JobRecord) -> None:
        started = record.model_copy(update={"in_progress_at": time.time()})
        self._queue.add(started, await asyncio.to_thread(self._open_job, started))
        self._starting = False
        log.info("job_started", extra={"job": record.name, "requests": record.requests})

    def _open_job(self, record: JobRecord) -> JobRun:
        self._spool.start(record.id)
        self._ledger.update(record)
        return JobRun(record, self._spool, self._ledger)

    # -- collect --------------------------------------------------------------------

    def _collect(self) -> None:
        """Give every arrival its consequence."""
        for arrival in self._attempts.take():
            self._take(arrival)
        if self._suspects and not len(self._attempts):
            self._engine_died()

    def _take(self, arrival: Arrival) -> None:
        flight, verdict = arrival.flight, arrival.verdict
        suspect = (flight.run.record.id, flight.line)
        if verdict is None:
            flight.run.abandon(flight.ordinal)
            return
        if arrival.lost:
            flight.run.abandon(flight.ordinal)
            self._suspects.append(suspect)
            return
        self._clear(suspect)
        if verdict.action is Action.HOLD:
            self._hold(flight, verdict)
        elif verdict.action is Action.RESULT and arrival.reply is not None:
            self._succeed(flight, verdict, arrival.reply)
        elif verdict.action is Action.DEAD:
            self._bury_tried(flight, verdict)
        else:
            self._fail(flight, verdict)

    def _succeed(self, flight: Flight, verdict: Verdict, reply: Reply) -> None:
        line = wire.output_line(
            flight.run.record.id,
            flight.line,
            flight.custom_id,
            reply.status,
            reply.request_id,
            reply.body,
        )
        flight.run.succeed(flight.ordinal, line, verdict.usage)
        self._ended()

    def _fail(self, flight: Flight, verdict: Verdict) -> None:
        """Charge the attempt; try again later, or bury the request if it was the last."""
        run = flight.run
        history = letters.charge(run.retries.get(flight.line), verdict, time.time())
        if history.failures >= self._config.run.max_attempts:
            run.retries[flight.line] = history
            self._bury_tried(flight, verdict)
            return
        delay = self._rng.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**history.failures))
        run.fail(flight.ordinal, history, time.monotonic() + delay)

    def _bury_tried(self, flight: Flight, verdict: Verdict) -> None:
        run = flight.run
        grave = Grave(run.record, flight.line, run.read(flight.ordinal))
        history = run.retries.get(flight.line)
        self._bury(
            run,
            flight.ordinal,
            letters.bury(grave, verdict, verdict.reason, history, time.time()),
        )

    def _bury(self, run: JobRun, ordinal: int, buried: Burial) -> None:
        run.bury(ordinal, buried.output, buried.letter, retryable=buried.retryable)
        fields = buried.letter.model_dump(include={"job", "custom_id", "line", "reason", "message"})
        log.warning("dead_letter", extra={k: v for k, v in fields.items() if k != "message"})
        self._ended()

    def _ended(self) -> None:
        self.finished += 1
        self.problem = None
        self.last_outcome_at = time.monotonic()

    def _hold(self, flight: Flight, verdict: Verdict) -> None:
        """The server refuses us, not the request: wait for the operator."""
        flight.run.abandon(flight.ordinal)
        self._hold_until = time.monotonic() + REFUSED_PAUSE_S
        self.problem = (
            f"the engine answers {verdict.http_status}: {verdict.message[:200]}; "
            "give the daemon access to it"
        )

    # -- engine deaths --------------------------------------------------------------

    def _engine_died(self) -> None:
        """All flights of a dead engine have come back: narrow down who killed it."""
        self.deaths += 1
        suspects, self._suspects = self._suspects, []
        poison = self._hunt.died(suspects)
        self._hunt_changed = True
        log.warning("engine_died", extra={"in_flight": len(suspects), "poison": len(poison)})
        for job_id, line in poison:
            run = self._run_of(job_id)
            if run is None or not run.is_open(line):
                continue
            ordinal = run.ordinal_of(line)
            run.claim_suspect(ordinal)
            grave = Grave(run.record, line, run.read(ordinal))
            self._bury(run, ordinal, letters.bury_poison(grave, DEATHS_ALONE, time.time()))

    def _clear(self, suspect: Suspect) -> None:
        if self._hunt:
            self._hunt.answered(suspect)
            self._hunt_changed = self._hunt_changed or not self._hunt

    def _run_of(self, job_id: str) -> JobRun | None:
        entry = self._queue.entries.get(job_id)
        return entry.run if entry else None

    def _open_suspects(self) -> set[Suspect]:
        stored = {suspect for group in self._hunt.groups for suspect in group}
        runs = {run.record.id: run for run in self._queue.runs()}
        return {(job, line) for job, line in stored if job in runs and runs[job].is_open(line)}

    # -- commit and publish ---------------------------------------------------------

    def _commit_if_due(self) -> None:
        if self._committing or not self._commit_due():
            return
        self._committing = True
        batches = [(run, run.take_batch()) for run in self._queue.runs() if run.dirty]
        state = {HUNT: self._hunt.dump()} if self._hunt_changed else {}
        self._hunt_writing, self._hunt_changed = self._hunt_changed, False
        self._in_the_background(self._commit(batches, state))

    def _commit_due(self) -> bool:
        runs = [run for run in self._queue.runs() if run.dirty]
        if self._hunt_changed or any(run.urgent for run in runs):
            return True
        if sum(run.pending for run in runs) >= COMMIT_RESULTS or self._draining:
            return bool(runs)
        if sum(run.journal.pending_bytes for run in runs) >= COMMIT_BYTES:
            return True
        waited = time.monotonic() - self._committed_at
        return bool(runs) and waited >= self._config.run.commit_interval_s

    async def _commit(
        self, batches: list[tuple[JobRun, Batch]], state: dict[str, bytes | None]
    ) -> None:
        await asyncio.to_thread(self._write, batches, state)
        for run, batch in batches:
            run.committed(batch)
        self._committed_at = time.monotonic()
        self._committing = self._hunt_writing = False

    def _write(self, batches: list[tuple[JobRun, Batch]], state: dict[str, bytes | None]) -> None:
        """Output before offset: a length that is committed is on the disk."""
        for run, batch in batches:
            run.journal.flush(batch.lines, batch.length)
        self._ledger.checkpoint([batch.checkpoint for _, batch in batches], state)

    def _publish_complete(self) -> None:
        for run in self._queue.runs():
            if run.complete and run.record.id not in self._publishing and not self._committing:
                self._publishing.add(run.record.id)
                self._in_the_background(self._publish_one(run))

    async def _publish_one(self, run: JobRun) -> None:
        await self._publish(run)
        self._publishing.discard(run.record.id)

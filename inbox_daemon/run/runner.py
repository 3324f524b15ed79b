"""The runner: admit, collect, commit.

Purpose: keep the engine busy with the requests of the running jobs and bring every
job to its end.
Invariants: a request starts only after the chunk that holds it was committed, or its
failed attempt was; there is no barrier, neither between chunks nor between jobs; while
suspects of an engine's death run, nothing else does; a job that is ended early is
published too; whatever keeps requests back is what `hindrance` returns.
Known limit: one commit at a time, so a slow disk delays what counts, not what runs.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from inbox_daemon.contract.config import Config
from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.contract.facts import RunFacts
from inbox_daemon.contract.hindrances import Hindrance, HindranceCode
from inbox_daemon.contract.limits import disk_full
from inbox_daemon.contract.records import DeadReason, JobRecord
from inbox_daemon.engine.base import Engine
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.commit import GroupCommit
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.faults import LineFaultError
from inbox_daemon.request.line import parse_request
from inbox_daemon.run.arrivals import Arrivals
from inbox_daemon.run.attempts import Arrival, Attempts
from inbox_daemon.run.budget import Budget
from inbox_daemon.run.dead_letters import DeadLetters
from inbox_daemon.run.hindrance import Hindrances
from inbox_daemon.run.lifecycle import Lifecycle
from inbox_daemon.run.outcomes import Action
from inbox_daemon.run.suspects import STATE, Suspects
from inbox_daemon.spool import Spool

log = logging.getLogger(__name__)

# A job that is ended early sets this many requests aside before the loop turns.
SET_ASIDE_AT_ONCE = 500
# This many requests are launched, or invalid lines set aside, before the loop turns.
LAUNCHES = 1000
# While a server has proven nothing, requests of up to so many jobs are sent by turns.
MOST_ALONE = 8
# The loop turns at least this often, whatever it may have missed.
LONGEST_WAIT_S = 1.0


class Runner:
    """The loop that turns queued jobs into complete ones."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it joins
        self,
        config: Config,
        spool: Spool,
        ledger: Ledger,
        jobs: ActiveJobs,
        engine: Engine,
        governor: Governor,
        charge_energy: Callable[[], Awaitable[None]],
    ) -> None:
        """Join the parts; nothing runs yet.

        `charge_energy` charges the running jobs with what the card used up to now.
        """
        self._config, self._jobs = config, jobs
        self._engine, self._governor = engine, governor
        self._wake = asyncio.Event()
        self._letters = DeadLetters(config.limits.max_line_bytes)
        self._suspects = Suspects(jobs, ledger.get_state(STATE), self._set_aside_poison)
        self._budget = Budget(config.run.max_in_flight_bytes)
        self._attempts = Attempts(
            engine, config.run.request_timeout_s, self._budget, self._wake.set
        )
        self._commit = GroupCommit(
            config.run,
            jobs,
            ledger,
            self._suspects,
            lambda: disk_full(spool.free()[0], config.disk) is None,
        )
        self._arrivals = Arrivals(
            config.run,
            self._suspects,
            self._letters,
            lambda: governor.knows_queue,
            owned=engine.kind.owned,
        )
        self._background: set[asyncio.Future[None]] = set()
        self._lifecycle = Lifecycle(
            config.disk, spool, ledger, jobs, charge_energy, self._in_the_background
        )
        self._hindrances = Hindrances(
            jobs,
            engine,
            governor,
            self._arrivals,
            self._suspects,
            self._attempts,
            self._commit,
            self._lifecycle,
        )
        # Whether the window was all that kept requests back at the last admission.
        self.limited = False
        # When (monotonic) a request of each job was last sent alone, by id.
        self._tried_alone_at: dict[str, float] = {}
        self.turned_at = self._last_outcome_at = time.monotonic()

    # -- what others see ------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """The number of requests that are with the engine."""
        return len(self._attempts)

    @property
    def unanswered(self) -> int:
        """The number of those whose answer does not wait for memory."""
        return self.in_flight - self._budget.waiting

    @property
    def finished(self) -> int:
        """The number of requests that got their outcome since the daemon began."""
        return self._arrivals.results + self._letters.count

    @property
    def progress(self) -> tuple[int, int, int]:
        """Three counts of which one changes with each step of the work."""
        return self._arrivals.arrivals, self.finished, self._lifecycle.advanced

    @property
    def disk_short(self) -> str | None:
        """Why the disk is too full to go on; set from outside."""
        return self._hindrances.disk_short

    @disk_short.setter
    def disk_short(self, words: str | None) -> None:
        self._hindrances.disk_short = words

    def hindrance(self) -> Hindrance | None:
        """Return why nothing is sent now; None while requests may be."""
        return self._hindrances.of_all()

    def facts(self) -> RunFacts:
        """Return what the status shows of the runner."""
        return RunFacts(
            hindrance=self.hindrance(),
            problem=self._arrivals.problem or self._suspects.problem,
            waiting=self._hindrances.of_jobs(),
            bisecting=self._suspects.bisecting,
            in_flight=self.in_flight,
            in_flight_bytes=self._budget.held,
            deaths=self._suspects.deaths,
            last_outcome_at=self._last_outcome_at,
        )

    # -- the loop -------------------------------------------------------------------

    async def run(self) -> None:  # noqa: C901 - the steps of one turn, in order
        """Work until drained.

        Raises what must end the daemon: LedgerError, OSError, or a bug.
        """
        self._suspects.restore()
        while not self._drained():
            self.turned_at = time.monotonic()
            # Give what has arrived its consequence, and a death of the engine its own.
            before = self.finished
            self._take_arrivals()
            if self._suspects.lost and not len(self._attempts):
                self._suspects.engine_died()
            if self.finished > before:
                self._last_outcome_at = time.monotonic()
            self._clear_doubt()
            # Bring jobs to their end that were cancelled or have expired; needs no engine.
            for entry in list(self._jobs.entries.values()):
                record, run = entry.record, entry.run
                if run is not None and run.damage is not None:
                    self._give_up(run, run.damage)
                elif record.ending is None:
                    self._lifecycle.expire(record)
                    self._lifecycle.bind(record, self._engine.info.default_model)
                elif run is not None:
                    self._set_aside_rest(run, record.ending)
                elif not self._hindrances.draining:
                    self._lifecycle.start(record)
            self._admit()
            pressed, draining = self._budget.waiting > 0, self._hindrances.draining
            if self._commit.due(time.monotonic(), draining=draining, pressed=pressed):
                self._commit.busy = True
                self._in_the_background(self._commit.commit())
            if not self._commit.busy:
                self._lifecycle.publish_complete()
            await self._wait()

    def _take_arrivals(self) -> None:
        """Give each arrival its consequence, one at a time, so that none is held twice."""
        flying = len(self._attempts)
        arrived = self._attempts.take()
        arrived.reverse()
        while arrived:
            arrival = arrived.pop()
            flight = arrival.flight
            self._feed_governor(arrival, flying)
            flying -= 1
            try:
                self._arrivals.take(arrival)
            except DamagedJobError as error:
                flight.run.damage = error
                flight.run.marks.abandon(flight.ordinal)
        self._budget.settle(sum(run.uncommitted_bytes for run in self._jobs.runs()))

    def _feed_governor(self, arrival: Arrival, in_flight: int) -> None:
        """Tell the governor what an arrival says of how much the server takes."""
        verdict = arrival.verdict
        if verdict is None or arrival.lost or verdict.action is Action.HOLD:
            return
        silent = verdict.action is Action.PROBE and arrival.reply is None
        overloaded = verdict.action is Action.LATER or silent
        if verdict.action is not Action.PROBE or overloaded:
            launched_at = arrival.flight.launched_at
            self._governor.take_reply(launched_at, self.turned_at, in_flight, overloaded=overloaded)

    def wake(self) -> None:
        """Look again: a job was queued, the engine changed, more is allowed."""
        self._wake.set()

    async def drain(self, grace_s: float) -> None:
        """Start nothing more; wait `grace_s` seconds for what is in flight, drop the rest.

        `run` returns once everything that has finished is committed.
        """
        self._hindrances.draining = self._commit.draining = True
        self.wake()
        await self._attempts.finish(grace_s)
        self.wake()

    def _drained(self) -> bool:
        """Return whether the drain is over: all flights ended, all that finished committed."""
        if not self._hindrances.draining or len(self._attempts) or self._background:
            return False
        # What its file does not take is dropped, and runs again.
        unsaved = self._commit.further_unsaved or any(
            r.pending and not r.results.broken and r.unwritten is None for r in self._jobs.runs()
        )
        return not (unsaved or self._suspects.lost)

    async def _wait(self) -> None:
        """Wait for a wake-up, or for what is due by itself."""
        now = time.monotonic()
        moments = [run.marks.next_due() for run in self._jobs.runs()]
        moments += [held.until for held in self._lifecycle.held.values()]
        moments += [self._commit.due_at, self._arrivals.hold_until, self._suspects.hold_until]
        left = [moment - now for moment in moments if moment is not None and moment > now]
        with contextlib.suppress(TimeoutError):
            # Not wait_for, which loses a cancellation that meets the end of its wait (3.11).
            async with asyncio.timeout(max(0.002, min([LONGEST_WAIT_S, *left]))):
                await self._wake.wait()
        # The wait above may return without letting anything else run: what
        # woke us would still be counted as in flight, and its place stay empty for a turn.
        await asyncio.sleep(0)
        self._wake.clear()
        for task in [task for task in self._background if task.done()]:
            self._background.discard(task)
            task.result()

    def _in_the_background(self, work: Awaitable[None]) -> None:
        """Run beside the loop; an exception there ends the loop too."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(lambda _: self._wake.set())

    def _clear_doubt(self) -> None:
        """Ask whether the server means us, if no other request is left that would show it."""
        status, self._arrivals.in_doubt = self._arrivals.in_doubt, None
        if status is None:
            return
        runs = self._admittable()
        refused = self._arrivals.refused(runs)
        if all(run.left == refused[run.record.id] for run in runs):
            self._in_the_background(self._ask(status))

    async def _ask(self, status: int) -> None:
        if await self._engine.accepts_us():
            self._arrivals.note_accepted(status)

    # -- admit ----------------------------------------------------------------------

    def _admit(self) -> None:  # noqa: C901 - one step after the other
        """Fill the window: suspects alone while there are any, else the jobs by urgency."""
        self.limited = False
        self._suspects.postpone_waiting(self._may_run)
        hindrance = self.hindrance()
        if hindrance is not None:
            if hindrance.code is HindranceCode.BISECTION:
                self._admit_suspects()
            if hindrance.code is HindranceCode.ENGINE_UNPROVEN:
                self._admit_alone()
            if hindrance.code is HindranceCode.JOBS_HELD:  # it may be their start that waits
                self._start_next([], room=True)
            return
        runs = self._admittable()
        tried = self._suspects.left_to_try(runs, self._arrivals.refused)
        if tried is not None:
            if not self.in_flight:
                self._suspects.recall(tried)
            return
        # Asked once a turn, as it costs as much as a request.
        room, generation = self._governor.window - self.in_flight, self._engine.info.generation
        full = False
        for run in runs:
            marks, now, turns = run.marks, time.monotonic(), 0
            while room > 0 and turns < LAUNCHES and run.damage is None:
                ordinal = marks.next_ordinal(now)
                if ordinal is None:
                    break
                if not self._budget.allows(run.input.size_of(ordinal)):
                    marks.put_back(ordinal)
                    room, full = 0, True
                    break
                room -= self._launch(run, ordinal, generation)
                turns += 1
            if turns == LAUNCHES:  # invalid lines take no room: let the loop turn
                self.wake()
            # The next chunk is admitted before the last one is spent, so that it need not wait.
            self._admit_chunks([run])
            self.limited = self.limited or (room <= 0 and not full and marks.startable > 0)
        self._start_next(runs, room=room > 0)

    def _start_next(self, runs: list[RunningJob], *, room: bool) -> None:
        code = HindranceCode.MODEL_NOT_SERVED
        unserved = {i for i, found in self._hindrances.of_jobs().items() if found.code is code}
        self._lifecycle.start_next(runs, unserved, room=room)

    def _admit_alone(self) -> None:
        """Send one request to a server that has to prove itself, of each job by turns."""
        if self.in_flight or self._governor.window == 0:
            return
        runs = self._admittable()
        if len(runs) < MOST_ALONE and all(run.record.id in self._tried_alone_at for run in runs):
            self._start_next([], room=True)  # what fails may be the jobs' doing
        for run in sorted(runs, key=lambda run: self._tried_alone_at.get(run.record.id, 0.0)):
            ordinal = run.marks.next_alone(run.input.size_of)
            if ordinal is not None:
                self._tried_alone_at = {
                    job_id: at
                    for job_id, at in self._tried_alone_at.items()
                    if job_id in self._jobs.entries
                } | {run.record.id: time.monotonic()}
                self._launch(run, ordinal, self._engine.info.generation, alone=True)
                return
        self._admit_chunks(runs)

    def _admit_chunks(self, runs: list[RunningJob]) -> None:
        """Admit the next chunk of each job that has no more to start than the window takes."""
        for run in runs:
            marks = run.marks
            spare = marks.startable > self._governor.window
            if not (marks.fully_admitted or marks.admitting or spare):
                first, last = map(run.input.line_of, marks.admit(self._governor.chunk_size))
                job = run.record.name
                log.debug("chunk_admitted", extra={"job": job, "first": first, "last": last})

    def _admittable(self) -> list[RunningJob]:
        """Return the jobs that may run, the most urgent first."""
        return [
            run
            for run in self._jobs.runs(self._jobs.clock.read().reckoned)
            if run.record.ending is None
            and run.damage is None
            and run.unwritten is None
            and self._may_run(run.record)
        ]

    def _may_run(self, record: JobRecord) -> bool:
        """Return whether requests of a job may be sent, as far as its owner and its model go."""
        if record.model is None and self._engine.info.default_model is not None:
            return False  # it is being bound to that
        return not self._jobs.is_paused(record) and self._engine.info.serves(record.model)

    def _admit_suspects(self) -> None:
        for job_id, line in self._suspects.group:
            if self.in_flight >= self._governor.window:
                return
            run = self._jobs.run_of(job_id)
            if run is None or run.damage is not None or not run.is_open(line):
                self._suspects.forget((job_id, line))
            elif not self._budget.allows(run.input.size_of(run.input.ordinal_of(line))):
                return
            elif run.marks.take_suspect(run.input.ordinal_of(line)):
                self._launch(run, run.input.ordinal_of(line), self._engine.info.generation)

    def _launch(
        self, run: RunningJob, ordinal: int, generation: int, *, alone: bool = False
    ) -> int:
        """Send one request, or set an invalid line aside; return how many are in flight."""
        fault = run.invalid.get(run.input.line_of(ordinal))
        try:
            if fault is None:
                try:
                    raw = run.input.read(ordinal, self._config.limits.max_line_bytes)
                    request = parse_request(raw, self._config.limits)
                except LineFaultError as error:  # the limits were lowered since
                    fault = error.fault
                else:
                    self._attempts.launch(run, ordinal, request, generation, alone=alone)
                    return 1
            self._letters.set_aside_invalid(run, ordinal, fault, time.time())
        except DamagedJobError as error:
            run.damage = error
            self.wake()
        return 0

    # -- end ------------------------------------------------------------------------

    def _set_aside_rest(self, run: RunningJob, reason: DeadReason) -> None:
        if run.in_flight:
            self._attempts.abort(run)
            return
        for _ in range(SET_ASIDE_AT_ONCE):
            ordinal = run.marks.next_open()
            if ordinal is None:
                return
            self._suspects.forget((run.record.id, run.input.line_of(ordinal)))
            try:
                self._letters.set_aside_ended(run, ordinal, reason, time.time())
            except DamagedJobError as error:
                run.damage = error
                break
        self.wake()

    def _set_aside_poison(self, run: RunningJob, ordinal: int, deaths: int) -> None:
        try:
            self._letters.set_aside_poison(run, ordinal, deaths, time.time())
        except DamagedJobError as error:
            run.damage = error

    def _give_up(self, run: RunningJob, error: DamagedJobError) -> None:
        """Set a job aside whose files cannot be used, once what it has is committed."""
        if run.in_flight:
            self._attempts.abort(run)
        elif not run.dirty and not self._commit.busy:
            self._lifecycle.give_up(run, error)

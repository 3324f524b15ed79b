"""Collecting: what has arrived, and what it means for its job.

Purpose: give every arrival its consequence, a result, a further attempt, a dead
letter, or a place among the suspects of an engine death.
Invariants: an arrival changes exactly one request; a death of the engine is charged
to nobody but a request that has killed it alone, again and again; nothing here sends.
"""

import logging
import random
import time
from collections import Counter

from inbox_daemon.contract.config import Config
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.engine.base import Reply
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.commit import GroupCommit
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.request.line import output_line
from inbox_daemon.run import dead_letters
from inbox_daemon.run.attempts import Arrival, Flight
from inbox_daemon.run.dead_letters import DeadRequest, SetAside
from inbox_daemon.run.outcomes import Action, Verdict
from inbox_daemon.run.poison import Bisection, Suspect

log = logging.getLogger(__name__)

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
REFUSED_PAUSE_S = 30.0
_FORBIDDEN = 403
# Under so many requests in a row may an engine die; beyond, it is doubted.
TRUSTED_POISON = 3
DOUBT_BASE_S = 10.0
DOUBT_CAP_S = 600.0


class Arrivals:
    """Applies verdicts to the running jobs."""

    def __init__(
        self, config: Config, queue: ActiveJobs, hunt: Bisection, committer: GroupCommit
    ) -> None:
        """Start with no suspects but those of the hunt that was going on."""
        self._config, self._queue = config, queue
        self._hunt, self._committer = hunt, committer
        self._rng = random.Random()  # noqa: S311 - jitter is no secret
        # Who has died alone before the last answer, and who since, condemned or not yet.
        self._known, self._unanswered, self._poisonous = set(hunt.deaths), set[Suspect](), 0
        self._refused: dict[Suspect, tuple[float, int]] = {}
        self._refusals_in_a_row = 0
        self._served_at = 0.0
        # The status of a refusal of which nobody knows yet whether it means us or the request.
        self.in_doubt: int | None = None
        self.suspects: list[Suspect] = []
        self.hold_until = 0.0
        self.problem: str | None = None
        self.finished, self.arrivals = 0, 0
        self.deaths = 0
        self.last_outcome_at = time.monotonic()

    # -- arrivals -------------------------------------------------------------------

    def take(self, arrival: Arrival) -> None:
        """Give one arrival its consequence."""
        self.arrivals += 1
        flight, verdict = arrival.flight, arrival.verdict
        if verdict is None or arrival.lost:
            flight.run.abandon(flight.ordinal)
            if arrival.lost:
                self.suspects.append(_suspect(flight))
            return
        self._survived(_suspect(flight))
        if self._refused and verdict.action is not Action.HOLD:
            self._refused.pop(_suspect(flight), None)
        if verdict.action is Action.HOLD:
            self._hold(flight, verdict)
        elif verdict.action is Action.RESULT and arrival.reply is not None:
            self._succeed(flight, verdict, arrival.reply)
        elif verdict.action is Action.DEAD:
            self._set_aside_tried(flight, verdict)
        else:
            self._fail(flight, verdict)

    def _succeed(self, flight: Flight, verdict: Verdict, reply: Reply) -> None:
        job_id, custom_id = flight.run.record.id, flight.custom_id
        line = output_line(
            job_id, flight.line, custom_id, reply.status, reply.request_id, reply.body
        )
        flight.run.succeed(flight.ordinal, line, verdict.tokens)
        if self._unanswered:
            self._known, self._unanswered, self._poisonous = set(self._hunt.deaths), set(), 0
        self._served(flight)
        self._ended()

    def _served(self, flight: Flight) -> None:
        """Note that the engine serves us, unless this was sent before it refused us."""
        self._served_at = max(self._served_at, flight.launched_at)
        if flight.launched_at >= self.hold_until:
            self.problem, self._refusals_in_a_row = None, 0

    def _fail(self, flight: Flight, verdict: Verdict) -> None:
        """Charge the attempt; try again later, or bury the request if it was the last."""
        run = flight.run
        history = dead_letters.charge(run.retries.get(flight.line), verdict, time.time())
        if history.failures >= (run.record.max_attempts or self._config.run.max_attempts):
            self._set_aside_tried(flight, verdict)
            return
        # Exponential with full jitter, so that retries do not come back as one wave.
        delay = self._rng.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**history.failures))
        run.fail(flight.ordinal, history, time.monotonic() + delay)

    def _hold(self, flight: Flight, verdict: Verdict) -> None:
        """The server refuses us, or this request: find out which.

        Nothing more is sent for a while.  If requests that are sent afterwards are
        answered, it is the request that is refused, as by a gateway's filter, and after
        its attempts it is made; until then nobody is charged.  Where nothing else is left
        to be sent, the runner asks the server, and `note_accepted` takes the answer.
        """
        now, suspect = time.monotonic(), _suspect(flight)
        first, count = self._refused.get(suspect, (now, 0))
        limit = flight.run.record.max_attempts or self._config.run.max_attempts
        if count + 1 >= limit and self._served_at > first:
            self._refused.pop(suspect, None)
            if not self._refused:
                self.problem, self._refusals_in_a_row = None, 0
            self._set_aside_tried(flight, verdict)
            return
        self._refused[suspect] = first, count + 1
        self.in_doubt = verdict.http_status
        if now >= self.hold_until:  # else it is one of the same wave
            self._pause(now)
        # Others go first, or a window full of refused ones would be all that is ever sent.
        later_s = min(REFUSED_PAUSE_S, 2.0 ** (count + 1))
        flight.run.abandon(flight.ordinal, self.hold_until + later_s)
        self.problem = (
            f"the engine answers {verdict.http_status}: {verdict.message[:200]}; "
            "give the daemon access to it"
        )
        log.warning("engine_refuses", extra={"status": verdict.http_status, "code": verdict.code})

    def only_refused(self, runs: list[RunningJob]) -> bool:
        """Say whether nothing is left to be sent but what was refused."""
        return all(run.left == self._refused_of(run) for run in runs)

    def _refused_of(self, run: RunningJob) -> int:
        mine = (line for job_id, line in self._refused if job_id == run.record.id)
        return sum(map(run.is_open, mine))

    def note_accepted(self, status: int) -> None:
        """Take note that the server accepts us, after a refusal with that status.

        Some list their models to everybody.  So of one that does not know us (401, 407)
        it takes a request that was answered before as well.
        """
        if status == _FORBIDDEN or self._served_at:
            self._served_at = time.monotonic()

    def _pause(self, now: float) -> None:
        self.hold_until = now + min(REFUSED_PAUSE_S, 2.0**self._refusals_in_a_row)
        self._refusals_in_a_row += 1

    # -- dead letters ---------------------------------------------------------------

    def _dead_request(self, run: RunningJob, ordinal: int) -> DeadRequest:
        raw = run.input.read(ordinal, self._config.limits.max_line_bytes)
        return DeadRequest(run.record, run.input.line_of(ordinal), raw)

    def _set_aside_tried(self, flight: Flight, verdict: Verdict) -> None:
        dead = self._dead_request(flight.run, flight.ordinal)
        history = dead_letters.charge(flight.run.retries.get(flight.line), verdict, time.time())
        made = dead_letters.make_letter(dead, verdict, verdict.reason, history, time.time())
        self._set_aside(flight.run, flight.ordinal, made)

    def set_aside_invalid(self, run: RunningJob, ordinal: int, fault: Fault) -> None:
        """End a line that is no request."""
        made = dead_letters.make_invalid(self._dead_request(run, ordinal), fault, time.time())
        self._set_aside(run, ordinal, made)

    def set_aside_ended(self, run: RunningJob, ordinal: int, reason: DeadReason) -> None:
        """End a request whose job was cancelled or has expired."""
        fault = run.invalid.get(run.input.line_of(ordinal))
        if fault is not None:
            self.set_aside_invalid(run, ordinal, fault)
            return
        history = run.retries.get(run.input.line_of(ordinal))
        dead = self._dead_request(run, ordinal)
        self.clear((run.record.id, dead.line))
        self._set_aside(run, ordinal, dead_letters.make_ended(dead, reason, history, time.time()))

    def _set_aside(self, run: RunningJob, ordinal: int, made: SetAside) -> None:
        run.set_aside(ordinal, made.output, made.letter, retryable=made.retryable)
        letter = made.letter
        fields = {"job": letter.job, "line": letter.line, "reason": letter.reason.value}
        log.debug("dead_letter", extra=fields | {"code": letter.code})
        self._ended()

    def _ended(self) -> None:
        self.finished += 1
        self.last_outcome_at = time.monotonic()

    # -- engine deaths --------------------------------------------------------------

    def engine_died(self) -> None:
        """All flights of a dead engine have come back: narrow down who killed it."""
        self.deaths += 1
        suspects, self.suspects = self.suspects, []
        if len(suspects) == 1 and not {*suspects} & (self._known | self._unanswered):
            self._unanswered.update(suspects)
            self._doubt_engine(len(self._unanswered))
        poison = self._hunt.died(suspects, time.time())
        self._committer.hunt_changed = True
        log.warning("engine_died", extra={"in_flight": len(suspects), "poison": len(poison)})
        for (job_id, line), deaths in poison.items():
            run = self.run_of(job_id)
            if run is not None and run.is_open(line):
                self._set_aside_poison(run, run.input.ordinal_of(line), deaths)
                self._poisonous += (job_id, line) in self._unanswered
                self._doubt_engine(self._poisonous)
        self.put_off()

    def put_off(self) -> None:
        """Let those wait that the hunt has put off, also after a start of the daemon."""
        for job_id, line in self._hunt.put_off:
            run = self.run_of(job_id)
            if run is not None and run.is_open(line):
                run.put_off(run.input.ordinal_of(line))

    def postpone_paused(self) -> None:
        """Let the suspects of a paused job wait, so that nobody else waits for them."""
        if not self._queue.paused:
            return
        jobs = {job_id for group in self._hunt.groups for job_id, _ in group}
        runs = [run for run in map(self.run_of, jobs) if run is not None]
        for run in runs:
            if self._queue.is_paused(run.record) and not run.in_flight:
                self._hunt.postpone(run.record.id)
                self._committer.hunt_changed = True
                self.put_off()

    def left_to_try(self, runs: list[RunningJob]) -> RunningJob | None:
        """A job that has nothing left but requests that the hunt has put off."""
        waiting = Counter(job_id for job_id, _ in self._hunt.put_off)
        if not waiting:
            return None
        # What is refused may wait for ever, and so for nobody.
        return next(
            (r for r in runs if 0 < waiting[r.record.id] == r.left - self._refused_of(r)), None
        )

    def recall(self, run: RunningJob) -> None:
        """Try the requests of that job again that were put off; nothing else may fly."""
        self._hunt.recall(run.record.id)
        self._committer.hunt_changed = True

    def _doubt_engine(self, streak: int) -> None:
        """Slow down when every request seems to be poison: then it is the engine that is ill.

        `streak` counts those under which it died alone, or that were condemned, without
        an answer of any other since.  Without this a faulty GPU would turn a whole job
        into dead letters.
        """
        excess = streak - TRUSTED_POISON
        if excess <= 0:
            return
        pause_s = min(DOUBT_BASE_S * 2 ** min(excess, 10), DOUBT_CAP_S)
        self.hold_until = time.monotonic() + pause_s
        self.problem = (
            f"the engine died under each of the last {streak} requests that ran "
            f"alone: look at the engine and the GPU; the next one is tried in {pause_s:.0f} s"
        )

    def _set_aside_poison(self, run: RunningJob, ordinal: int, deaths: int) -> None:
        run.take_suspect(ordinal)
        dead = self._dead_request(run, ordinal)
        history = run.retries.get(dead.line)
        made = dead_letters.make_poison(dead, deaths, history, time.time())
        self._set_aside(run, ordinal, made)

    def clear(self, suspect: Suspect) -> None:
        """Take a request that is gone out of the hunt."""
        if suspect in self._hunt.deaths or self._hunt:
            self._hunt.forget(suspect)
            self._committer.hunt_changed = self._committer.hunt_changed or not self._hunt

    def _survived(self, suspect: Suspect) -> None:
        """Take a request that was answered out of the hunt: it does not kill."""
        if self._hunt:
            self._hunt.answered(suspect, time.time())
            self._committer.hunt_changed = self._committer.hunt_changed or not self._hunt

    def run_of(self, job_id: str) -> RunningJob | None:
        """The running job of that id."""
        entry = self._queue.entries.get(job_id)
        return entry.run if entry else None

    def open_suspects(self) -> set[Suspect]:
        """Those of the hunt whose request has no outcome yet."""
        stored = self._hunt.suspects
        runs = {run.record.id: run for run in self._queue.runs()}
        return {(job, line) for job, line in stored if job in runs and runs[job].is_open(line)}


def _suspect(flight: Flight) -> Suspect:
    return flight.run.record.id, flight.line

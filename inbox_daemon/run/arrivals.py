"""Arrivals: what the end of an attempt means for its job.

Purpose: give every arrival its consequence: a result, a further attempt, a dead letter,
a wait while the server refuses, or a place among the suspects of an engine's death.
Invariants: an arrival changes exactly one request; nothing here sends.
"""

import logging
import random
import time
from collections import Counter

from inbox_daemon.contract.config import RunConfig
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.request.line import output_line
from inbox_daemon.run.attempts import Arrival, Flight
from inbox_daemon.run.dead_letters import DeadLetters, charge
from inbox_daemon.run.outcomes import Action, Verdict
from inbox_daemon.run.poison import Suspect
from inbox_daemon.run.suspects import Suspects

log = logging.getLogger(__name__)

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
REFUSED_PAUSE_S = 30.0
_FORBIDDEN = 403


class Arrivals:
    """Applies verdicts to the running jobs."""

    def __init__(self, run: RunConfig, suspects: Suspects, letters: DeadLetters) -> None:
        """Start with nothing seen."""
        self._max_attempts = run.max_attempts
        self._suspects, self._letters = suspects, letters
        self._rng = random.Random()  # noqa: S311 - jitter is no secret
        self._refused: dict[Suspect, tuple[float, int]] = {}
        self._refusals_in_a_row = 0
        self._served_at = 0.0
        # The status of a refusal that may mean us or the request, until one of both is known.
        self.in_doubt: int | None = None
        self.hold_until = 0.0
        self.problem: str | None = None
        self.results, self.arrivals = 0, 0

    def take(self, arrival: Arrival) -> None:
        """Give one arrival its consequence."""
        self.arrivals += 1
        flight, verdict = arrival.flight, arrival.verdict
        suspect = flight.run.record.id, flight.line
        if verdict is None or arrival.lost:
            flight.run.marks.abandon(flight.ordinal)
            if arrival.lost:
                self._suspects.lost.append(suspect)
            return
        self._suspects.answered(suspect)
        if self._refused and verdict.action is not Action.HOLD:
            self._refused.pop(suspect, None)
        if verdict.action is Action.HOLD:
            self._hold(flight, verdict)
        elif verdict.action is Action.RESULT and arrival.reply is not None:
            reply = arrival.reply
            job_id, custom_id = flight.run.record.id, flight.custom_id
            line = output_line(
                job_id, flight.line, custom_id, reply.status, reply.request_id, reply.body
            )
            flight.run.succeed(flight.ordinal, line, verdict.tokens)
            self.results += 1
            # A request that was sent before a refusal proves nothing about what came after.
            self._suspects.succeeded(flight.launched_at)
            self._served_at = max(self._served_at, flight.launched_at)
            if flight.launched_at >= self.hold_until:
                self.problem, self._refusals_in_a_row = None, 0
        else:
            run = flight.run
            history = charge(run.retries.get(flight.line), verdict, time.time())
            if verdict.action is Action.DEAD or history.failures >= self._limit(run):
                self._letters.set_aside_tried(run, flight.ordinal, verdict, history)
                return
            # Exponential with full jitter, so that retries do not come back as one wave.
            delay = self._rng.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**history.failures))
            run.fail(flight.ordinal, history, time.monotonic() + delay)

    def _limit(self, run: RunningJob) -> int:
        """Return after how many failed attempts a job's request is set aside."""
        return run.record.max_attempts or self._max_attempts

    # -- refusals of the whole server -----------------------------------------------

    def _hold(self, flight: Flight, verdict: Verdict) -> None:
        """The server refuses us, or this request: find out which.

        Nothing more is sent for a while.  If requests that are sent afterwards are
        answered, it is the request that is refused, as by a gateway's filter, and after
        its attempts it is set aside; until then no request is charged.  Where nothing else
        is left to be sent, the runner asks the server, and `note_accepted` takes the answer.
        """
        now, suspect = time.monotonic(), (flight.run.record.id, flight.line)
        first, count = self._refused.get(suspect, (now, 0))
        if count + 1 >= self._limit(flight.run) and self._served_at > first:
            self._refused.pop(suspect, None)
            if not self._refused:
                self.problem, self._refusals_in_a_row = None, 0
            history = charge(flight.run.retries.get(flight.line), verdict, time.time())
            self._letters.set_aside_tried(flight.run, flight.ordinal, verdict, history)
            return
        self._refused[suspect] = first, count + 1
        self.in_doubt = verdict.http_status
        if now >= self.hold_until:  # else it is one of the same wave
            self.hold_until = now + min(REFUSED_PAUSE_S, 2.0**self._refusals_in_a_row)
            self._refusals_in_a_row += 1
        # Others go first, or a window full of refused ones would be all that is ever sent.
        later_s = min(REFUSED_PAUSE_S, 2.0 ** (count + 1))
        flight.run.marks.abandon(flight.ordinal, self.hold_until + later_s)
        self.problem = (
            f"the engine answers {verdict.http_status}: {verdict.message[:200]}; "
            "give the daemon access to it"
        )
        log.warning("engine_refuses", extra={"status": verdict.http_status, "code": verdict.code})

    def refused(self, runs: list[RunningJob]) -> Counter[str]:
        """Count by job the open requests that the server refuses."""
        by_id = {run.record.id: run for run in runs}
        found = self._refused
        return Counter(job for job, line in found if job in by_id and by_id[job].is_open(line))

    def note_accepted(self, status: int) -> None:
        """Take note that the server accepts us, after a refusal with that status.

        Some list their models to all who ask.  So of one that does not know us (401, 407)
        it takes a request that was answered before as well.
        """
        if status == _FORBIDDEN or self._served_at:
            self._served_at = time.monotonic()

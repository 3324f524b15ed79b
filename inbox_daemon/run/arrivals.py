"""Arrivals: what the end of an attempt means for its job.

Purpose: give every arrival its consequence: a result, a further attempt, a dead letter,
a wait while the server refuses, or a place among the suspects of an engine's death.
Invariants: an arrival changes exactly one request; nothing here sends.
"""

import logging
import math
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from inbox_daemon.contract.config import RunConfig
from inbox_daemon.engine.base import Reply
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.request.line import output_line
from inbox_daemon.run.attempts import Arrival, Flight
from inbox_daemon.run.dead_letters import DeadLetters, charge
from inbox_daemon.run.outcomes import TIMED_OUT, Action, Verdict
from inbox_daemon.run.poison import Suspect
from inbox_daemon.run.suspects import Suspects

log = logging.getLogger(__name__)

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
# Where others are answered meanwhile, and the window sees to it that the server is spared.
UNCHARGED_CAP_S = 5.0
# The share of failing requests that is each request's own doing, and by how many it is known.
USUAL, MOST_SHARE, REMEMBERED = 0.02, 0.95, 64
REFUSED_PAUSE_S = 30.0
_FORBIDDEN = 403


class Arrivals:
    """Applies verdicts to the running jobs."""

    def __init__(
        self,
        run: RunConfig,
        suspects: Suspects,
        letters: DeadLetters,
        knows_queue: Callable[[], bool],
        *,
        owned: bool,
    ) -> None:
        """Start with nothing seen.

        `knows_queue` says whether the server shows how many requests wait in it; else one that
        timed out behind others may have waited for them.  `owned` says that the engine is ours,
        so that its failures are the requests' doing as long as it lives.
        """
        self._owned = owned
        # The newest replies, as requests and whether they failed; and what part of a charge each
        # open request has gathered, by how many failures.
        self._newest: OrderedDict[tuple[Suspect, bool], None] = OrderedDict()
        self._parts: dict[Suspect, tuple[float, int]] = {}
        self._max_attempts, self._overload_s = run.max_attempts, run.overload_s
        self._knows_queue = knows_queue
        # Since when (monotonic) the server has no room for a request, and how often it said so.
        self._overloaded: dict[Suspect, tuple[float, int]] = {}
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
        if arrival.lost and flight.alone:
            # It has shown that the server is still out, and nothing of the request.
            self._suspects.give_back(flight.run, flight.ordinal)
        elif arrival.lost:
            flight.run.marks.abandon(flight.ordinal)
            self._suspects.lost.append(suspect)
        elif verdict is None:
            flight.run.marks.abandon(flight.ordinal)
        else:
            self._suspects.answered(suspect)
            if not self._owned:
                self._remember(suspect, failed=verdict.action is Action.PROBE)
            if self._overloaded and verdict.action is not Action.LATER:
                self._overloaded.pop(suspect, None)
            if self._refused and verdict.action is not Action.HOLD:
                self._refused.pop(suspect, None)
            self._apply(flight, verdict, arrival.reply)

    def _apply(self, flight: Flight, verdict: Verdict, reply: Reply | None) -> None:
        """Carry a verdict out."""
        if verdict.action is Action.HOLD:
            self._hold(flight, verdict)
        elif verdict.action is Action.RESULT and reply is not None:
            self._succeed(flight, verdict, reply)
        elif not (self._is_overload(flight, verdict) and self._postpone(flight, reply)):
            self._charge(flight, verdict)

    def _succeed(self, flight: Flight, verdict: Verdict, reply: Reply) -> None:
        line = output_line(
            flight.run.record.id,
            flight.line,
            flight.custom_id,
            reply.status,
            reply.request_id,
            reply.body,
        )
        flight.run.succeed(flight.ordinal, line, verdict.tokens)
        self.results += 1
        # A request that was sent before a refusal proves nothing about what came after.
        self._suspects.succeeded(flight.launched_at)
        self._served_at = max(self._served_at, flight.launched_at)
        if flight.launched_at >= self.hold_until:
            self.problem, self._refusals_in_a_row = None, 0

    def _charge(self, flight: Flight, verdict: Verdict) -> None:
        """Count a failed attempt; set the request aside where it was its last."""
        run = flight.run
        doubtful = verdict.action is Action.PROBE and not self._owned
        if doubtful and not self._is_surprising(flight):
            _, failures = self._parts[run.record.id, flight.line]
            due = time.monotonic() + self._backoff(failures, UNCHARGED_CAP_S)
            run.marks.abandon(flight.ordinal, due)
            return
        self._parts.pop((run.record.id, flight.line), None)
        history = charge(run.retries.get(flight.line), verdict, time.time())
        if verdict.action is Action.DEAD or history.failures >= self._limit(run):
            self._letters.set_aside_tried(run, flight.ordinal, verdict, history)
        else:
            run.fail(flight.ordinal, history, time.monotonic() + self._backoff(history.failures))

    # -- failures beside others -----------------------------------------------------

    def _remember(self, suspect: Suspect, *, failed: bool) -> None:
        """Take a reply into the newest ones; a request that fails again counts once."""
        if failed and (suspect, True) in self._newest:
            return
        self._newest[suspect, failed] = None
        if len(self._newest) > REMEMBERED:
            self._newest.popitem(last=False)
        if not failed:
            self._parts.pop(suspect, None)

    def _is_surprising(self, flight: Flight) -> bool:
        """Return whether a failure is one more attempt charged, or may be the server's.

        Where one of two backends is gone half of all requests fail, some of them several times
        in a row.  So the less surprising a failure is, by the share of other requests that fail
        too, the smaller a part of a charge it is: all of one up to USUAL, and log(share) /
        log(USUAL) of one beyond, so that to be set aside by chance is as rare at any share.
        """
        suspect = flight.run.record.id, flight.line
        failed = sum(failed for other, failed in self._newest if other != suspect)
        answered = len(self._newest) - failed - ((suspect, True) in self._newest)
        share = min(failed / max(answered, 1), MOST_SHARE)
        part = 1.0 if share <= USUAL else math.log(share) / math.log(USUAL)
        gathered, failures = self._parts.get(suspect, (0.0, 0))
        self._parts[suspect] = gathered + part, failures + 1
        return gathered + part >= 1.0 - 1e-9

    # -- overload -------------------------------------------------------------------

    def _is_overload(self, flight: Flight, verdict: Verdict) -> bool:
        """Return whether the server had no room or no time, which is not the request's fault."""
        behind = flight.ahead > 0 and not self._knows_queue()
        return verdict.action is Action.LATER or (verdict.code == TIMED_OUT and behind)

    def _postpone(self, flight: Flight, reply: Reply | None) -> bool:
        """Try a request later, uncharged; False once that has gone on for too long."""
        now, suspect = time.monotonic(), (flight.run.record.id, flight.line)
        first, count = self._overloaded.pop(suspect, (now, 0))
        if now - first > self._overload_s:
            if self._served_at > first:
                return False
            first = now  # no other request was answered either
        self._overloaded[suspect] = first, count + 1
        asked_s = (reply and reply.retry_after_s) or 0.0
        pause_s = max(asked_s, self._backoff(count + 1, UNCHARGED_CAP_S))
        flight.run.marks.abandon(flight.ordinal, now + pause_s)
        return True

    def _backoff(self, failures: int, most_s: float | None = None) -> float:
        """Return a pause in seconds: exponential with full jitter, so that no wave comes back."""
        most_s = BACKOFF_CAP_S if most_s is None else most_s
        return self._rng.uniform(0, min(most_s, BACKOFF_BASE_S * 2 ** min(failures, 10)))

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

"""Dead letters: from a verdict to the record that is kept and the line that is sent.

Purpose: pure construction of the two forms in which a dead letter lives.
Invariants: the engine's own words are passed on; the request is kept with them, so
that a letter can be understood and redriven without the job's file.
"""

import logging
from dataclasses import dataclass
from typing import Any

import orjson

from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.records import DeadLetter, DeadReason, JobRecord, RetryRecord
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.request.json_guard import WRITABLE_DEPTH, holds_too_much, nests_deeper
from inbox_daemon.request.line import custom_id_of, error_line
from inbox_daemon.run.outcomes import Action, Verdict

log = logging.getLogger(__name__)

_MAX_TEXT = 4096


@dataclass(frozen=True, slots=True)
class SetAside:
    """A dead letter with its line for errors.jsonl.

    `retryable` says whether the request may stand in retry.jsonl: a line that never
    was a valid request may not, or that file would be refused.
    """

    letter: DeadLetter
    output: bytes
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class DeadRequest:
    """Whose dead letter it is: the job, the line and what the line said."""

    job: JobRecord
    line: int
    raw: bytes

    def parsed(self) -> Any:  # noqa: ANN401 - JSON is any value
        """The line as JSON, or as text where it is none that could be written again."""
        if holds_too_much(self.raw):
            return self._text()
        try:
            value = orjson.loads(self.raw)
        except orjson.JSONDecodeError:
            return self._text()
        too_deep = nests_deeper(self.raw, value, WRITABLE_DEPTH)
        return self._text() if too_deep else value

    def _text(self) -> str:
        return self.raw[:_MAX_TEXT].decode("utf-8", "replace")


def make_letter(
    dead: DeadRequest,
    verdict: Verdict,
    reason: DeadReason,
    history: RetryRecord | None,
    now: float,
) -> SetAside:
    """Make the dead letter of a request that was tried.

    `history` holds its failed attempts, this last one included if it was charged.
    """
    request = dead.parsed()
    letter = DeadLetter(
        job_id=dead.job.id,
        job=dead.job.name,
        custom_id=custom_id_of(dead.raw),
        line=dead.line,
        reason=reason,
        code=verdict.code or reason.value,
        message=verdict.message,
        http_status=verdict.http_status,
        retry_count=max(history.failures - 1, 0) if history else 0,
        first_at=history.first_at if history else now,
        last_at=now,
        request=request,
    )
    output = error_line(
        dead.job.id, dead.line, letter.custom_id, reason.value, verdict.message, verdict.response
    )
    return SetAside(letter, output)


def make_invalid(dead: DeadRequest, fault: Fault, now: float) -> SetAside:
    """Make the dead letter of a line that is no valid request."""
    verdict = Verdict(action=Action.DEAD, code=fault.code, message=fault.message)
    made = make_letter(dead, verdict, DeadReason.INVALID_REQUEST, None, now)
    letter = made.letter.model_copy(update={"redrivable": False})
    return SetAside(letter, made.output, retryable=False)


def make_poison(
    dead: DeadRequest, deaths: int, history: RetryRecord | None, now: float
) -> SetAside:
    """Make the dead letter of a request that kills the engine."""
    message = f"the engine died {deaths} times while this request alone was running"
    verdict = Verdict(action=Action.DEAD, code="poison", message=message)
    charged = charge(history, verdict, now)
    charged = charged.model_copy(update={"failures": charged.failures + deaths - 1})
    return make_letter(dead, verdict, DeadReason.POISON, charged, now)


def make_ended(
    dead: DeadRequest, reason: DeadReason, history: RetryRecord | None, now: float
) -> SetAside:
    """Make the dead letter of a request that is not run any more: cancelled or expired."""
    message = {
        DeadReason.CANCELLED: "the job was cancelled before this request was answered",
        DeadReason.EXPIRED: "the job expired before this request was answered",
    }[reason]
    verdict = Verdict(action=Action.DEAD, code=f"batch_{reason.value}", message=message)
    return make_letter(dead, verdict, reason, history, now)


def charge(history: RetryRecord | None, verdict: Verdict, now: float) -> RetryRecord:
    """Count one failed attempt."""
    return RetryRecord(
        failures=history.failures + 1 if history else 1,
        reason=verdict.reason,
        code=verdict.code,
        message=verdict.message,
        http_status=verdict.http_status,
        first_at=history.first_at if history else now,
        last_at=now,
    )


class DeadLetters:
    """Sets requests of running jobs aside, and counts them."""

    def __init__(self, max_line_bytes: int) -> None:
        """Read at most `max_line_bytes` of a request's line."""
        self._max_line_bytes = max_line_bytes
        self.count = 0

    def set_aside_tried(
        self, run: RunningJob, ordinal: int, verdict: Verdict, history: RetryRecord
    ) -> None:
        """Set a request aside whose last attempt ended with `verdict`.

        `history` holds its failed attempts, this last one included.
        """
        dead = self._dead_request(run, ordinal)
        made = make_letter(dead, verdict, verdict.reason, history, history.last_at)
        self._set_aside(run, ordinal, made)

    def set_aside_invalid(self, run: RunningJob, ordinal: int, fault: Fault, now: float) -> None:
        """Set a line aside that is no valid request."""
        self._set_aside(run, ordinal, make_invalid(self._dead_request(run, ordinal), fault, now))

    def set_aside_ended(
        self, run: RunningJob, ordinal: int, reason: DeadReason, now: float
    ) -> None:
        """Set a request aside whose job was cancelled or has expired."""
        dead = self._dead_request(run, ordinal)
        fault = run.invalid.get(dead.line)
        if fault is not None:
            self._set_aside(run, ordinal, make_invalid(dead, fault, now))
            return
        made = make_ended(dead, reason, run.retries.get(dead.line), now)
        self._set_aside(run, ordinal, made)

    def set_aside_poison(self, run: RunningJob, ordinal: int, deaths: int, now: float) -> None:
        """Set a request aside that has killed the engine `deaths` times, alone."""
        dead = self._dead_request(run, ordinal)
        self._set_aside(run, ordinal, make_poison(dead, deaths, run.retries.get(dead.line), now))

    def _dead_request(self, run: RunningJob, ordinal: int) -> DeadRequest:
        raw = run.input.read(ordinal, self._max_line_bytes)
        return DeadRequest(run.record, run.input.line_of(ordinal), raw)

    def _set_aside(self, run: RunningJob, ordinal: int, made: SetAside) -> None:
        run.set_aside(ordinal, made.output, made.letter, retryable=made.retryable)
        letter = made.letter
        fields = {"job": letter.job, "line": letter.line, "reason": letter.reason.value}
        log.debug("dead_letter", extra=fields | {"code": letter.code})
        self.count += 1

"""What a reply, or the lack of one, means for its request.

Purpose: the design's table of outcomes as one pure function, with the error's words
taken from the engine's own answer.
Invariants: no clock, no I/O; every reply and every fault gets a verdict.

| reply                                   | action |
|-----------------------------------------|--------|
| 2xx with a JSON body                    | RESULT |
| 401, 403, 407                           | HOLD: the operator must act, no request is to blame |
| 408, 429                                | RETRY: the engine lives and says "later" |
| other 4xx                               | DEAD: the request is wrong |
| 3xx, 5xx, 2xx without JSON, no reply    | PROBE: RETRY if the engine lives, else a suspect |
"""

from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from inbox_daemon.contract.records import DeadReason, Tokens
from inbox_daemon.engine.base import NoReply, NoReplyKind, Reply
from inbox_daemon.request.json_guard import WRITABLE_DEPTH, nests_deeper

_MAX_MESSAGE = 2000
# Garbage for a count: the sum over a job of figures below this fits into 64 bits.
_TOO_MANY_TOKENS = 1 << 40
_REFUSED_US = frozenset({401, 403, 407})
_TIMED_OUT = 408
_LATER = frozenset({_TIMED_OUT, 429})


class Action(StrEnum):
    """What the runner does with a request after a reply."""

    RESULT = "result"
    DEAD = "dead"
    RETRY = "retry"
    PROBE = "probe"
    HOLD = "hold"


class Verdict(NamedTuple):
    """The action, and the words for a dead letter if it comes to that."""

    action: Action
    tokens: Tokens | None = None
    reason: DeadReason = DeadReason.MAX_ATTEMPTS
    code: str = ""
    message: str = ""
    http_status: int | None = None
    response: dict[str, Any] | None = None


def judge(reply: Reply | NoReply) -> Verdict:
    """Apply the table."""
    if isinstance(reply, NoReply):
        timeout = reply.kind is NoReplyKind.TIMEOUT
        return Verdict(
            action=Action.PROBE,
            reason=DeadReason.TIMEOUT if timeout else DeadReason.MAX_ATTEMPTS,
            code="timeout" if timeout else "connection_failed",
            message=reply.message[:_MAX_MESSAGE],
        )
    if 200 <= reply.status < 300:  # noqa: PLR2004 - the class of HTTP's success codes
        body = _parsed(reply.body)
        if isinstance(body, dict):
            usage, tokens = body.get("usage"), None
            if isinstance(usage, dict):  # by the names of chat and completions or of responses
                used = _count(usage, "prompt_tokens", "input_tokens")
                tokens = Tokens(used, _count(usage, "completion_tokens", "output_tokens"))
            return Verdict(action=Action.RESULT, tokens=tokens, http_status=reply.status)
        message = f"the engine answered {reply.status} with a body that is not a JSON object"
        return Verdict(
            action=Action.PROBE,
            code="invalid_response",
            message=message,
            http_status=reply.status,
            response={"status_code": reply.status, "request_id": reply.request_id, "body": None},
        )
    body = _parsed(reply.body)
    if nests_deeper(reply.body, body, WRITABLE_DEPTH):
        body = None
    action, reason = Action.PROBE, DeadReason.MAX_ATTEMPTS
    if reply.status in _REFUSED_US:
        action = Action.HOLD
    elif reply.status in _LATER:
        action = Action.RETRY
        reason = DeadReason.TIMEOUT if reply.status == _TIMED_OUT else reason
    elif 400 <= reply.status < 500:  # noqa: PLR2004 - HTTP's 4xx
        action, reason = Action.DEAD, DeadReason.INVALID_REQUEST
    code, message = _error_words(body, reply)
    return Verdict(
        action=action,
        reason=reason,
        code=code,
        message=message,
        http_status=reply.status,
        response={"status_code": reply.status, "request_id": reply.request_id, "body": body},
    )


def _parsed(body: bytes) -> Any:  # noqa: ANN401 - JSON is any value
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _count(usage: dict[str, Any], *names: str) -> int:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and 0 <= value < _TOO_MANY_TOKENS:
            return value
    return 0


def _error_words(body: Any, reply: Reply) -> tuple[str, str]:  # noqa: ANN401 - JSON is any value
    """The engine's own error type and message, in OpenAI's shape or FastAPI's."""
    error = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        error = {"message": reply.body[:_MAX_MESSAGE].decode("utf-8", "replace")}
    code = error.get("type") or error.get("code") or f"http_{reply.status}"
    message = error.get("message") or error.get("detail") or f"HTTP status {reply.status}"
    return str(code)[:100], str(message)[:_MAX_MESSAGE]

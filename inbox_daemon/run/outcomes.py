"""What a reply, or the lack of one, means for its request.

Purpose: the design's table of outcomes as one pure function, with the error's words
taken from the engine's own answer.
Invariants: no clock, no I/O; every reply and every fault gets a verdict.

| reply                                           | action |
|-------------------------------------------------|--------|
| 2xx with a JSON body that answers               | RESULT |
| 2xx with a body that says it is no answer, or   | RETRY: the attempt is charged |
| one over `run.max_answer_bytes`                 | |
| 401, 403, 407, and some proxies' words for them | HOLD: the operator must act |
| 429, 503, 529; 408 before the request's time    | LATER: overload, no request is to blame |
| 402, 404, 409, 425, 499, a late 408; 3xx, 5xx;  | PROBE: the server's trouble, unless it |
| 2xx without JSON; no reply                      | answers others |
| other 4xx                                       | DEAD: the request is wrong |

Sources: RFC 9110 and RFC 6585 for the status codes; 529 is what Anthropic's API and some
gateways say for 503, 499 what nginx writes where the client is gone.  vLLM answers 503 when
its queue is full (`--max-num-queued-reqs`), vllm-router 408 when no backend had room within its
queue's time.
"""

from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from inbox_daemon.contract.records import DeadReason, Tokens
from inbox_daemon.engine.base import NoReply, NoReplyKind, Reply
from inbox_daemon.engine.evidence import Sign, sign_of
from inbox_daemon.request.json_guard import WRITABLE_DEPTH, nests_deeper

# The code of a request that got no answer within its time.
TIMED_OUT = "timeout"
_MAX_MESSAGE = 2000
# Garbage for a count: the sum over a job of figures below this fits into 64 bits.
_TOO_MANY_TOKENS = 1 << 40
_REQUEST_TIMEOUT = 408
_REFUSED_US = frozenset({401, 403, 407})
# How LiteLLM's proxy says that a key is wrong where it has no database, and that there is none:
# with 400 and 500.
_KEY_ERRORS = frozenset({"no_db_connection", "auth_error"})


class Action(StrEnum):
    """What the runner does with a request after a reply."""

    RESULT = "result"
    DEAD = "dead"
    RETRY = "retry"
    LATER = "later"
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
    if isinstance(reply, NoReply) and reply.kind is NoReplyKind.TOO_LARGE:
        message = f"{reply.message[:_MAX_MESSAGE]} (run.max_answer_bytes); ask for less"
        return Verdict(action=Action.RETRY, code="answer_too_large", message=message)
    if isinstance(reply, NoReply):
        timeout = reply.kind is NoReplyKind.TIMEOUT
        return Verdict(
            action=Action.PROBE,
            reason=DeadReason.TIMEOUT if timeout else DeadReason.MAX_ATTEMPTS,
            code=TIMED_OUT if timeout else "connection_failed",
            message=reply.message[:_MAX_MESSAGE],
        )
    body = _parsed(reply.body)
    if 200 <= reply.status < 300:  # noqa: PLR2004 - the class of HTTP's success codes
        return _judge_success(reply, body)
    if nests_deeper(reply.body, body, WRITABLE_DEPTH):
        body = None
    code, message = _error_words(body, reply)
    action, reason = Action.PROBE, DeadReason.MAX_ATTEMPTS
    if reply.status in _REFUSED_US or code in _KEY_ERRORS:
        action = Action.HOLD
    elif (sign := sign_of(reply)) is Sign.BUSY:
        action = Action.LATER
    elif reply.status == _REQUEST_TIMEOUT:
        reason = DeadReason.TIMEOUT
    elif 400 <= reply.status < 500:  # noqa: PLR2004 - HTTP's 4xx
        action = Action.DEAD if sign is Sign.NOTHING else Action.PROBE
        reason = DeadReason.INVALID_REQUEST
    return Verdict(
        action=action,
        reason=reason,
        code=code,
        message=message,
        http_status=reply.status,
        response={"status_code": reply.status, "request_id": reply.request_id, "body": body},
    )


def _judge_success(reply: Reply, body: Any) -> Verdict:  # noqa: ANN401 - JSON is any value
    """Return what a 2xx answer means; `body` is None where it is no JSON."""
    if not isinstance(body, dict):
        message = f"the engine answered {reply.status} with a body that is not a JSON object"
        return Verdict(
            action=Action.PROBE,
            code="invalid_response",
            message=message,
            http_status=reply.status,
            response={"status_code": reply.status, "request_id": reply.request_id, "body": None},
        )
    lack = _what_is_lacking(body)
    if lack is not None:
        code, message = lack
        shown = None if nests_deeper(reply.body, body, WRITABLE_DEPTH) else body
        return Verdict(
            action=Action.RETRY,
            code=code,
            message=message,
            http_status=reply.status,
            response={"status_code": reply.status, "request_id": reply.request_id, "body": shown},
        )
    usage, tokens = body.get("usage"), None
    if isinstance(usage, dict):  # by the names of chat and completions or of responses
        used = _count(usage, "prompt_tokens", "input_tokens")
        tokens = Tokens(used, _count(usage, "completion_tokens", "output_tokens"))
    return Verdict(action=Action.RESULT, tokens=tokens, http_status=reply.status)


def _what_is_lacking(body: dict[str, Any]) -> tuple[str, str] | None:
    """Return the code and the words for a 200 that says itself that it is no answer.

    vLLM ends what it aborts, as when it goes to sleep, with 200 and the finish_reason "abort";
    a Responses object that was cancelled or has failed comes with 200 too; some gateways put
    an error of their backend into one.
    """
    error = body.get("error")
    if error:
        words = error.get("message") if isinstance(error, dict) else error
        return "error_in_answer", f"the answer is an error: {str(words)[:_MAX_MESSAGE]}"
    choices = body.get("choices")
    if isinstance(choices, list):
        if not choices:
            return "no_choices", "the answer has an empty list of choices"
        if any(isinstance(c, dict) and c.get("finish_reason") == "abort" for c in choices):
            return "aborted", "the engine aborted the request"
    if body.get("object") == "response" and body.get("status") in {"cancelled", "failed"}:
        return f"response_{body['status']}", f"the response is {body['status']}"
    return None


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

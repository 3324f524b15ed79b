"""Outcomes: what each reply, or the lack of one, means for its request."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import nested
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.engine.base import NoReply, NoReplyKind, Reply
from inbox_daemon.request.line import error_line
from inbox_daemon.run.outcomes import Action, judge

ERROR = orjson.dumps({"error": {"type": "BadRequestError", "message": "no", "code": 400}})


def reply(status: int, body: bytes = ERROR) -> Reply:
    """An answer of the engine."""
    return Reply(status, body, "srv-1")


@pytest.mark.parametrize(
    ("status", "action"),
    [
        (100, Action.PROBE),
        (302, Action.PROBE),
        (400, Action.DEAD),
        (401, Action.HOLD),
        (403, Action.HOLD),
        (402, Action.PROBE),
        (404, Action.PROBE),
        (405, Action.DEAD),
        (407, Action.HOLD),
        (408, Action.LATER),
        (409, Action.PROBE),
        (413, Action.DEAD),
        (422, Action.DEAD),
        (425, Action.PROBE),
        (429, Action.LATER),
        (499, Action.PROBE),
        (500, Action.PROBE),
        (502, Action.PROBE),
        (503, Action.LATER),
        (529, Action.LATER),
        (599, Action.PROBE),
    ],
)
def test_each_status_has_the_action_of_the_table(status: int, action: Action) -> None:
    """The table of outcomes is applied to every class of status."""
    assert judge(reply(status)).action is action


@pytest.mark.parametrize("status", [200, 201, 299])
def test_a_success_with_an_object_is_a_result(status: int) -> None:
    """A 2xx answer with a JSON object is the request's result."""
    assert judge(reply(status, b'{"choices":[{}]}')).action is Action.RESULT


NO_ANSWERS: dict[str, dict[str, Any]] = {
    "no_choices": {"choices": []},
    "aborted": {"choices": [{"finish_reason": "stop"}, {"finish_reason": "abort"}]},
    "response_cancelled": {"object": "response", "status": "cancelled"},
    "response_failed": {"object": "response", "status": "failed"},
    "error_in_answer": {"error": {"message": "the backend is gone"}, "choices": [{}]},
}


@pytest.mark.parametrize("code", NO_ANSWERS)
def test_a_success_that_says_it_is_no_answer_is_tried_again(code: str) -> None:
    """Its dead letter is named for what it was, and has the answer."""
    body = NO_ANSWERS[code]
    verdict = judge(reply(200, orjson.dumps(body)))
    assert (verdict.action, verdict.code) == (Action.RETRY, code)
    assert verdict.response == {"status_code": 200, "request_id": "srv-1", "body": body}


@pytest.mark.parametrize(
    "body",
    [
        {"error": None, "choices": [{"finish_reason": "length"}]},
        {"object": "response", "status": "incomplete", "error": None},
        {"object": "list", "data": []},
        {"choices": [{"finish_reason": None}, 1]},
    ],
)
def test_an_answer_that_is_short_is_an_answer(body: dict[str, Any]) -> None:
    """What was cut at a limit, or holds null where others hold an error, is the result."""
    assert judge(reply(200, orjson.dumps(body))).action is Action.RESULT


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("kind", ["no_db_connection", "auth_error"])
def test_a_proxys_own_words_for_a_wrong_key_are_a_refusal(status: int, kind: str) -> None:
    """LiteLLM's proxy without a database says neither 401 nor 403."""
    body = orjson.dumps({"error": {"type": kind, "message": "No connected db.", "code": status}})
    assert judge(reply(status, body)).action is Action.HOLD


def test_a_408_after_the_requests_own_time_is_its_time_out() -> None:
    """One that comes at once says that there is no room; one that comes late has used it up."""
    late = judge(Reply(408, ERROR, "srv-1", early=False))
    assert (late.action, late.reason) == (Action.PROBE, DeadReason.TIMEOUT)


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b'"text"', b"<html>", b'{"a":', b'{"a":"\xff"}', b"\xef\xbb\xbf{}"],
)
def test_a_success_without_an_object_is_not_trusted(body: bytes) -> None:
    """A request with a 2xx answer that is cut, garbage or no object is tried again."""
    verdict = judge(reply(200, body))
    assert verdict.action is Action.PROBE
    assert verdict.code == "invalid_response"
    assert verdict.response == {"status_code": 200, "request_id": "srv-1", "body": None}


@pytest.mark.parametrize(
    ("kind", "reason", "code"),
    [
        (NoReplyKind.TIMEOUT, DeadReason.TIMEOUT, "timeout"),
        (NoReplyKind.CONNECTION, DeadReason.MAX_ATTEMPTS, "connection_failed"),
    ],
)
def test_no_reply_asks_whether_the_engine_lives(
    kind: NoReplyKind, reason: DeadReason, code: str
) -> None:
    """Without a reply the engine is checked first, and the letter says what happened."""
    verdict = judge(NoReply(kind, "words"))
    assert (verdict.action, verdict.reason, verdict.code) == (Action.PROBE, reason, code)
    assert (verdict.message, verdict.response, verdict.http_status) == ("words", None, None)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, DeadReason.INVALID_REQUEST),
        (404, DeadReason.INVALID_REQUEST),
        (429, DeadReason.MAX_ATTEMPTS),
        (500, DeadReason.MAX_ATTEMPTS),
    ],
)
def test_the_reason_follows_the_status(status: int, reason: DeadReason) -> None:
    """A dead letter's reason says whether the request, time or the engine was at fault."""
    assert judge(reply(status)).reason is reason


# -- the engine's words -------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (
            {"error": {"type": "BadRequestError", "message": "too long"}},
            "BadRequestError",
            "too long",
        ),
        ({"error": {"code": 400, "message": "too long"}}, "400", "too long"),
        ({"error": "plain words"}, "http_400", "plain words"),
        ({"object": "error", "type": "T", "message": "older shape"}, "T", "older shape"),
        ({"detail": "Not Found"}, "http_400", "Not Found"),
        ({"detail": [{"loc": ["body"]}]}, "http_400", "[{'loc': ['body']}]"),
        ({"error": {}}, "http_400", "HTTP status 400"),
    ],
)
def test_the_engines_own_words_are_kept(body: dict[str, Any], code: str, message: str) -> None:
    """Type and message are read from errors as OpenAI, its imitators and FastAPI write them."""
    verdict = judge(reply(400, orjson.dumps(body)))
    assert (verdict.code, verdict.message) == (code, message)
    assert verdict.response == {"status_code": 400, "request_id": "srv-1", "body": body}


def test_an_error_that_is_no_json_is_quoted_as_text() -> None:
    """A proxy's page is quoted as text, and there is no body."""
    verdict = judge(reply(502, b"<h1>Bad \xff Gateway</h1>"))
    assert verdict.message == "<h1>Bad � Gateway</h1>"
    assert verdict.response == {"status_code": 502, "request_id": "srv-1", "body": None}


def test_a_long_message_is_cut() -> None:
    """A message of megabytes does not become a dead letter of megabytes."""
    long = orjson.dumps({"error": {"type": "t" * 5000, "message": "m" * 5000}})
    verdict = judge(reply(400, long))
    assert (len(verdict.code), len(verdict.message)) == (100, 2000)


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_of_any_depth_can_be_written(status: int) -> None:
    """An error body that is nested too deep to be written again is quoted as text."""
    body = b'{"detail":' + nested(1000) + b"}"
    verdict = judge(reply(status, body))
    assert verdict.message.startswith('{"detail":[[[')
    assert error_line("J", 1, "c", verdict.code, verdict.message, verdict.response)


# -- tokens -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        {"input_tokens": 3, "output_tokens": 4},
    ],
)
def test_tokens_are_counted_by_either_name(usage: dict[str, int]) -> None:
    """Chat and completions name their tokens in one way, responses in another."""
    found = judge(reply(200, orjson.dumps({"usage": usage}))).tokens
    assert found is not None
    assert found == (3, 4)


def test_an_answer_without_usage_counts_no_tokens() -> None:
    """If the engine reports no usage, there are no tokens."""
    assert judge(reply(200, b"{}")).tokens is None
    assert judge(reply(200, b'{"usage":null}')).tokens is None


@pytest.mark.parametrize("figure", [-1, "7", None, 1.5, [], 2**64 - 1, 2**63])
def test_a_figure_that_is_no_count_counts_as_none(figure: object) -> None:
    """A token count that is no valid number is left out of the sums."""
    usage = {"usage": {"prompt_tokens": figure, "completion_tokens": 2}}
    found = judge(reply(200, orjson.dumps(usage))).tokens
    assert found is not None
    assert found == (0, 2)


@given(st.integers(100, 599), st.binary(max_size=60) | st.sampled_from([ERROR, b"{}", b"[1]"]))
def test_every_reply_gets_a_verdict_that_can_be_written(status: int, body: bytes) -> None:
    """Any reply gets a verdict whose message fits into an output line."""
    verdict = judge(reply(status, body))
    line = error_line("J", 1, None, verdict.code, verdict.message, verdict.response)
    assert orjson.loads(line)["error"]["message"] == verdict.message

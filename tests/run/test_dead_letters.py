"""Letters: the two forms of a dead letter, the record and the line of errors.jsonl."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import job_record, nested, request
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.records import DeadLetter, DeadReason
from inbox_daemon.engine.base import NoReply as EngineFault
from inbox_daemon.engine.base import NoReplyKind, Reply
from inbox_daemon.run.dead_letters import (
    DeadRequest,
    charge,
    make_ended,
    make_invalid,
    make_letter,
    make_poison,
)
from inbox_daemon.run.outcomes import judge

REFUSED = judge(Reply(400, b'{"error":{"type":"BadRequestError","message":"too long"}}', "srv"))
FAULT = Fault(code="invalid_json", message="it is no JSON")


def dead(raw: bytes, line: int = 3) -> DeadRequest:
    """A dead request: line 3 of a job, with these bytes."""
    return DeadRequest(job_record(), line, raw)


def test_a_letter_keeps_the_request_and_the_engines_words() -> None:
    """The record has the request, the engine's message and its status."""
    raw = request("c-1", prompt="я")
    letter = make_letter(dead(raw), REFUSED, DeadReason.INVALID_REQUEST, None, 50.0).letter
    assert (letter.custom_id, letter.line, letter.job) == ("c-1", 3, "job")
    assert letter.request == orjson.loads(raw)
    assert (letter.code, letter.message, letter.http_status) == ("BadRequestError", "too long", 400)
    assert (letter.first_at, letter.last_at, letter.retry_count) == (50.0, 50.0, 0)


def test_the_line_of_a_letter_says_why_and_what_the_engine_answered() -> None:
    """errors.jsonl gets the reason as its code, and the engine's last answer."""
    made = make_letter(dead(request("c")), REFUSED, DeadReason.INVALID_REQUEST, None, 50.0)
    line = orjson.loads(made.output)
    assert line["custom_id"] == "c"
    assert line["error"] == {"code": "invalid_request", "message": "too long"}
    assert line["response"]["status_code"] == 400
    assert made.retryable


def test_a_history_is_counted_from_its_first_attempt() -> None:
    """After three charged failures the letter has two retries and the time of the first failure."""
    verdict = judge(EngineFault(NoReplyKind.TIMEOUT, "slow"))
    history = charge(charge(charge(None, verdict, 10.0), verdict, 20.0), verdict, 30.0)
    letter = make_letter(dead(request()), verdict, verdict.reason, history, 31.0).letter
    assert (letter.retry_count, letter.first_at, letter.last_at) == (2, 10.0, 31.0)
    assert letter.reason is DeadReason.TIMEOUT


def test_a_charge_keeps_the_newest_failure() -> None:
    """The record of an open request counts its failures and has the reason of the last one."""
    slow = judge(EngineFault(NoReplyKind.TIMEOUT, "slow"))
    record = charge(charge(None, REFUSED, 1.0), slow, 2.0)
    assert (record.failures, record.first_at, record.last_at) == (2, 1.0, 2.0)
    assert (record.code, record.http_status) == ("timeout", None)


def test_a_poison_letter_says_what_the_request_does() -> None:
    """A request that kills the engine is named as such, and may be run again by hand."""
    history = charge(None, judge(EngineFault(NoReplyKind.TIMEOUT, "slow")), 1.0)
    made = make_poison(dead(request("p")), 2, history, 5.0)
    assert made.letter.reason is DeadReason.POISON
    assert "2 times" in made.letter.message
    assert (made.letter.first_at, made.letter.last_at) == (1.0, 5.0)
    assert made.retryable


@pytest.mark.parametrize(
    ("reason", "words"), [(DeadReason.CANCELLED, "cancelled"), (DeadReason.EXPIRED, "expired")]
)
def test_a_request_that_was_never_run_says_why(reason: DeadReason, words: str) -> None:
    """The rest of a job that ended early is listed with that reason, and may be run again."""
    made = make_ended(dead(request("a")), reason, None, 5.0)
    assert made.letter.reason is reason
    assert words in made.letter.message
    assert orjson.loads(made.output)["error"]["code"] == reason.value
    assert (made.retryable, made.letter.redrivable) == (True, True)


def test_an_invalid_line_is_never_offered_for_another_run() -> None:
    """A line that is no request stays out of retry.jsonl, which must itself be a valid job."""
    made = make_invalid(dead(b"nope"), FAULT, 5.0)
    assert not made.retryable
    assert (made.letter.reason, made.letter.code) == (
        DeadReason.INVALID_REQUEST,
        "invalid_json",
    )
    assert (made.letter.custom_id, made.letter.request) == (None, "nope")


def test_an_invalid_request_still_tells_its_custom_id() -> None:
    """If the custom_id of an invalid line can be read, its dead letter has it."""
    made = make_invalid(dead(b'{"custom_id":"c","url":1}'), FAULT, 5.0)
    assert orjson.loads(made.output)["custom_id"] == "c"


@pytest.mark.parametrize("raw", [b'{"custom_id":7}', b"[]", b"7", b'{"custom_id":null}'])
def test_a_custom_id_that_is_no_text_is_none(raw: bytes) -> None:
    """A custom_id of another kind is not passed on."""
    assert make_invalid(dead(raw), FAULT, 5.0).letter.custom_id is None


@pytest.mark.parametrize("levels", [250, 251, 300, 1024, 1025, 50_000])
def test_a_line_of_any_depth_can_be_kept(levels: int) -> None:
    """A request that is nested too deep to be written again is kept as text."""
    letter = make_invalid(dead(nested(levels)), FAULT, 5.0).letter
    stored = orjson.dumps(letter.model_dump(mode="json"))
    assert DeadLetter.model_validate(orjson.loads(stored)) == letter
    assert isinstance(letter.request, str) == (levels > 250)


@given(st.binary(max_size=200))
def test_any_bytes_become_a_letter_that_can_be_stored(raw: bytes) -> None:
    """A letter of any bytes can be written and read back unchanged."""
    made = make_invalid(dead(raw), FAULT, 5.0)
    stored = orjson.dumps(made.letter.model_dump(mode="json"))
    assert DeadLetter.model_validate(orjson.loads(stored)) == made.letter
    assert made.output.count(b"\n") == 1

"""The wire: request lines are read strictly and output lines are written exactly."""

import json
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import BODIES, CHAT, limits, nested, request
from inbox_daemon.contract.documents import URLS
from inbox_daemon.contract.json_schemas import json_schema
from inbox_daemon.request.faults import LineFaultError
from inbox_daemon.request.json_guard import WRITABLE_DEPTH, nests_deeper, parse_json
from inbox_daemon.request.line import Request, engine_body, error_line, output_line, parse_request

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECT = st.dictionaries(st.text(), JSON, max_size=4)


def fault_of(line: bytes, **changed: int) -> tuple[str, str | None]:
    """The code and the parameter of the fault that a line has."""
    with pytest.raises(LineFaultError) as caught:
        parse_request(line, limits(**changed))
    return caught.value.fault.code, caught.value.fault.param


# -- reading ------------------------------------------------------------------------


def test_a_request_is_read_with_its_parts() -> None:
    """A line of the contract gives its custom_id, URL, body and model."""
    found = parse_request(request("a-1", model="m", max_tokens=3), limits())
    assert found == Request("a-1", CHAT, {**BODIES[CHAT], "model": "m", "max_tokens": 3})
    assert found.model == "m"


def test_method_and_model_may_be_left_out() -> None:
    """A line without method is a POST, and one without model names none."""
    line = orjson.dumps({"custom_id": "a", "url": CHAT, "body": BODIES[CHAT]})
    assert parse_request(line, limits()).model is None


@pytest.mark.parametrize("url", URLS)
def test_each_url_of_the_contract_is_accepted(url: str) -> None:
    """Every URL that the contract lists can be asked for."""
    assert parse_request(request(url=url), limits()).url == url


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"nope",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e400}',
        b'{"a":"\\ud800"}',
        b'{"a":"\x01"}',
        b'{"a":"\xff"}',
        b"{} {}",
        b"{'a':1}",
    ],
)
def test_what_is_no_json_is_invalid(line: bytes) -> None:
    """NaN, infinities, lone surrogates, control characters, bad UTF-8 and the like are refused."""
    assert fault_of(line) == ("invalid_json", None)


def test_a_byte_order_mark_is_named() -> None:
    """A line behind a byte order mark is refused with that reason."""
    with pytest.raises(LineFaultError, match="byte order mark"):
        parse_json(b"\xef\xbb\xbf{}", 64)


def test_the_carriage_return_of_a_windows_line_is_white_space() -> None:
    """A line that ends in CR is the same request."""
    assert parse_request(request() + b"\r", limits()) == parse_request(request(), limits())


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"custom_id": None}, "custom_id"),
        ({"custom_id": 7}, "custom_id"),
        ({"custom_id": ""}, "custom_id"),
        ({"custom_id": "x" * 513}, "custom_id"),
        ({"method": "GET"}, "method"),
        ({"method": None}, "method"),
        ({"url": "/v1/audio/speech"}, "url"),
        ({"url": ["/v1/completions"]}, "url"),
        ({"url": None}, "url"),
        ({"body": None}, "body"),
        ({"body": []}, "body"),
        ({"body": "{}"}, "body"),
        ({"body": {"model": ""}}, "body.model"),
        ({"body": {"model": 3}}, "body.model"),
        ({"priority": 1}, "'priority'"),
        ({"\x1b[31m": 1}, "'\\x1b[31m'"),
    ],
)
def test_a_wrong_part_is_named(change: dict[str, Any], param: str) -> None:
    """Each key that is wrong or unknown is named in printable characters."""
    line = orjson.loads(request()) | change
    assert fault_of(orjson.dumps(line)) == ("invalid_request", param)


@pytest.mark.parametrize("line", [b"[]", b"1", b"null", b'"a"', b"true"])
def test_a_line_that_is_no_object_is_no_request(line: bytes) -> None:
    """JSON of another kind than an object is refused as a request."""
    assert fault_of(line) == ("invalid_request", None)


@pytest.mark.parametrize("missing", ["custom_id", "url", "body"])
def test_a_missing_part_is_named(missing: str) -> None:
    """Leaving out what is needed is a fault of that key."""
    line = {key: value for key, value in orjson.loads(request()).items() if key != missing}
    assert fault_of(orjson.dumps(line)) == ("invalid_request", missing)


def test_a_custom_id_may_have_512_characters_of_any_script() -> None:
    """The limit on a custom_id counts characters, not bytes."""
    assert parse_request(request("я" * 512), limits()).custom_id == "я" * 512


def test_the_last_of_duplicate_keys_is_checked_and_sent() -> None:
    """What goes to the engine is what was checked, whatever else the line held."""
    body = b'{"prompt":"p","stream":true,"stream":false}'
    line = b'{"custom_id":"a","url":"/v1/completions","body":' + body + b"}"
    found = parse_request(line, limits())
    assert orjson.loads(engine_body(found, None)) == {"prompt": "p", "stream": False}


# -- depth --------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 64, 250])
def test_depth_is_held_to_its_limit_exactly(depth: int) -> None:
    """As many levels as the limit pass and one more is refused."""
    parse_json(nested(depth), depth)
    with pytest.raises(LineFaultError) as caught:
        parse_json(nested(depth + 1), depth)
    assert caught.value.fault.code == "too_deep"


@pytest.mark.parametrize("levels", [1_024, 1_025, 60_000])
def test_absurd_depth_is_too_deep_and_harms_nothing(levels: int) -> None:
    """What the parser itself will not descend into is reported as too deep too."""
    assert fault_of(nested(levels)) == ("too_deep", None)


def test_brackets_inside_strings_are_no_depth() -> None:
    """A text full of brackets is as flat as any other."""
    assert parse_json(orjson.dumps({"a": "[{" * 1000}), 2) == {"a": "[{" * 1000}


def test_width_is_no_depth() -> None:
    """Very many short branches are not deep."""
    assert len(parse_json(b"[" + b",".join([b"[]"] * 10_000) + b"]", 2)) == 10_000


def depth_of(value: Any) -> int:  # noqa: ANN401 - JSON is any value
    """The number of nested containers, counted by recursion."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.integers(2, 6))
def test_depth_agrees_with_counting_by_recursion(value: object, limit: int) -> None:
    """For any value the answer is that of the plain recursive definition."""
    data = orjson.dumps(value)
    assert nests_deeper(data, value, limit) == (depth_of(value) > limit)


# -- what the engine gets -----------------------------------------------------------


@given(OBJECT)
def test_any_accepted_body_can_be_sent_as_it_was(body: dict[str, Any]) -> None:
    """A body is written for the engine with the value that it had."""
    assert orjson.loads(engine_body(Request("a", CHAT, body), None)) == body


def test_the_deepest_body_that_a_limit_can_allow_can_be_sent() -> None:
    """A request at the highest depth that may be configured is written without an error."""
    body = b'{"input":"hi","include":' + nested(248) + b"}"
    line = b'{"custom_id":"a","url":"/v1/responses","body":' + body + b"}"
    found = parse_request(line, limits(max_json_depth=WRITABLE_DEPTH))
    assert engine_body(found, "m").count(b"[") == 248


@pytest.mark.parametrize("body", [{}, {"model": None}])
def test_a_model_left_out_is_filled_in(body: dict[str, Any]) -> None:
    """A request that names no model is sent with the one that is served."""
    sent = engine_body(Request("a", CHAT, body), "served")
    assert orjson.loads(sent) == {"model": "served"}


@pytest.mark.parametrize(("job", "sent"), [("bound", "bound"), ("mine", "mine"), (None, "mine")])
def test_a_request_asks_for_the_model_of_its_job(job: str | None, sent: str) -> None:
    """Whatever its line names, as the job may have been bound to another model since."""
    body = engine_body(Request("a", CHAT, {"model": "mine"}), job)
    assert orjson.loads(body) == {"model": sent}


# -- the schema says the same -------------------------------------------------------

LINES = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": st.text(max_size=3) | st.integers(-9, 9),
        "method": st.sampled_from(["POST", "GET"]),
        "url": st.sampled_from([*URLS, "/v1/x", "POST"]) | st.none(),
        "body": OBJECT | st.none(),
        "extra": st.booleans(),
    },
)
SCHEMA = jsonschema.Draft202012Validator(json_schema("request"))


@given(LINES)
def test_the_published_schema_accepts_what_the_daemon_accepts(line: dict[str, Any]) -> None:
    """A line fits the schema if and only if the daemon finds no fault outside its body."""
    try:
        parse_request(orjson.dumps(line), limits())
    except LineFaultError as error:
        ours = (error.fault.param or "").startswith("body.")  # beyond what a schema says
    else:
        ours = True
    assert SCHEMA.is_valid(line) == ours


# -- output lines -------------------------------------------------------------------


def test_an_answer_is_passed_on_byte_for_byte() -> None:
    """The engine's body stands in the output line exactly as it came, its spacing included."""
    body = b'{"b" : 1.0,  "a":[ 1e5, "\\u00e9" ]}'
    line = b"".join(output_line("JOB", 3, "c", 200, "srv-1", body))
    assert body in line
    assert line.endswith(b"}\n")
    assert orjson.loads(line) == {
        "id": "batch_req_JOB_3",
        "custom_id": "c",
        "response": {"status_code": 200, "request_id": "srv-1", "body": orjson.loads(body)},
        "error": None,
    }


def test_a_large_answer_stands_in_its_line_and_is_not_copied() -> None:
    """The line of a large answer has the same shape, and the engine's own bytes as a part."""
    body = orjson.dumps({"text": "x" * (1 << 17)})
    parts = output_line("JOB", 3, "c", 200, "srv-1", body)
    assert any(part is body for part in parts)
    small = b"".join(output_line("JOB", 3, "c", 200, "srv-1", b"{}"))
    assert b"".join(parts) == small.replace(b'"body":{}', b'"body":' + body)


@given(OBJECT, st.sampled_from([None, 2]), st.text())
def test_an_output_line_is_one_line_whatever_it_holds(
    body: dict[str, Any], indent: int | None, custom_id: str
) -> None:
    """However the engine formats its body, the result is one line with the same value."""
    custom_id = custom_id.encode("utf-8", "replace").decode()
    pretty = json.dumps(body, indent=indent).replace("\n", "\r\n").encode()
    line = b"".join(output_line("JOB", 1, custom_id, 200, "r", pretty))
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    assert orjson.loads(line)["response"]["body"] == body
    assert orjson.loads(line)["custom_id"] == custom_id


def test_a_dead_letter_has_the_same_shape() -> None:
    """The line of a dead letter carries the error and the engine's last answer, if any."""
    answer = {"status_code": 400, "request_id": "r", "body": {"error": {"message": "no"}}}
    line = error_line("JOB", 2, None, "invalid_request", "no", answer)
    assert orjson.loads(line) == {
        "id": "batch_req_JOB_2",
        "custom_id": None,
        "response": answer,
        "error": {"code": "invalid_request", "message": "no"},
    }

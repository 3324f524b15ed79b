"""Usual lines: what is seen at a glance to be good is what all the rules find good.

`check_line` looks into a parameter, and counts brackets, only where a line does not
look as most do.  These tests hold that to looking into everything, on lines that are near to
being usual.
"""

import copy
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builders import BODIES, CHAT, limits, request
from inbox_daemon.contract import config
from inbox_daemon.contract.config import LimitsConfig
from inbox_daemon.contract.documents import URLS, Fault
from inbox_daemon.request import endpoints
from inbox_daemon.request import line as lines
from inbox_daemon.request.body import check_unsettled
from inbox_daemon.request.faults import LineFaultError
from inbox_daemon.request.json_guard import parse_json
from inbox_daemon.request.line import _parts, check_line, parse_request

Outcome = tuple[Any, ...] | Fault
EVERY_NAME = sorted(
    {name for each in endpoints.ENDPOINTS.values() for name in each.parameters}
    | endpoints.REFUSED.keys()
    | config.NEVER.keys()
    | {"", "type", "text", "role", "content", "image_url", "\x1b"}
)
NAMES = st.sampled_from(EVERY_NAME)
TEXTS = st.sampled_from(["", "a", "hi", "text", "POST", CHAT, "x" * 600])
SCALARS = st.none() | st.booleans() | st.integers(-1, 3) | st.just(0.5) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
PARTS = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=3)})
TALKS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "system"]),
            "content": st.text(max_size=3) | st.lists(PARTS | st.text(max_size=3), max_size=3),
        }
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def _usual_lines(draw: st.DrawFn) -> dict[str, Any]:
    """A line of which most parts are good, with parameters that some rule looks at."""
    url = draw(st.sampled_from(URLS))
    body: dict[str, Any] = copy.deepcopy(BODIES[url])
    if "messages" in body:
        body["messages"] = draw(TALKS)
    body |= draw(st.dictionaries(NAMES, SCALARS | VALUES, max_size=3))
    return {"custom_id": "a", "method": "POST", "url": url, "body": body}


@st.composite
def _lines(draw: st.DrawFn) -> bytes:
    """A usual line with up to two of its values, at any depth, exchanged, left out or added."""
    line = draw(_usual_lines())
    for _ in range(draw(st.integers(0, 2))):
        place, key = draw(st.sampled_from(list(_places(line))))
        if draw(st.booleans()):
            place[key] = draw(VALUES)
        elif isinstance(place, dict) and draw(st.booleans()):
            place[draw(NAMES)] = draw(VALUES)
        else:
            del place[key]
        if not line:
            break
    data = orjson.dumps(line)
    cut = draw(st.sampled_from([0, 0, 0, 1, 2]))
    return data[: len(data) - cut] + draw(st.sampled_from([b"", b"\n", b"\r\n", b" \n"]))


def _places(value: Any) -> Any:  # noqa: ANN401 - JSON is any value
    """Every list or object of a value with each of its keys."""
    keys: Any = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def outcome(line: bytes, rules: LimitsConfig) -> Outcome:
    """What the check that is used gives."""
    try:
        return tuple(check_line(line, rules))
    except LineFaultError as error:
        return error.fault


def careful(line: bytes, rules: LimitsConfig) -> Outcome:
    """What all the rules give, one after the other, of the line without its newline."""
    line = line.removesuffix(b"\n")
    try:
        parts = _parts(parse_json(line, rules.max_json_depth))
        _, url, body = parts
        # Each parameter is looked at, and with one that is not there what is needed as well.
        names = [*body, "none of them"]
        check_unsettled(url, body, names, len(line), rules.body)
    except LineFaultError as error:
        return error.fault
    return parts


USUAL = [
    request(),
    request(model="m", temperature=0.0, max_tokens=5, ignore_eos=True, user=None),
    request(messages=[{"role": "user", "content": [{"type": "text", "text": "t"}, "u"]}]),
    request(url="/v1/completions", max_tokens=1),
    request(url="/v1/responses"),
    request(url="/v1/embeddings"),
]
ODD: list[Any] = [
    *(None, True, False, 0, 1, 0.5, "", "a", "GET", "x" * 513, "/v1/score", "/v1/nothing"),
    *([], {}, [[]], ["a"], [1], [None], {"a": 1}, [[[[[1]]]]], {"a": {"a": {"a": {"a": {}}}}}),
    *([{"role": "user", "content": "c"}], [{"content": "c"}], [{"type": "text", "text": "t"}]),
]
ODD_KEYS = ["extra", "method", "model", "n", "stop", "stream", "metadata", "messages", "name", ""]


def _near(line: bytes) -> Iterator[bytes]:
    """Each line that differs from a given one in one place, by something odd."""
    value = orjson.loads(line)
    for place, key in list(_places(value)):
        kept = copy.copy(place)
        for odd in ODD:
            place[key] = odd
            yield orjson.dumps(value)
        del place[key]
        yield orjson.dumps(value)
        place.clear()
        place.extend(kept) if isinstance(place, list) else place.update(kept)
    for place in [value, *(place[key] for place, key in _places(value))]:
        for key in ODD_KEYS if isinstance(place, dict) else ():
            if key not in place:
                for odd in ODD:
                    place[key] = odd
                    yield orjson.dumps(value)
                del place[key]


@pytest.mark.parametrize("line", USUAL)
@pytest.mark.parametrize("depth", [2, 3, 4, 5, 6, 7, 64])
def test_nothing_is_taken_for_usual_that_is_near_to_it(line: bytes, depth: int) -> None:
    """With any one part exchanged, left out or added, all the rules say the same."""
    rules = limits(max_json_depth=depth)
    for near in _near(line):
        assert outcome(near, rules) == careful(near, rules), near


@pytest.mark.parametrize("url", URLS)
def test_no_parameter_is_settled_by_a_value_that_a_rule_refuses(url: str) -> None:
    """At every endpoint and for every parameter, a value that passes has passed all rules."""
    for name in EVERY_NAME:
        for odd in ODD:
            line = request(url=url, **{name: odd})
            assert outcome(line, limits()) == careful(line, limits()), line


@given(_lines(), st.sampled_from([2, 3, 5, 6, 64]))
@example(request(model=""), 64)
@example(request(stream=True), 64)
@example(request(messages=[]), 64)
@example(request(url="/v1/embeddings", messages=[{"role": "user", "content": "a"}]), 64)
@example(b'{"custom_id":"a","method":"POST","url":["/v1/score"],"body":{}}\n', 64)
@example(b'{"custom_id":"a","method":"POST","url":"/v1/score","body":{"":1}}\n', 64)
def test_a_glance_says_what_all_the_rules_say(line: bytes, depth: int) -> None:
    """The yes, and each word of the no, are the same, whatever the line and its end."""
    rules = limits(max_json_depth=depth)
    assert outcome(line, rules) == careful(line, rules)


@pytest.mark.parametrize("line", USUAL)
def test_a_usual_line_is_known_at_a_glance(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that most jobs are made of do not go through all the rules."""
    monkeypatch.delattr(lines, "check_unsettled")
    monkeypatch.delattr(lines, "check_depth")
    assert parse_request(line + b"\n", limits()).custom_id == "a"


@pytest.mark.parametrize("line", [b"{", b"nope", b'"a', b'{"a":', b"{} {}", b'{"a":"\x01"}', b"["])
def test_a_newline_changes_no_fault(line: bytes) -> None:
    """A line is at fault in the same words and at the same column with and without its end."""
    assert outcome(line + b"\n", limits()) == outcome(line, limits())

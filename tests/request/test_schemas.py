"""Tools, output formats and JSON schemas: small, and of themselves alone."""

from typing import Any

import orjson
import pytest

from builders import BODIES, CHAT, limits
from inbox_daemon.contract.config import BodyConfig
from inbox_daemon.contract.documents import Fault
from inbox_daemon.request.faults import LineFaultError
from inbox_daemon.request.line import parse_request

NOT_ALLOWED, OVER, WRONG = "body_not_allowed", "body_over_limit", "invalid_request"


def check(url: str, body: dict[str, Any], **rules: Any) -> None:  # noqa: ANN401 - any key's value
    """Check a line with these parameters beside what its endpoint needs."""
    rule = limits().model_copy(update={"body": BodyConfig(**rules)})
    line = {"custom_id": "a", "url": url, "body": BODIES[url] | body}
    parse_request(orjson.dumps(line), rule)


def fault_of(url: str, body: dict[str, Any], **rules: Any) -> Fault:  # noqa: ANN401 - likewise
    """The fault that a body has."""
    with pytest.raises(LineFaultError) as caught:
        check(url, body, **rules)
    fault = caught.value.fault
    assert fault.message.isascii()
    assert fault.message.isprintable()
    assert len(fault.message) <= 1_024
    return fault


def said(url: str, body: dict[str, Any], **rules: Any) -> tuple[str, str | None]:  # noqa: ANN401 - likewise
    """Code and param of the fault that a body has."""
    fault = fault_of(url, body, **rules)
    return fault.code, fault.param


# -- caps ---------------------------------------------------------------------------


def tool(schema: object = None, name: str = "f") -> dict[str, Any]:
    """A function as a chat's tool."""
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def json_schema(schema: object) -> dict[str, Any]:
    """A chat's response_format."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    ("pattern", "passes"),
    [
        ("^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", True),
        ("[a-z]{1,100}@[a-z]{1,100}", True),
        ("(a{100}){100}", True),
        ("((a{100}){100}){100}", False),
        ("(a{2}){99999999999999999999}", False),
        ("a{9999,}", True),
        ("a{10001}", False),
        ("x" * 513, False),
    ],
)
@pytest.mark.parametrize("place", ["pattern", "patternProperties", "tool"])
def test_a_pattern_inside_a_schema_stays_small(pattern: str, place: str, *, passes: bool) -> None:
    """What a schema's pattern unfolds to is bounded, wherever a schema may stand."""
    node: dict[str, Any] = (
        {"patternProperties": {pattern: {}}} if place != "pattern" else {"pattern": pattern}
    )
    schema = {"properties": {"a": node}}
    body = (
        {"tools": [tool(schema)]} if place == "tool" else {"response_format": json_schema(schema)}
    )
    if passes:
        check(CHAT, body)
    else:
        assert said(CHAT, body)[0] == NOT_ALLOWED


def test_a_schema_refers_to_itself_alone() -> None:
    """A reference to another document is nothing that an engine may go after."""
    check(CHAT, {"response_format": json_schema({"$ref": "#/$defs/a", "$defs": {"a": {}}})})
    body = {"response_format": json_schema({"items": {"$ref": "http://x/schema.json"}})}
    assert said(CHAT, body) == (NOT_ALLOWED, "body.response_format")

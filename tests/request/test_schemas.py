"""Tools, output formats and JSON schemas: small, and of themselves alone."""

from typing import Any

import pytest

from bodies import check, said
from builders import CHAT

NOT_ALLOWED, OVER, WRONG = "body_not_allowed", "body_over_limit", "invalid_request"


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

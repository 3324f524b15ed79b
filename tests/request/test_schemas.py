"""Tools, output formats and JSON schemas: small, and of themselves alone."""

from typing import Any

import pytest

from bodies import NOT_ALLOWED, check, json_schema, said, tool
from builders import CHAT


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

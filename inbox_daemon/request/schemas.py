"""Tools, output formats and JSON schemas: what the engine compiles.

Purpose: cap what a sender has the engine compile, and keep regular expressions and
grammars out unless they were opened.
Invariants: pure; sizes are bytes of compact JSON; a schema may refer to itself alone.
Known limits: a schema is not checked to be one; a `pattern` inside a schema passes, its
length and the product of its counted repeats being bounded.
Measured with xgrammar 0.2.8: a schema of 64 KiB compiles in up to two seconds, one of
twice that in nine, growing with the square of its properties.
"""

import re
from collections.abc import Iterator
from typing import Any

import orjson

from inbox_daemon.contract.config import BodyConfig
from inbox_daemon.request.endpoints import (
    FORMAT_TYPES,
    REFUSED,
    REFUSED_STRUCTURED,
    REFUSED_TEMPLATE_KWARGS,
    STRUCTURED_KEYS,
    TOOL_TYPES,
)
from inbox_daemon.request.faults import closed, key_path, never, over_limit, quote, wrong

_CHECKED_KEYS = frozenset({"$ref", "pattern", "patternProperties"})
_MAX_PATTERN = 512
_MAX_REPEATS = 10_000
_REPEAT = re.compile(r"(\))?\{([0-9]*)(?:,([0-9]*))?\}")
_LONG_NUMBER = 6
# Levels around a schema itself: {"function": {"parameters": …}}.
_HOLDERS = 2
_UNKNOWN = "neither OpenAI nor vLLM documents it"


def check_tools(path: str, value: object, size: int, rules: BodyConfig) -> None:
    """Check a list of tools or of functions."""
    if value is None:
        return
    if not isinstance(value, list):
        raise wrong(path, "a list")
    _check_bytes(path, value, size, (rules.max_tools_bytes, "max_tools_bytes"))
    spaces = [
        (f"{path}[{number}].tools", tool["tools"])
        for number, tool in enumerate(value)
        if isinstance(tool, dict) and tool.get("type") == "namespace"
        if isinstance(tool.get("tools"), list)
    ]
    total = len(value) + sum(len(tools) for _, tools in spaces)
    if total > rules.max_tools:
        raise over_limit(path, f"{total} tools", rules.max_tools, "max_tools")
    for place, tools in [(path, value), *spaces]:
        for number, tool in enumerate(tools):
            _check_tool(f"{place}[{number}]", tool, size, rules)
            if place != path and tool.get("type") == "namespace":
                raise wrong(f"{place}[{number}]", "a tool and no further namespace")


def _check_tool(path: str, tool: Any, size: int, rules: BodyConfig) -> None:  # noqa: ANN401 - JSON is any value
    if not isinstance(tool, dict):
        raise wrong(path, "an object")
    kind = tool.get("type", "function")
    if not isinstance(kind, str):
        raise wrong(f"{path}.type", "a string")
    if kind not in TOOL_TYPES and kind not in rules.allow:
        raise closed(f"{path}.type", f"no tool of type {quote(kind)} is run here", kind)
    if "grammar" not in rules.allow:
        for holder in (tool, tool.get("custom")):
            output = holder.get("format") if isinstance(holder, dict) else None
            if isinstance(output, dict) and output.get("type") not in {None, "text"}:
                raise closed(f"{path}.format", REFUSED["grammar"], "grammar")
    if kind != "namespace":  # whose tools come one by one
        check_schema(path, tool, size, rules)


def check_format(path: str, value: object, size: int, rules: BodyConfig) -> None:
    """Check `response_format`, or the `format` of a response's `text`."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise wrong(path, "an object")
    kind = value.get("type")
    if not isinstance(kind, str):
        raise wrong(f"{path}.type", "a string")
    if kind not in FORMAT_TYPES and kind not in rules.allow:
        why = REFUSED.get(kind, f"the format {quote(kind)} is not known")
        raise closed(f"{path}.type", why, kind)
    check_schema(path, value, size, rules)


def check_text(path: str, value: object, size: int, rules: BodyConfig) -> None:
    """Check the `text` of a response: its format and its verbosity."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise wrong(path, "an object")
    check_format(f"{path}.format", value.get("format"), size, rules)


def check_structured(path: str, value: object, size: int, rules: BodyConfig) -> None:
    """Check vLLM's `structured_outputs`."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise wrong(path, "an object")
    for key in sorted(value.keys() - STRUCTURED_KEYS):
        if value[key] is not None and key not in rules.allow:
            why = REFUSED_STRUCTURED.get(key, _UNKNOWN)
            raise closed(key_path(path, key), why, key)
    check_schema(path, value, size, rules)
    schema = value.get("json")
    if isinstance(schema, str):
        try:
            check_schema(f"{path}.json", orjson.loads(schema), size, rules)
        except orjson.JSONDecodeError:
            raise wrong(f"{path}.json", "a JSON schema, as an object or as its text") from None
    choice = value.get("choice")
    if choice is not None and not (
        isinstance(choice, list) and all(isinstance(text, str) for text in choice)
    ):
        raise wrong(f"{path}.choice", "a list of strings")


def check_schema(path: str, value: object, size: int, rules: BodyConfig) -> None:
    """Hold a JSON schema, or what holds one, to its size, its depth and small patterns."""
    if not isinstance(value, dict):
        raise wrong(path, "an object")
    _check_bytes(path, value, size, (rules.max_schema_bytes, "max_schema_bytes"))
    depth = (rules.max_schema_depth, "max_schema_depth")
    for node in _nodes(path, value, depth, _HOLDERS):
        if isinstance(node, dict) and not _CHECKED_KEYS.isdisjoint(node):
            reference, pattern = node.get("$ref"), node.get("pattern")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise never(
                    path, "a $ref may point into the schema itself alone, as #/$defs/NAME does"
                )
            if isinstance(pattern, str):
                _check_pattern(path, pattern)
            named = node.get("patternProperties")
            for name in named if isinstance(named, dict) else ():
                _check_pattern(path, name)


def _check_pattern(path: str, pattern: str) -> None:
    if len(pattern) > _MAX_PATTERN:
        raise never(path, f"a pattern has more than {_MAX_PATTERN} characters")
    nested, widest = 1, 1
    for found in _REPEAT.finditer(pattern):
        bounds = [int(digits[:_LONG_NUMBER] or 1) for digits in found.groups("")[1:]]
        if found[1]:  # of a group, which may hold other repeats
            nested *= max(*bounds, 1)
        else:
            widest = max(widest, *bounds)
    if nested * widest > _MAX_REPEATS:
        raise never(path, f"the counted repeats of a pattern come to more than {_MAX_REPEATS}")


def check_template_kwargs(path: str, value: object, size: int, rules: BodyConfig) -> None:
    """Check `chat_template_kwargs`: variables for the model's own chat template."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise wrong(path, "an object")
    for key in sorted(value.keys() & REFUSED_TEMPLATE_KWARGS.keys()):
        if key not in rules.allow:
            raise closed(f"{path}.{key}", REFUSED_TEMPLATE_KWARGS[key], key)
    limit = rules.max_template_kwargs_bytes
    _check_bytes(path, value, size, (limit, "max_template_kwargs_bytes"))
    depth = (rules.max_template_kwargs_depth, "max_template_kwargs_depth")
    for _ in _nodes(path, value, depth):
        pass


def _check_bytes(path: str, value: object, size: int, limit: tuple[int, str]) -> None:
    """Hold a value to its bytes; `size` is the whole line's, and no part has more."""
    if size > limit[0] and (found := len(orjson.dumps(value))) > limit[0]:
        raise over_limit(path, f"{found} bytes", *limit)


def _nodes(
    path: str, value: dict[str, object], depth: tuple[int, str], more: int = 0
) -> Iterator[dict[str, object] | list[object]]:
    """Every object and list of a value, level by level.

    Raises LineFaultError: there are more levels than `depth` and `more` allow.
    """
    level: list[dict[str, object] | list[object]] = [value]
    for _ in range(depth[0] + more):
        yield from level
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise over_limit(path, "more levels of nesting", *depth)

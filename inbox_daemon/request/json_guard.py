"""JSON from outside, read without harm.

Purpose: refuse text that would take far more memory than it has bytes, or that is nested
deeper than is allowed, before anything is built from it.
Invariants: pure; what passes can be written again by orjson.
Known limits, orjson's: integers past 64 bits become floats, the last of duplicate keys
wins, what is nested deeper than 254 levels can be read but not written.
"""

import re
from itertools import islice
from typing import Any

import orjson

from inbox_daemon.request.faults import LineFaultError

BOM = b"\xef\xbb\xbf"


# How deep a value may be nested so that a document of ours can be written around it:
# orjson reads 1,024 levels and writes 254.
WRITABLE_DEPTH = 250


# What orjson says past 1,024 levels; the words changed between its releases.
_ORJSON_TOO_DEEP = ("recursion limit", "depth limit")


# What it says of more brackets than there could be if each was closed.
_ORJSON_NO_MEMORY = "allocate memory"


# This many lists and objects are harmless in a line of any length: about 6 MB.
_MANY = 1 << 16


_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]', re.DOTALL)


_QUOTE = ord('"')


# Below this many bytes, counting is as quick as finding.
_SHORT = 1024


def parse_json(line: bytes, max_depth: int) -> Any:  # noqa: ANN401 - JSON is any value
    """Parse one JSON document and hold it to `max_depth` levels of nesting.

    Raises LineFaultError: `invalid_json`, `too_deep` or `too_many_values`.
    """
    value = parse(line, max_depth)
    check_depth(line, value, max_depth)
    return value


def parse(line: bytes, max_depth: int) -> Any:  # noqa: ANN401 - JSON is any value
    """Parse one JSON document; `max_depth` is only told, where orjson finds it too deep."""
    if len(line) > _MANY and holds_too_much(line):
        message = f"the line holds more than {_MANY} lists and objects; split the request"
        raise LineFaultError("too_many_values", message)
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if line.endswith(b"\n"):  # which moves where the text ends: tell of the line alone
            return parse(line.rstrip(b"\n"), max_depth)
        if any(words in str(error).lower() for words in _ORJSON_TOO_DEEP):
            raise _too_deep(max_depth) from None
        message = f"the line is not valid JSON: {error.msg} at column {error.colno}"
        if line.startswith(BOM):
            message = "the file starts with a byte order mark; write it as UTF-8 without one"
        elif _ORJSON_NO_MEMORY in error.msg:
            message = (
                f"the line is not valid JSON: its brackets are not closed, at column {error.colno}"
            )
        raise LineFaultError("invalid_json", message) from None


def holds_too_much(line: bytes) -> bool:
    """Return whether a line would take far more memory than it has bytes, if it were parsed.

    A text of three bytes, `[],`, becomes a list of ninety; no other value grows by more
    than twenty times.  Brackets inside of strings are no lists.
    """
    size = len(line) - line.endswith(b"\n")  # the same with and without its newline
    most = max(_MANY, size // 16)
    if size <= most or line.count(b"[") + line.count(b"{") <= most:
        return False
    found = (1 for token in _STRING_OR_BRACKET.finditer(line) if line[token.start()] != _QUOTE)
    return next(islice(found, most, None), None) is not None


def check_depth(line: bytes, value: Any, max_depth: int) -> None:  # noqa: ANN401 - JSON is any value
    """Refuse a value that is nested too deep; raises LineFaultError, `too_deep`."""
    if nests_deeper(line, value, max_depth):
        raise _too_deep(max_depth)


def nests_deeper(data: bytes, value: Any, max_depth: int) -> bool:  # noqa: ANN401 - JSON is any value
    """Return whether `value`, which was parsed from `data`, has more levels than `max_depth`."""
    # The number of brackets bounds the depth from above, so that only lines with very many
    # of them are walked.
    return _has_more_brackets(data, max_depth) and _depth_exceeds(value, max_depth)


def _has_more_brackets(data: bytes, most: int) -> bool:
    """Return whether more than `most` brackets are opened.

    Finding the next one takes a tenth of the time that counting takes for a byte, and
    most lines have few.
    """
    if len(data) < _SHORT:
        return data.count(b"{") + data.count(b"[") > most
    for bracket in (b"{", b"["):
        at = data.find(bracket)
        while at >= 0:
            most -= 1
            if most < 0:
                return True
            at = data.find(bracket, at + 1)
    return False


def _too_deep(max_depth: int) -> LineFaultError:
    message = f"the JSON is nested deeper than {max_depth} levels; flatten it"
    return LineFaultError("too_deep", message)


def _depth_exceeds(value: Any, max_depth: int) -> bool:  # noqa: ANN401 - JSON is any value
    level = [value]
    for _ in range(max_depth):
        level = [
            child
            for node in level
            for child in (
                node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
            )
        ]
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)

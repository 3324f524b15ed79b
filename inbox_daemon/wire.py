r"""JSONL bytes to records and back.

Purpose: the one place that knows how a request line is read and checked and how an
output line is written.
Invariants: pure, no I/O; a line is a run of bytes that ends at b"\n" and nowhere
else (`str.splitlines` would cut inside valid JSON); what is sent to the engine is
what was checked, because the body is written anew from the parsed value: a
duplicate key cannot smuggle in a second reading.
Known limits, orjson's: integers past 64 bits become floats, the last of duplicate
keys wins, what is nested deeper than 254 levels can be read but not written.
"""

import hashlib
import re
from itertools import islice
from typing import Any, NamedTuple

import orjson

from inbox_daemon.bodyrules import SETTLED_DEPTH, check_unsettled, unsettled
from inbox_daemon.config import LimitsConfig
from inbox_daemon.linefaults import LineFaultError, quote
from inbox_daemon.model import MAX_CUSTOM_ID, URLS

BOM = b"\xef\xbb\xbf"
# How deep a value may be nested so that a document of ours can be written around it:
# orjson reads 1,024 levels and writes 254.
WRITABLE_DEPTH = 250
# What orjson says past 1,024 levels; the words changed between its releases.
_ORJSON_TOO_DEEP = ("recursion limit", "depth limit")
# What it says of more brackets than there could be if each was closed.
_ORJSON_NO_MEMORY = "allocate memory"
# So many lists and objects are harmless in a line of any length: about 6 MB.
_MANY = 1 << 16
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]', re.DOTALL)
_QUOTE = ord('"')
# Below so many bytes, counting is as quick as finding.
_SHORT = 1024
_KEYS = frozenset({"custom_id", "method", "url", "body"})
_URLS = frozenset(URLS)
_LEFT_OUT = object()


class Request(NamedTuple):
    """One checked request: `body` is the parsed JSON object.

    A tuple, because there is one for each line and a frozen dataclass takes thrice as long.
    """

    custom_id: str
    url: str
    body: dict[str, Any]

    @property
    def model(self) -> str | None:
        """The model that the body names, None when it leaves that out."""
        return self.body.get("model")


def parse_request(line: bytes, limits: LimitsConfig) -> Request:
    """Read one line, with or without its newline, as a request.

    Raises LineFaultError: it is not valid JSON, too deep, not of the shape of OpenAI's
    batch input line, or its body asks for what may not reach the engine.
    """
    return Request(*check_line(line, limits))


def check_line(line: bytes, limits: LimitsConfig) -> tuple[str, str, dict[str, Any]]:
    """Do what `parse_request` does, and give the custom_id, the URL and the body.

    A plain tuple, as a Request takes several times as long to make.
    Raises LineFaultError: as parse_request.
    """
    depth = limits.max_json_depth
    value = _parse(line, depth)
    try:
        parts = _parts(value)
    except LineFaultError:
        _check_depth(line, value, depth)  # too deep is told first, whatever else is wrong
        raise
    _, url, body = parts
    names = unsettled(url, body)
    if names or depth < SETTLED_DEPTH:  # else it is too flat to be too deep
        _check_depth(line, value, depth)
        check_unsettled(url, body, names, len(line), limits.body)
    return parts


def parse_json(line: bytes, max_depth: int) -> Any:  # noqa: ANN401 - JSON is any value
    """Parse one JSON document and hold it to `max_depth` levels of nesting.

    Raises LineFaultError: `invalid_json`, `too_deep` or `too_many_values`.
    """
    value = _parse(line, max_depth)
    _check_depth(line, value, max_depth)
    return value


def _parse(line: bytes, max_depth: int) -> Any:  # noqa: ANN401 - JSON is any value
    """Parse one JSON document; `max_depth` is only told, where orjson finds it too deep."""
    if len(line) > _MANY and holds_too_much(line):
        message = f"the line holds more than {_MANY} lists and objects; split the request"
        raise LineFaultError("too_many_values", message)
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if line.endswith(b"\n"):  # which moves where the text ends: tell of the line alone
            return _parse(line.rstrip(b"\n"), max_depth)
        if any(words in str(error).lower() for words in _ORJSON_TOO_DEEP):
            raise _too_deep(max_depth) from None
        raise LineFaultError("invalid_json", _json_advice(line, error)) from None


def holds_too_much(line: bytes) -> bool:
    """Say whether a line would take far more memory than it has bytes, if it were parsed.

    A text of three bytes, `[],`, becomes a list of ninety; no other value grows by more
    than twenty times.  Brackets inside of strings are no lists.
    """
    size = len(line) - line.endswith(b"\n")  # the same with and without its newline
    most = max(_MANY, size // 16)
    if size <= most or line.count(b"[") + line.count(b"{") <= most:
        return False
    found = (1 for token in _STRING_OR_BRACKET.finditer(line) if line[token.start()] != _QUOTE)
    return next(islice(found, most, None), None) is not None


def _check_depth(line: bytes, value: Any, max_depth: int) -> None:  # noqa: ANN401 - JSON is any value
    if nests_deeper(line, value, max_depth):
        raise _too_deep(max_depth)


def nests_deeper(data: bytes, value: Any, max_depth: int) -> bool:  # noqa: ANN401 - JSON is any value
    """Say whether `value`, which was parsed from `data`, has more levels than `max_depth`."""
    # The number of brackets bounds the depth from above, so that only lines with very many
    # of them are walked.
    return _has_more_brackets(data, max_depth) and _depth_exceeds(value, max_depth)


def _has_more_brackets(data: bytes, most: int) -> bool:
    """Say whether more than `most` brackets are opened.

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


def _json_advice(line: bytes, error: orjson.JSONDecodeError) -> str:
    if line.startswith(BOM):
        return "the file starts with a byte order mark; write it as UTF-8 without one"
    if _ORJSON_NO_MEMORY in error.msg:
        return f"the line is not valid JSON: its brackets are not closed, at column {error.colno}"
    return f"the line is not valid JSON: {error.msg} at column {error.colno}"


def _depth_exceeds(value: Any, max_depth: int) -> bool:  # noqa: ANN401 - JSON is any value
    level = [value]
    for _ in range(max_depth):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)


def _children(node: Any) -> Any:  # noqa: ANN401 - JSON is any value
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _parts(value: Any) -> tuple[str, str, dict[str, Any]]:  # noqa: ANN401 - JSON is any value
    """Check the shape and give the custom_id, the URL and the body.

    By hand: pydantic takes ten times as long for each line.
    """
    if not isinstance(value, dict):
        raise LineFaultError("invalid_request", "the line must be a JSON object")
    method = value.get("method", _LEFT_OUT)
    # A line of the usual number of keys that has all that it needs has no other key.
    if len(value) != (3 if method is _LEFT_OUT else 4) and not value.keys() <= _KEYS:
        extra = min(value.keys() - _KEYS)
        message = f"the key {quote(extra)} is not known; a line has {', '.join(sorted(_KEYS))}"
        raise LineFaultError("invalid_request", message, quote(extra))
    custom_id, url, body = value.get("custom_id"), value.get("url"), value.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        message = f"custom_id must be a string of 1 to {MAX_CUSTOM_ID} characters"
        raise LineFaultError("invalid_request", message, "custom_id")
    if method != "POST" and method is not _LEFT_OUT:
        raise LineFaultError("invalid_request", "method must be POST", "method")
    if not isinstance(url, str) or url not in _URLS:
        raise LineFaultError("invalid_request", f"url must be one of {', '.join(URLS)}", "url")
    if not isinstance(body, dict):
        raise LineFaultError("invalid_request", "body must be a JSON object", "body")
    model = body.get("model")
    if model is not None and not (isinstance(model, str) and model):
        raise LineFaultError("invalid_request", "body.model must be a string", "body.model")
    return custom_id, url, body


class LinesDigest:
    """A checksum of which line has which custom_id, in order.

    It is taken at acceptance and again from the published lines, so that a finished
    job can be proved complete without its input.
    """

    def __init__(self) -> None:
        """Start with no line."""
        self._hash = hashlib.sha256()

    def add(self, line: int, custom_id: str | None) -> None:
        """Take the next request; `custom_id` is None where the line cannot be read."""
        self._hash.update(orjson.dumps((line, custom_id)))

    def hexdigest(self) -> str:
        """The sha256 so far."""
        return self._hash.hexdigest()


def custom_id_of(line: bytes | None) -> str | None:
    """The custom_id of a line that may be no request; None where it has none."""
    if line is None or holds_too_much(line):
        return None
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    found = value.get("custom_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def engine_body(request: Request, model: str | None) -> bytes:
    """The JSON body for the engine; `model` fills in what the line left out."""
    named = model is None or request.model is not None
    body = orjson.dumps(request.body if named else request.body | {"model": model})
    # orjson (3.13) hands its whole work buffer over, 4 KiB for the smallest body, and a
    # body is held for as long as its request is in flight; a copy is as large as its text.
    return bytes(memoryview(body))


# -- output lines -------------------------------------------------------------------


def request_id(job_id: str, line: int) -> str:
    """The id of one request in output lines, headers and logs: stable over retries."""
    return f"batch_req_{job_id}_{line}"


def output_line(
    job_id: str, line: int, custom_id: str, status: int, server_id: str, body: bytes
) -> bytes:
    """Write the output line of an answered request, `body` being the engine's bytes.

    A newline inside JSON can only be white space between tokens, so a body that
    holds one gets a space in its place; every other byte is passed on as it came.
    `body` must be valid JSON.
    """
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    response = {"status_code": status, "request_id": server_id, "body": orjson.Fragment(body)}
    record = {
        "id": request_id(job_id, line),
        "custom_id": custom_id,
        "response": response,
        "error": None,
    }
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def error_line(
    job_id: str,
    line: int,
    custom_id: str | None,
    code: str,
    message: str,
    response: dict[str, Any] | None,
) -> bytes:
    """Write the line of a dead letter; `response` is the engine's last answer, if any.

    `custom_id` is None where the input line could not be read.
    """
    record = {
        "id": request_id(job_id, line),
        "custom_id": custom_id,
        "response": response,
        "error": {"code": code, "message": message},
    }
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)

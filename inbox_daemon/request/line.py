r"""JSONL bytes to records and back.

Purpose: the one place that knows how a request line is read and checked and how an
output line is written.
Invariants: pure, no I/O; a line is a run of bytes that ends at b"\n" and nowhere
else (`str.splitlines` would cut inside valid JSON); what is sent to the engine is
what was checked, because the body is written again from the parsed value, even where a
key was given twice.
Known limits, orjson's: integers past 64 bits become floats, the last of duplicate
keys wins, what is nested deeper than 254 levels can be read but not written.
"""

import hashlib
from typing import Any, NamedTuple

import orjson

from inbox_daemon.contract.config import LimitsConfig
from inbox_daemon.contract.documents import MAX_CUSTOM_ID, URLS
from inbox_daemon.request.body import SETTLED_DEPTH, check_unsettled, unsettled
from inbox_daemon.request.faults import LineFaultError, quote
from inbox_daemon.request.json_guard import check_depth, holds_too_much, parse

_KEYS = frozenset({"custom_id", "method", "url", "body"})
_URLS = frozenset(URLS)
_LEFT_OUT = object()
# Up to this many bytes, an answer is copied into its line more quickly than it is handled apart.
_LARGE = 1 << 16
_AFTER_BODY = b'},"error":null}\n'


class Request(NamedTuple):
    """One checked request: `body` is the parsed JSON object.

    A tuple, because there is one for each line and a frozen dataclass takes three times as long.
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
    value = parse(line, depth)
    try:
        parts = _parts(value)
    except LineFaultError:
        check_depth(line, value, depth)  # too deep is reported first, whatever else is wrong
        raise
    _, url, body = parts
    names = unsettled(url, body)
    if names or depth < SETTLED_DEPTH:  # else it is too flat to be too deep
        check_depth(line, value, depth)
        check_unsettled(url, body, names, len(line), limits.body)
    return parts


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
    """The JSON body for the engine; `model` is the job's, in place of what the line says.

    None leaves it as it is.
    """
    named = model is None or request.model == model
    body = orjson.dumps(request.body if named else request.body | {"model": model})
    # orjson (3.13) hands its whole work buffer over, 4 KiB for the smallest body, and a
    # body is held for as long as its request is in flight; a copy is as large as its text.
    return bytes(memoryview(body))


def with_model(line: dict[str, Any], model: str) -> dict[str, Any]:
    """Return a parsed line that asks for `model` where it asked for another by name."""
    body = line["body"]
    if body.get("model") in {None, model}:
        return line
    return line | {"body": body | {"model": model}}


# -- output lines -------------------------------------------------------------------


def request_id(job_id: str, line: int) -> str:
    """The id of one request in output lines, headers and logs: stable over retries."""
    return f"batch_req_{job_id}_{line}"


def output_line(
    job_id: str, line: int, custom_id: str, status: int, server_id: str, body: bytes
) -> tuple[bytes, ...]:
    """Write the output line of an answered request, `body` being the engine's bytes.

    It comes in parts, so that a large body is held once and not copied.
    A newline inside JSON can only be white space between tokens, so a body that
    holds one gets a space in its place; every other byte is passed on as it came.
    `body` must be valid JSON.
    """
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\r", b" ").replace(b"\n", b" ")
    large = len(body) > _LARGE
    fragment = orjson.Fragment(b"" if large else body)
    response = {"status_code": status, "request_id": server_id, "body": fragment}
    record = {
        "id": request_id(job_id, line),
        "custom_id": custom_id,
        "response": response,
        "error": None,
    }
    whole = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    return (whole.removesuffix(_AFTER_BODY), body, _AFTER_BODY) if large else (whole,)


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

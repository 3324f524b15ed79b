"""The admission check of a whole file: the validator's yes or no.

Purpose: read a job once, in bounded memory, and list what is wrong with it; the
daemon and `inbox-daemon validate` use the same code.
Invariants: at most one line is held at a time; every line gets at most one fault;
lines of white space are no requests; the file is only read.
Known limit: custom_ids are kept to find duplicates, up to 64 characters of each.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from inbox_daemon.contract import limits as limit_rules
from inbox_daemon.contract.config import LimitsConfig
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.records import InvalidLine
from inbox_daemon.request.faults import LineFaultError
from inbox_daemon.request.line import LinesDigest, check_line, custom_id_of

_READ_BYTES = 1 << 20
_SHORT_ID = 64
_NO_LINE = object()


@dataclass(slots=True)
class Validation:
    """What one pass over a file found.

    `faults` counts all, `listed` holds the first 100; `fatal` is a fault of the file
    as a whole, which no treatment of single lines can mend; `endpoint` and `model`
    are what all lines agree on, else None.
    """

    requests: int = 0
    faults: int = 0
    listed: list[Fault] = field(default_factory=list)
    invalid: list[InvalidLine] = field(default_factory=list)
    fatal: Fault | None = None
    endpoint: str | None = None
    model: str | None = None
    digest: LinesDigest = field(default_factory=LinesDigest)

    def accepted(self, *, dead_letter_lines: bool) -> bool:
        """Return whether the job may run, under the rule for single invalid lines."""
        if self.fatal is not None or self.requests == 0:
            return False
        return self.faults == 0 or (dead_letter_lines and self.faults < self.requests)


@dataclass(frozen=True, slots=True)
class Served:
    """The models that the engine answers to, and the one that lines may leave out.

    `names` is empty while they are not known; then any one model is accepted.
    """

    default: str | None = None
    names: frozenset[str] = frozenset()


def validate_file(
    path: Path, limits: LimitsConfig, served: Served, *, keep_invalid: bool = False
) -> Validation:
    """Check every line of a file.

    `keep_invalid` keeps the fault of each bad line, for a job that runs without them.
    Raises OSError: the file cannot be read.
    """
    with path.open("rb", buffering=_READ_BYTES) as file:
        lines = read_lines(file, limits.max_line_bytes)
        return validate_lines(lines, limits, served, keep_invalid=keep_invalid)


def read_lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number, line with its newline); None for a line over `max_bytes`.

    The newline is not counted, and is cut off no line, as that would copy it.  The rest of
    a line that is too long is skipped without being held.  One that is all white space is
    blank at any length, as it is for jobinput.
    """
    return enumerate(_lines(file, max_bytes), 1)


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    while line := file.readline(max_bytes + 1):
        if len(line) <= max_bytes or line.endswith(b"\n"):
            yield line
            continue
        blank = line.isspace()
        while part := file.readline(_READ_BYTES):
            blank = blank and part.isspace()
            if part.endswith(b"\n"):
                break
        yield b"\n" if blank else None


def validate_lines(
    lines: Iterator[tuple[int, bytes | None]],
    limits: LimitsConfig,
    served: Served,
    *,
    keep_invalid: bool = False,
) -> Validation:
    """Check lines as `read_lines` gives them as one job; the pure core of `validate_file`."""
    found, checker = Validation(), _Checker(limits, served)
    most = limits.max_requests_per_job
    for number, line in lines:
        if line is not None and line.isspace():
            continue
        found.requests += 1
        if found.requests > most:
            message = f"the file has more than {limits.max_requests_per_job} requests; split it"
            found.fatal = Fault(code="too_many_requests", message=message)
            break
        fault: Fault | None = None
        try:
            custom_id: str | None = checker.check(number, line)
        except LineFaultError as error:
            fault = error.fault.model_copy(update={"line": number})
        if fault is not None:  # only now, as the exception keeps what was parsed
            custom_id = custom_id_of(line)
            found.faults += 1
            if len(found.listed) < limit_rules.MAX_LISTED_FAULTS:
                found.listed.append(fault)
            if keep_invalid:
                found.invalid.append(InvalidLine(number, fault))
        found.digest.add(number, custom_id)
    if found.requests == 0:
        found.fatal = Fault(code="empty", message="the file holds no request")
    found.endpoint, found.model = checker.endpoint, checker.model
    if found.fatal is not None:  # first in the list, whatever else was found
        found.faults += 1
        found.listed = [found.fatal, *found.listed][: limit_rules.MAX_LISTED_FAULTS]
    return found


class _Checker:
    """Checks the lines of one file, alone and against the lines before.

    One object with what it needs at hand, as this runs for every line of every job.
    """

    __slots__ = ("_custom_ids", "_limits", "_model", "_named", "_served", "_urls")

    def __init__(self, limits: LimitsConfig, served: Served) -> None:
        """Start with no line."""
        self._limits = limits
        self._served = served
        self._custom_ids: dict[str | bytes, int] = {}
        self._urls: set[str] = set()
        self._model: str | None = None  # what the lines have to agree on
        self._named: object = _NO_LINE  # what the last good line named, None for no model

    @property
    def endpoint(self) -> str | None:
        """The URL of all good lines, None where they differ."""
        return next(iter(self._urls)) if len(self._urls) == 1 else None

    @property
    def model(self) -> str | None:
        """The model of all good lines, as far as it is known."""
        return self._model or self._served.default

    def check(self, number: int, line: bytes | None) -> str:
        """Check a line and give its custom_id alone, so that one body is held at a time.

        Raises LineFaultError: the line is no request, or none that goes with the others.
        """
        if line is None:
            limit = self._limits.max_line_bytes
            message = f"the line is longer than {limit} bytes; shorten the request"
            raise LineFaultError("line_too_long", message)
        custom_id, url, body = check_line(line, self._limits)
        # Of a long one, which may take 2 KB, its hash does as well.
        short = (
            custom_id
            if len(custom_id) <= _SHORT_ID
            else hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        )
        first = self._custom_ids.setdefault(short, number)
        if first != number:
            message = (
                f"the custom_id was used in line {first} already; each must be unique in a file"
            )
            raise LineFaultError("duplicate_custom_id", message, "custom_id")
        named = body.get("model")
        if named != self._named:  # most lines name what the last one named
            model = named or self._served.default
            # One that is not served must not decide what the others have to agree with.
            if model is not None and self._served.names and model not in self._served.names:
                known = ", ".join(sorted(self._served.names))
                message = f"the model {model[:60]!a} is not served here; use {known}, or name none"
                raise LineFaultError("unknown_model", message, "body.model")
            self._model = self._model or model
            if model is not None and model != self._model:
                message = "the lines name different models; send one file for each"
                raise LineFaultError("mixed_models", message, "body.model")
            self._named = named
        self._urls.add(url)
        return custom_id

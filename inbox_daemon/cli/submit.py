"""Submitting from this machine: drop a file as a sender would, and wait for its end.

Purpose: an atomic drop with the sender's marker, and the wait that tells the outcome.
Invariants: inbox/ never shows a part of the file under its final name; the wait only
reads.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

from inbox_daemon.cli import views
from inbox_daemon.contract.config import Config
from inbox_daemon.contract.documents import Fault, JobStatus, ReadyMarker, Refusal
from inbox_daemon.contract.errors import SenderError
from inbox_daemon.contract.job_documents import counted
from inbox_daemon.contract.limits import QueueLoad, check_bytes, check_requests
from inbox_daemon.contract.names import JOB_SUFFIX, REASON_SUFFIX, is_control_name, is_job_name
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.intake import gate
from inbox_daemon.request.validation import Served, Validation, validate_file
from inbox_daemon.spool import Spool

_READ_BYTES = 1 << 20
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Dropped:
    """A file that was dropped: its job's name, checksum, requests and when."""

    name: str
    sha256: str
    lines: int
    at: float


def drop(spool: Spool, path: Path) -> Dropped:
    """Drop a file into inbox/ with its marker, so that it is taken at the next scan.

    Raises SenderError: it cannot be read, has a name that is no job's, or a file of
    that name waits in inbox/ already.
    """
    if not is_job_name(path.name):
        msg = f"{path.name} is no job's name: letters, digits and . _ - , ending in .jsonl"
        raise SenderError("bad_name", msg)
    try:
        digest, size, lines = hashlib.sha256(), 0, 0
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
                size += len(block)
                lines += block.count(b"\n")
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise SenderError("unreadable", msg) from None
    marker = ReadyMarker(bytes=size, sha256=digest.hexdigest())
    try:
        spool.drop(path, orjson.dumps(marker.model_dump()))
    except FileExistsError:
        msg = f"a file named {path.name} waits in {spool.inbox} already; wait until it is taken"
        raise SenderError("name_in_use", msg) from None
    except OSError as error:
        msg = f"{spool.inbox} cannot be written: {error.strerror}; `inbox-daemon init` makes it"
        raise SenderError("inbox_unwritable", msg) from None
    return Dropped(path.name.removesuffix(JOB_SUFFIX), marker.sha256, lines, time.time())


def outcome(spool: Spool, dropped: Dropped) -> JobStatus | Refusal | None:
    """How a dropped file ended: its final status, its refusal, or None so far."""
    if (spool.inbox / f"{dropped.name}{JOB_SUFFIX}").exists():
        return None
    for name in (dropped.name, *_siblings(spool.outbox, dropped.name)):
        found = views.read_status(spool.outbox / name)
        if found and found.sha256 == dropped.sha256 and found.status != "failed":
            return found
    for name in (dropped.name, *_siblings(spool.rejected, dropped.name, REASON_SUFFIX)):
        reason = views.read_reason(spool.rejected / f"{name}{REASON_SUFFIX}")
        if reason is None or reason.name != dropped.name or reason.rejected_at < dropped.at - 1:
            continue
        # One that was refused before it was claimed, as for its size, has no checksum.
        if reason.sha256 in {None, dropped.sha256}:
            return reason
    return None


def _siblings(folder: Path, name: str, suffix: str = "") -> list[str]:
    """Names beside NAME that carry an id: a second refusal, or a second publication."""
    return [
        path.name.removesuffix(suffix)
        for path in views.entries_of(folder)
        if path.name.startswith(f"{name}.") and path.name.endswith(suffix)
    ]


def order(spool: Spool, name: str, what: str, **content: str | None) -> frozenset[str]:
    """Drop a control file that holds `content`, as far as it is not None.

    Returns the refusals of earlier orders of that name, as `wait_obeyed` takes them.

    Raises SenderError: the name or the reason is none, or inbox/ cannot be written.
    """
    file = f"{name}.{what}"
    if not is_control_name(file):
        msg = f"{name!a} is no job's name"
        raise SenderError("bad_name", msg)
    reason = content.get("reason")
    if reason is not None and reason not in set(DeadReason):
        msg = f"there is no reason {reason!a}; it is one of {', '.join(DeadReason)}"
        raise SenderError("unknown_reason", msg)
    found = {key: value for key, value in content.items() if value is not None}
    earlier = frozenset(_refused(spool, file))
    try:
        spool.drop_note(file, orjson.dumps(found) if found else b"")
    except OSError as error:
        msg = f"{spool.inbox} cannot be written: {error.strerror}; `inbox-daemon init` makes it"
        raise SenderError("inbox_unwritable", msg) from None
    return earlier


def wait_obeyed(spool: Spool, file: str, patience_s: float, earlier: frozenset[str]) -> str | None:
    """Wait until a control file was taken; return the refusal's words, if it was refused.

    The `earlier` refusals, by their names in rejected/, are those of other orders.
    """
    until = time.monotonic() + patience_s
    while (spool.inbox / file).exists() or _is_being_refused(spool, file, earlier):
        if time.monotonic() > until:
            where = f"{file} waits in {spool.inbox}; it is obeyed once a daemon runs"
            return f"{where}; {views.how_to_start(spool)}"
        time.sleep(_POLL_S)
    for name in sorted(_refused(spool, file) - earlier):
        reason = views.read_reason(spool.rejected / f"{name}{REASON_SUFFIX}")
        if reason is not None:
            return reason.faults[0].message
    return None


def _refused(spool: Spool, file: str) -> set[str]:
    """The names in rejected/ of the refused orders of that name, as far as they lie there."""
    own = re.compile(rf"{re.escape(file)}(\.[0-9A-Z]{{26}})?")
    names = (path.name for path in views.entries_of(spool.rejected))
    return {name for name in names if own.fullmatch(name)}


def _is_being_refused(spool: Spool, file: str, earlier: frozenset[str]) -> bool:
    """Return whether a control file is on its way to rejected/, or has just come there unexplained.

    Asked in the order in which it moves, so that it is not missed between two places.
    """
    if any(spool.claimed.glob(f"*.drop/{file}")):
        return True
    return any(
        not (spool.rejected / f"{name}{REASON_SUFFIX}").exists()
        for name in _refused(spool, file) - earlier
    )


def check(path: Path, config: Config, say: Callable[[str], None]) -> bool:
    """Check one file and say what was found; True when it would be accepted.

    Raises SenderError: it cannot be read.
    """
    try:
        found = Validation()
        if is_job_name(path.name):
            with path.open("rb") as file:
                form = gate.foreign_format(file.read(gate.HEAD_BYTES))
            size = path.stat().st_size
            whole = gate.encoded(form) if form else check_bytes(size, config.limits)
        else:
            words = "the file's name is no job's name: letters, digits, . _ - , ending in .jsonl"
            whole = Fault(code="bad_name", message=words)
        if whole is None:
            name = config.engine.served_name
            served = Served(name or None, frozenset([name] if name else []))
            found = validate_file(path, config.limits, served, keep_invalid=True)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise SenderError("unreadable", msg) from None
    if not whole:
        whole = found.fatal or check_requests(QueueLoad(0, 0), found.requests, config.limits)
    lines = [line.fault for line in found.invalid]
    for fault in [whole, *lines] if whole else lines:
        where = f"line {fault.line}: " if fault.line else ""
        say(f"{path}: {where}{fault.code}: {fault.message}")
    lenient = config.intake.on_invalid_line == "dead_letter"
    good = whole is None and found.accepted(dead_letter_lines=lenient)
    if good:
        bad = f", {len(lines):,} of them dead letters at once" if lines else ""
        say(f"{path}: ok, {counted(found.requests, 'request')}{bad}")
    return good

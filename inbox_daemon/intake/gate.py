"""The gate: whether a drop is complete, a regular file, and ours to take.

Purpose: decide on one entry of inbox/ before anything of it is copied.
Invariants: nothing is moved or written here; whatever an entry is, the answer is one
of Pass, Wait (with the reason that the status shows) and Refuse; a name is escaped
before it is put into words.
Known limit: a foreign file's writer cannot be seen where leases are refused to us;
then only quiet counts, five-fold.
"""

import errno
import os
import stat
from dataclasses import dataclass

import orjson
from pydantic import ValidationError

from inbox_daemon.contract.config import Config
from inbox_daemon.contract.documents import Fault, ReadyMarker
from inbox_daemon.contract.limits import check_bytes
from inbox_daemon.contract.names import READY_SUFFIX, is_job_name
from inbox_daemon.contract.states import Priority
from inbox_daemon.request.json_guard import holds_too_much
from inbox_daemon.spool import STUCK, Spool, durable
from inbox_daemon.spool.entries import DirEntry, Kind, Signature

_SMALL_BYTES = 1 << 16
# What opening a link or a socket raises, as a name that is too long does.
_NO_FILE = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG})
HEAD_BYTES = 8
_MAGIC = {
    bytes.fromhex("1f8b"): "gzip",
    bytes.fromhex("28b52ffd"): "zstd",
    bytes.fromhex("fd377a585a00"): "xz",
    b"BZh": "bzip2",
    bytes.fromhex("04224d18"): "lz4",
    b"PK\3\4": "zip",
    bytes.fromhex("fffe"): "UTF-16",
    bytes.fromhex("feff"): "UTF-16",
}
_PACKED = (".gz", ".zst", ".xz", ".bz2", ".lz4", ".zip")


@dataclass(frozen=True, slots=True)
class Pass:
    """The drop may be claimed: its open descriptor, which the caller closes.

    `sha256` is what the sender's own marker promises.
    """

    fd: int
    signature: Signature
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """The drop stays where it is; `why` is for the status.

    `overdue` is the fault to refuse it with once it has not changed for too long;
    None: it is left for good.
    """

    why: str
    overdue: Fault | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """The drop will never be taken as it is."""

    fault: Fault


def is_lane(name: str, lane: Priority) -> bool:
    """Return whether a folder seen in a lane is itself a lane."""
    return lane is Priority.NORMAL and name in {Priority.HIGH.value, Priority.LOW.value}


def check_kind(entry: DirEntry) -> Wait | None:
    """Judge an entry by its kind alone; None when it may be opened."""
    if entry.kind is Kind.UNKNOWN:
        return Wait("it cannot be looked at: look at the disk")
    if entry.kind is not Kind.FILE:
        return Wait(f"it is a {entry.kind}, not a regular file: only those are taken")
    if entry.nlink != 1:
        return Wait(f"it has {entry.nlink} links: remove the others, or copy the file in")
    return None


def check_entry(entry: DirEntry) -> Wait | None:
    """Judge an entry by its name and kind alone; None when it may be opened."""
    if entry.kind is not Kind.FILE:
        return check_kind(entry)
    if entry.name.startswith("."):
        return Wait("its name starts with a dot: rename it when it is complete")
    if not is_job_name(entry.name):
        remedy = "send it uncompressed" if entry.name.endswith(_PACKED) else "rename the file"
        message = (
            "a job's name has 1 to 120 of the characters A-Z a-z 0-9 . _ - , starts with a "
            f"letter or digit and ends in .jsonl; {remedy}"
        )
        return Wait(message, Fault(code="bad_name", message=message))
    return check_kind(entry)


def check_drop(
    spool: Spool, entry: DirEntry, lane: Priority, config: Config, *, settled: bool
) -> Pass | Wait | Refuse:
    """Open a drop and hold it to every sign of completeness.

    `settled` says whether its signature has been the same for long enough; with a
    matching `NAME.ready` marker that is not needed.
    """
    marker = read_marker(spool, entry.name, lane)
    if isinstance(marker, Wait) or (marker is None and not settled):
        return marker or Wait("it has not been quiet for settle_s yet")
    try:
        fd = spool.open_drop(entry.name, lane)
    except OSError as error:
        return Wait(f"it cannot be opened: {error.strerror}")
    verdict: Pass | Wait | Refuse
    try:
        verdict = _check_open(fd, entry, config, marker)
    except OSError as error:
        verdict = Wait(f"it cannot be read: {error.strerror}")
    if not isinstance(verdict, Pass):
        os.close(fd)
    return verdict


def _check_open(  # noqa: PLR0911 - each return is a verdict
    fd: int, entry: DirEntry, config: Config, marker: ReadyMarker | None
) -> Pass | Wait | Refuse:
    found = os.fstat(fd)
    # The marks of a sender that is not done: changes, missing bytes, an open descriptor.
    changed = Signature.of(found) != entry.signature
    if changed or not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        return Wait("it has just changed")
    if marker is not None and marker.bytes != found.st_size:
        message = f"the marker promises {marker.bytes} bytes and the file has {found.st_size}"
        return Wait(message, Fault(code="truncated", message=message + "; send both again"))
    if durable.has_writer(fd):
        return Wait("a process has it open for writing")
    form = foreign_format(os.pread(fd, HEAD_BYTES, 0))
    if form is not None:
        return Refuse(encoded(form))
    # The marks of an interrupted transfer: rsync's zero mtime, or a cut last line.
    why = ""
    if marker is None and found.st_mtime_ns == 0:
        why = "its transfer was interrupted (its mtime is 0)"
    elif marker is None and not _ends_whole(fd, found.st_size, config.limits.max_line_bytes):
        why = "its last line is cut: it has no newline and is no valid JSON"
    if why:
        return Wait(why, Fault(code="truncated", message=f"{why}; send the file again"))
    fault = check_bytes(found.st_size, config.limits)
    if fault is not None:
        return Refuse(fault)
    return Pass(fd, Signature.of(found), marker.sha256 if marker else None)


def _ends_whole(fd: int, size: int, max_line_bytes: int) -> bool:
    tail = os.pread(fd, 1, max(size - 1, 0))
    if tail in {b"\n", b""}:
        return True
    start = max(size - max_line_bytes - 1, 0)
    tail = os.pread(fd, size - start, start)
    last = tail[tail.rfind(b"\n") + 1 :]
    # Over a limit: the validator says so.
    if len(last) > max_line_bytes or holds_too_much(last):
        return True
    try:
        orjson.loads(last)
    except orjson.JSONDecodeError:
        return not last.strip()
    return True


def foreign_format(head: bytes) -> str | None:
    """What a file is by its first bytes, where that is surely no JSON in UTF-8."""
    return next((form for magic, form in _MAGIC.items() if head.startswith(magic)), None)


def encoded(form: str) -> Fault:
    """The refusal of a file in a foreign format."""
    message = f"its content is {form}; send it as plain JSONL, uncompressed and in UTF-8"
    return Fault(code="encoded", message=message)


def is_being_written(spool: Spool, entry: DirEntry, lane: Priority) -> bool:
    """Return whether a process surely has it open for writing; False where that is not told."""
    try:
        fd = spool.open_drop(entry.name, lane)
    except OSError:
        return False
    try:
        return durable.has_writer(fd) is True
    finally:
        os.close(fd)


def read_small(spool: Spool, name: str, lane: Priority) -> bytes | None:
    """A small file of inbox/, at most 64 KiB; None when it is not there.

    What is no regular file, or may not be opened, counts as holding no JSON.
    Raises OSError: the disk fails, which says nothing of its content.
    """
    try:
        fd = spool.open_drop(name, lane)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in STUCK | _NO_FILE:
            raise
        return b"\0"
    try:
        return os.read(fd, _SMALL_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b"\0"
    finally:
        os.close(fd)


def read_marker(spool: Spool, name: str, lane: Priority) -> ReadyMarker | Wait | None:
    """The sender's own word on its file; None when there is no marker."""
    content = read_small(spool, name + READY_SUFFIX, lane)
    if content is None:
        return None
    try:
        return ReadyMarker.model_validate(orjson.loads(content))
    except (orjson.JSONDecodeError, ValidationError):
        message = 'its marker must hold {"bytes": …, "sha256": "…"}'
        return Wait(message, Fault(code="bad_marker", message=message + "; send both again"))

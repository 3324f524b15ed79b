"""input.jsonl: where each request lies in a job's file.

Purpose: number the requests of a file and read any of them, in a few bytes each.
Invariants: the file is only read; one line is held at a time; lines of white space
are no requests.
Words: a *line* is a 1-based number in the file, an *ordinal* a 0-based count of
requests; they differ where the file has blank lines.
"""

import errno
import os
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.spool import durable

T = TypeVar("T")
_READ_BYTES = 1 << 20
_GUESS_BYTES = 8192
# How often a call is made before its error is believed, and the pause between, in seconds: a
# path to a disk that was lost for a moment costs no job.
_TRIES = 3
_PAUSE_S = 0.02
# The errors that belong to the one file that they met; the rest, such as too little memory or
# too many descriptors, is the process's own trouble.
_OF_THE_FILE = frozenset(
    {
        *(errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENODEV, errno.ENXIO),
        *(errno.EBADMSG, errno.EUCLEAN, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EROFS),
    }
)


def as_damage(path: Path, error: OSError, others: frozenset[int] = frozenset()) -> Exception:
    """Return DamagedJobError for an error that belongs to the job's file, else the error.

    `others` are further errors that do.
    """
    if error.errno not in _OF_THE_FILE | others:
        return error
    return DamagedJobError("file_unusable", f"{path} cannot be used: {error.strerror}")


def tried(path: Path, call: Callable[[], T], others: frozenset[int] = frozenset()) -> T:
    """Return what a call on a job's file returns; try again where the file fails.

    `others` are further errors that belong to the file.
    Raises DamagedJobError: it failed each time; OSError: it is not the file's own error.
    """
    for number in range(1, _TRIES + 1):
        try:
            return call()
        except OSError as error:
            if error.errno not in _OF_THE_FILE | others or number == _TRIES:
                raise as_damage(path, error, others) from None
        time.sleep(_PAUSE_S)
    raise AssertionError


class _JobFile:
    """An open file of a job; it is closed at the end of a `with` block."""

    _fd: int
    _path: Path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; may be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, path: Path, flags: int) -> None:
        self._path = path
        self._fd = tried(path, lambda: os.open(path, flags | os.O_CLOEXEC, 0o640))

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Close the file if the rest of its opening fails: no one else knows of it yet."""
        try:
            yield
        except OSError as error:
            self.close()
            raise as_damage(self._path, error) from None
        except BaseException:
            self.close()
            raise


class InputFile(_JobFile):
    """The open input file of an accepted job."""

    def __init__(self, path: Path, requests: int) -> None:
        """Open and number the file; blocks for about a second per GB.

        Raises DamagedJobError: it does not hold the `requests` that were accepted, or
        cannot be read; FileNotFoundError; OSError.
        """
        self._open(path, os.O_RDONLY)
        with self._opening():
            self._size = os.fstat(self._fd).st_size
            self.lines, self._starts = array("I"), array("Q")
            offset = 0
            with os.fdopen(os.dup(self._fd), "rb", buffering=_READ_BYTES) as file:
                file.seek(0)
                for number, line in enumerate(file, 1):
                    if not line.isspace():
                        self.lines.append(number)
                        self._starts.append(offset)
                    offset += len(line)
            if len(self.lines) != requests:
                msg = f"{path} has {len(self.lines)} requests where {requests} were accepted"
                raise DamagedJobError("input_damaged", msg)

    def __len__(self) -> int:
        return len(self.lines)

    def line_of(self, ordinal: int) -> int:
        """The 1-based line number of a request."""
        return self.lines[ordinal]

    def ordinal_of(self, line: int) -> int:
        """The request at a line number.

        Raises KeyError: that line holds no request.
        """
        ordinal = bisect_left(self.lines, line)
        if ordinal == len(self.lines) or self.lines[ordinal] != line:
            raise KeyError(line)
        return ordinal

    def count_up_to(self, line: int) -> int:
        """How many requests lie at or before a line number."""
        return bisect_right(self.lines, line)

    def size_of(self, ordinal: int) -> int:
        """A request's bytes, its newline and the blank lines after it included."""
        last = ordinal + 1 == len(self.lines)
        return (self._size if last else self._starts[ordinal + 1]) - self._starts[ordinal]

    def read(self, ordinal: int, limit: int | None = None) -> bytes:
        """A request's line, without its newline, cut at `limit` bytes.

        Raises DamagedJobError: the file cannot be read; OSError.
        """
        size = self.size_of(ordinal)
        wanted = size if limit is None else min(size, limit)
        # The line that starts at an offset, without its newline, cut at `limit` bytes.
        start = self._starts[ordinal]
        try:
            return self._read(start, wanted)
        except OSError:
            # There is no room to wait for: a network filesystem has found words of its own.
            return tried(self._path, lambda: self._read(start, wanted), durable.DISK_FULL)

    def _read(self, start: int, wanted: int) -> bytes:
        data = os.pread(self._fd, min(_GUESS_BYTES, wanted), start)
        end = data.find(b"\n")
        while end < 0 and len(data) < wanted:
            more = os.pread(self._fd, min(len(data), wanted - len(data)), start + len(data))
            if not more:
                return data
            end = more.find(b"\n")
            end = end + len(data) if end >= 0 else end
            data += more
        return data if end < 0 else data[:end]


class ResultsFile(_JobFile):
    """One job's results.part, open for appending; what is not flushed is dropped at its close."""

    def __init__(self, path: Path, committed: int) -> None:
        """Open or make the file and cut off what was never committed.

        `committed` is a length in bytes.
        Raises DamagedJobError: the file is shorter than that, so committed results are
        missing from the disk, or it cannot be used; OSError: the disk is full.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        fresh = not path.exists()
        self._open(path, flags)
        with self._opening():
            size = os.fstat(self._fd).st_size
            if size < committed:
                msg = (
                    f"{path} has {size} bytes where {committed} were committed; the disk lost data"
                )
                raise DamagedJobError("results_short", msg)
            if size > committed:
                tried(path, lambda: os.ftruncate(self._fd, committed))
            if fresh:
                tried(path, lambda: durable.sync_dir(path.parent))
        self.durable = committed
        self.written = committed
        self._pending: list[bytes] = []
        self._broken: DamagedJobError | None = None

    @property
    def broken(self) -> bool:
        """Whether the file could not be written once, and takes nothing more."""
        return self._broken is not None

    @property
    def pending_bytes(self) -> int:
        """How many bytes are not on the disk yet, those of a flush that goes on included."""
        return self.written - self.durable

    def give_up(self, damage: DamagedJobError) -> None:
        """Take nothing more: what was taken last will never be written."""
        self._broken = damage

    def append(self, *parts: bytes) -> tuple[int, int]:
        """Take one line, in one part or more; return its offset and length in bytes."""
        offset = self.written
        self._pending += parts
        self.written += sum(map(len, parts))
        return offset, self.written - offset

    def take(self) -> tuple[list[bytes], int]:
        """Hand over what is pending, and the length the file has once it is written."""
        pending, self._pending = self._pending, []
        return pending, self.written

    def flush(self, lines: list[bytes], length: int) -> None:
        """Write lines that `take` gave, in parts, and make them last; may run in a thread.

        Raises DamagedJobError: the file cannot be written, and nothing that was taken since
        its last flush will be; OSError: the disk is full: the same lines may be flushed again.
        """
        if self._broken is not None:
            raise self._broken
        if not lines:
            return
        try:
            # All of it each time: after a failed fsync the kernel may have dropped its pages.
            tried(self._path, lambda: durable.write_at(self._fd, lines, self.durable))
        except DamagedJobError as error:
            self._broken = error  # later lines would follow on a hole
            raise
        self.durable = length

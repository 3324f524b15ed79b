"""results.part: finished lines in the order in which they finish.

Purpose: append output lines, make them last, and give them back by position.
Invariants: `written` and `durable` are two names: the first is where the next line
goes, the second is what an fdatasync has confirmed; only the ledger's committed
length counts, and opening truncates to it.
Known limit: appended lines are held in memory until `flush`, so the caller flushes
by bytes as well as by time.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from inbox_daemon import durable
from inbox_daemon.errors import DamagedJobError


class Journal:
    """One job's results.part, open for appending."""

    def __init__(self, path: Path, committed: int) -> None:
        """Open or make the file and cut off what was never committed.

        `committed` is a length in bytes.
        Raises DamagedJobError: the file is shorter than that, so committed results are
        missing from the disk.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fresh = not path.exists()
        self._fd = os.open(path, flags, 0o640)
        size = os.fstat(self._fd).st_size
        if size < committed:
            os.close(self._fd)
            msg = f"{path} has {size} bytes where {committed} were committed: the disk lost data"
            raise DamagedJobError("journal_short", msg)
        if size > committed:
            os.ftruncate(self._fd, committed)
        if fresh:
            durable.sync_dir(path.parent)
        self.durable = committed
        self.written = committed
        self._pending: list[bytes] = []

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; what was not flushed is dropped."""
        self.close()

    @property
    def pending_bytes(self) -> int:
        """How many bytes a flush would write."""
        return self.written - self.durable

    def append(self, line: bytes) -> tuple[int, int]:
        """Take one line; return its offset and length in bytes."""
        position = self.written, len(line)
        self._pending.append(line)
        self.written += len(line)
        return position

    def take(self) -> tuple[list[bytes], int]:
        """Hand over what is pending, and the length the file has once it is written."""
        pending, self._pending = self._pending, []
        return pending, self.written

    def flush(self, lines: list[bytes], length: int) -> None:
        """Write lines that `take` gave and make them last; may run in a thread.

        Raises OSError: the disk is full or failing; the caller must not go on.
        """
        if not lines:
            return
        durable.write_at(self._fd, b"".join(lines), self.durable)
        self.durable = length

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""Look at processes from outside, by /proc, and end only those that a test has started.

Invariant: a process is known by its number and its start time together, so a number that
was given to another process since is left alone.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PATIENCE_S = 100.0
_LOOK_S = 0.02
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Process:
    """One process; `started` counts clock ticks since boot."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that only waits to be collected does not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.started and fields[0] not in "ZX"

    @property
    def command(self) -> str:
        """Its command line, or what it has put in that place."""
        return _read(self.pid, "cmdline").replace("\0", " ").strip()

    @property
    def rss_bytes(self) -> int:
        """How much memory it has held at most, in bytes."""
        line = next(row for row in _read(self.pid, "status").splitlines() if "VmHWM" in row)
        return int(line.split()[1]) * 1024

    @property
    def maps(self) -> str:
        """Which files are mapped into its memory."""
        return _read(self.pid, "maps")

    def kill(self) -> None:
        """End it with SIGKILL, if it is still that process."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def process(pid: int) -> Process | None:
    """The process of that number, None when there is none."""
    fields = _stat(pid)
    return None if fields is None else Process(pid, int(fields[19]))


def descendants(pid: int) -> list[Process]:
    """The children of a process, theirs, and so on; the process itself left out."""
    parents = {number: int(fields[1]) for number in _pids() if (fields := _stat(number))}
    found, family = [], {pid}
    for number, parent in sorted(parents.items(), key=lambda item: _age(item[0])):
        if parent in family and number != pid:
            family.add(number)
            found.append(number)
    return [member for number in found if (member := process(number))]


def wait_until(look: Callable[[], Found], what: str, patience_s: float = PATIENCE_S) -> Found:
    """Look until something is seen, and return it.

    Raises AssertionError after `patience_s` seconds without it.
    """
    deadline = time.monotonic() + patience_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not seen within {patience_s:g} s: {what}"
        time.sleep(_LOOK_S)
    return found


def _age(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, as proc(5) has them."""
    return _read(pid, "stat").rpartition(")")[2].split() or None


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

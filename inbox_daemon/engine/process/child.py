"""One server process of ours, from its start to the end of all its processes.

Purpose: start a command in a session of its own, read what it prints, notice its end,
and leave no process behind.
Invariants: its output is read without a pause, so that it never blocks on us; a
stop, even one that is cancelled meanwhile, has killed every process of its session; when the
daemon itself is killed, the kernel kills the first process (launch.py) and the next
daemon the others (session.py); its output fills no log (output.py), and its last lines are
kept whole all the same.
Known limits: start it from the main thread, whose end is what the kernel watches; a
process of the server that opens a session of its own is not found.
"""

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from inbox_daemon.engine.process import launch as launcher
from inbox_daemon.engine.process.diagnosis import tells
from inbox_daemon.engine.process.output import LineBudget
from inbox_daemon.engine.process.session import (
    Leader,
    Note,
    end_session,
    forget_record,
    leader_of,
    members,
    signal_all,
    write_record,
)

KEPT_LINES = 50
_KEPT_TELLING_LINES = 20
_MAX_LINE = 2000
_READ_BYTES = 16384
# How long it may take until the log says how many lines were left out.
_TELL_S = 60.0
_DRAIN_S = 1.0
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# One line a request would push out the lines that tell why a server ended.
_ACCESS = re.compile(r'"[A-Z]+ /\S* HTTP/\d(?:\.\d)?" \d{3}')
log = logging.getLogger(__name__)
output_log = logging.getLogger("inbox_daemon.engine.output")


@dataclass(frozen=True, slots=True)
class Launch:
    """A command and the whole environment that it gets."""

    argv: tuple[str, ...]
    env: dict[str, str]


class Child:
    """A started server process."""

    def __init__(self, process: asyncio.subprocess.Process, leader: Leader, record: Path) -> None:
        """Take what `start` made."""
        self._process = process
        self._leader = leader
        self._record = record
        self._lines: deque[str] = deque()
        self._telling: deque[str] = deque(maxlen=_KEPT_TELLING_LINES)
        self._reading: asyncio.Task[None] | None = None
        self._budget = LineBudget()
        self._telling_later: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls, launch: Launch, record: Path, folder: Path) -> Self:
        """Start the command; note it and the folder of its sockets in `record`.

        A command that cannot be run shows as a process that ends with 126 or 127.
        Raises OSError: no process can be made, or the record not written.
        """
        reading, writing = os.pipe()
        try:
            making = asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *launch.argv),
                stdin=asyncio.subprocess.DEVNULL,
                # Not asyncio's own pipe: with that, some Pythons' wait() also waits for
                # every process that still holds the other end.
                stdout=writing,
                stderr=writing,
                env=launch.env,
                start_new_session=True,
            )
            process = await _whole(asyncio.ensure_future(making))
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        child = cls(process, leader_of(process.pid), record)
        child._reading = asyncio.create_task(child._read(reading))
        try:
            write_record(record, Note(child._leader, str(folder)))
        except OSError:
            await child.stop(0)
            raise
        log.info("engine_started", extra={"pid": process.pid, "command": launch.argv})
        return child

    @property
    def lines(self) -> tuple[str, ...]:
        """The newest lines that it printed, oldest first, without control characters.

        Before them the newest of the older lines that tell of an error: after vLLM's
        engine process the server prints a long traceback of its own.
        """
        return (*self._telling, *self._lines)

    def pids(self) -> tuple[int, ...]:
        """All its living processes; reads /proc, some milliseconds."""
        return tuple(members(self._leader))

    async def wait(self) -> str:
        """Wait for the first process to end; returns how it did, in words."""
        return describe_exit(await self._process.wait())

    async def stop(self, grace_s: float) -> None:
        """End all its processes: TERM, `grace_s` seconds, then KILL; then forget it."""
        try:
            await end_session(self._leader, grace_s)
        finally:
            if not self.pids():
                forget_record(self._record)
                # /proc shows an ended process before the event loop has heard of its end.
                await asyncio.wait({asyncio.create_task(self._process.wait())}, timeout=_DRAIN_S)
            if self._reading is not None:
                # The pipe ends with the last process; one that cannot be killed may hold it.
                await asyncio.wait({self._reading}, timeout=_DRAIN_S)
                self._reading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._reading

    def kill(self) -> None:
        """Kill all its processes without waiting; the note of it stays for the next daemon."""
        signal_all(self._leader, signal.SIGKILL)

    async def _read(self, fd: int) -> None:
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(fd, "rb", buffering=0)
        )
        rest = b""
        try:
            while data := await stream.read(_READ_BYTES):
                *lines, rest = re.split(rb"[\r\n]+", rest + data)
                rest = rest[-_MAX_LINE:]
                for line in lines:
                    self._keep(line)
                await asyncio.sleep(0)  # a flood that is always there must not be all there is
            self._keep(rest)
        finally:
            transport.close()
            self._tell_left_out()

    def _keep(self, raw: bytes) -> None:
        line = clean(raw)
        if not line:
            return
        if _ACCESS.search(line):
            output_log.debug("engine_access", extra={"line": line})
            return
        if self._budget.take(len(line.encode()), time.monotonic()):
            self._tell_left_out()
            output_log.info("engine_line", extra={"line": line})
        elif self._telling_later is None:
            loop = asyncio.get_running_loop()
            self._telling_later = loop.call_later(_TELL_S, self._tell_left_out)
        self._lines.append(line)
        if len(self._lines) > KEPT_LINES:
            oldest = self._lines.popleft()
            if tells(oldest):
                self._telling.append(oldest)

    def _tell_left_out(self) -> None:
        """Log how much was left out since the last time, if any."""
        if self._telling_later is not None:
            self._telling_later.cancel()
            self._telling_later = None
        left_out = self._budget.told()
        if left_out is not None:
            output_log.warning("engine_lines_dropped", extra=asdict(left_out))


def clean(raw: bytes) -> str:
    """Make a line of any bytes fit for a log: no escape sequences, no control characters."""
    text = raw[-_MAX_LINE:].decode(errors="replace")
    return _CONTROLS.sub("", _ESCAPES.sub("", text)).rstrip()


def describe_exit(code: int) -> str:
    """Return in words how a process ended; a negative code is a signal's number."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


async def _whole(
    making: "asyncio.Future[asyncio.subprocess.Process]",
) -> asyncio.subprocess.Process:
    """Wait for a process that is being made; a cancellation meanwhile does not leave it behind."""
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        process = await making
        process.kill()
        await process.wait()
        raise

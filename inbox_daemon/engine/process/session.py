"""The processes of one engine: find them, end them, and know them again later.

Purpose: an engine is a tree of processes in a session of its own; this ends all of
them, also those of a daemon that was killed before it could.
Invariants: a process is known by session or group number, start time and boot, never
by its name; a number that belongs to another process by now is left alone.
Known limit: when the first process and all others of an old engine are gone, its
number has gone to a new session's first process and that one has ended as well, what
that session left behind would be taken for the engine's.  Numbers do not come round
that fast.
"""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

_PROC = Path("/proc")
_POLL_S = 0.05
_TIDY_S = 1.0
_ORPHANS_GRACE_S = 1.0
# Only a process that hangs in a driver takes longer to die from SIGKILL.
_KILL_WAIT_S = 10.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Leader:
    """The first process of an engine's session; `started` counts clock ticks since boot."""

    pid: int
    started: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Note:
    """What is written down of a running engine: who it is and where its sockets are."""

    leader: Leader
    folder: str


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    group: int
    session: int
    started: int
    dead: bool


def leader_of(pid: int) -> Leader:
    """Describe a process that was started just now as the first of its session."""
    process = _read(pid)
    return Leader(pid, process.started if process else 0, _boot_id())


def members(leader: Leader) -> list[int]:
    """Find the living processes of the leader's session, the leader included."""
    if leader.boot_id != _boot_id():
        return []
    pids = (int(name) for name in os.listdir(_PROC) if name.isdecimal())  # noqa: PTH208 - fast
    processes = [process for pid in pids if (process := _read(pid))]
    if any(found.pid == leader.pid and found.started != leader.started for found in processes):
        return []  # a number is given again only when the whole session has ended
    return [
        found.pid
        for found in processes
        if leader.pid in (found.session, found.group)
        and found.started >= leader.started
        and not found.dead
    ]


async def end_session(leader: Leader, grace_s: float) -> None:
    """End all processes of the session: TERM, `grace_s` to go by themselves, then KILL.

    A process that ignores TERM gets a moment more.  Python's resource tracker is one:
    it goes when the others have gone, and removes the shared memory that they left,
    some hundred megabytes for each vLLM.
    Returns when they are gone; cancelled, it sends KILL before it leaves.
    """
    try:
        signal_all(leader, signal.SIGTERM)
        if await _gone(leader, grace_s):
            return
        _signal([pid for pid in members(leader) if not _ignores_term(pid)], signal.SIGKILL)
        if await _gone(leader, _TIDY_S):
            return
        signal_all(leader, signal.SIGKILL)
        if not await _gone(leader, _KILL_WAIT_S):
            log.error("engine_processes_stay", extra={"pids": members(leader)})
    except asyncio.CancelledError:
        signal_all(leader, signal.SIGKILL)
        raise


def signal_all(leader: Leader, number: signal.Signals) -> None:
    """Send a signal to each process of the session."""
    _signal(members(leader), number)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def write_record(path: Path, note: Note) -> None:
    """Note the engine that runs, for `reap_orphans` of a later daemon."""
    path.write_bytes(orjson.dumps({**asdict(note.leader), "folder": note.folder}))


def read_record(path: Path) -> Note | None:
    """Read the note; None: there is none, or it cannot be read."""
    try:
        fields = orjson.loads(path.read_bytes())
        leader = Leader(int(fields["pid"]), int(fields["started"]), str(fields["boot_id"]))
        return Note(leader, str(fields["folder"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def forget_record(path: Path) -> None:
    """Note that no engine runs any more."""
    path.unlink(missing_ok=True)


async def reap_orphans(path: Path) -> tuple[int, ...]:
    """End what is left of the engine that an earlier daemon noted; returns the pids it found.

    Call it before the first start.  A record that cannot be read names no process: a
    daemon killed while writing it left an engine without any child yet, and that one
    its parent-death signal has ended.
    """
    note = read_record(path)
    if note is None:
        return ()
    pids = tuple(members(note.leader))
    if pids:
        log.warning("engine_orphans_killed", extra={"pids": pids})
        await end_session(note.leader, _ORPHANS_GRACE_S)
    remove_folder(Path(note.folder))
    forget_record(path)
    return pids


async def _gone(leader: Leader, patience_s: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while members(leader):
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _read(pid: int) -> _Process | None:
    """Read /proc/PID/stat as proc(5) has it; the name in brackets may hold anything."""
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None  # it ended meanwhile
    return _Process(
        pid=pid,
        group=int(fields[2]),
        session=int(fields[3]),
        started=int(fields[19]),
        dead=fields[0] in (b"Z", b"X"),
    )


def _ignores_term(pid: int) -> bool:
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return False
    ignored = re.search(r"^SigIgn:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(ignored and int(ignored[1], 16) >> (signal.SIGTERM - 1) & 1)


def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


SOCKET_NAME = "engine.sock"


_PREFIX = "inbox-daemon-"


# The longest name that a Unix socket can have, the zero byte left out.
_MAX_SOCKET_PATH = 107


# vLLM names its inner sockets, in the same folder, by UUIDs of this length.
_LONGEST_NAME = 36


def make_folder() -> Path:
    """Make a folder that only this user can enter.

    In systemd's `$RUNTIME_DIRECTORY`, else /run, else the temporary folder: the first
    that can be written and is not too long.  Raises OSError: none can be used.
    """
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    for parent in (given, "/run", tempfile.gettempdir()):
        length = len(os.fsencode(parent)) + len(f"/{_PREFIX}12345678/") + _LONGEST_NAME
        if parent and length <= _MAX_SOCKET_PATH and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    msg = "there is no folder for the engine's socket: /run and the temporary folder are no use"
    raise OSError(msg)


def remove_folder(folder: Path) -> None:
    """Remove such a folder; anything else, or one of another user, is left alone."""
    try:
        ours = folder.lstat().st_uid == os.geteuid() and folder.name.startswith(_PREFIX)
    except OSError:
        return
    if ours:
        shutil.rmtree(folder, ignore_errors=True)

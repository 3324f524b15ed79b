"""The spool's folders: where everything lies, and what every move relies on.

Purpose: names, creation, checks and the lock.
Invariants: all folders are on one filesystem, so a move is one rename; one daemon
works on a spool at a time.
"""

import errno
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

import orjson

from inbox_daemon.contract.errors import SpoolError
from inbox_daemon.contract.states import Priority
from inbox_daemon.spool import durable
from inbox_daemon.spool.troubles import Troubles

FOLDERS = (
    "inbox",
    "inbox/high",
    "inbox/low",
    "claimed",
    "queued",
    "running",
    "outbox",
    "rejected",
    "quarantine",
    "ledger",
)
# What senders write into and read from, by way of the spool's group.
_SHARED = {"inbox": 0o2770, "high": 0o2770, "low": 0o2770, "outbox": 0o2750, "rejected": 0o2750}
_ANY_NUMBER = 2**53 - 1


class Layout:
    """The folders of one spool, by its root."""

    def __init__(self, root: Path) -> None:
        """Name the folders; nothing is touched."""
        self.root = root
        self.inbox = root / "inbox"
        self.claimed = root / "claimed"
        self.queued = root / "queued"
        self.running = root / "running"
        self.outbox = root / "outbox"
        self.rejected = root / "rejected"
        self.quarantine = root / "quarantine"
        self.ledger = root / "ledger"
        self.troubles = Troubles(root)
        self._lock: int | None = None

    def create(self) -> None:
        """Make the folders that are missing.

        Senders write into inbox/ and read outbox/ and rejected/ by way of the
        spool's group; the rest is the daemon's own.
        Raises SpoolError: the folder cannot be made.
        """
        try:
            if not self.root.is_dir():
                self.root.mkdir(parents=True)
                self.root.chmod(0o755)  # senders pass through it, whatever our umask
            self._clear_lanes()
            for name in FOLDERS:
                self._create_folder(self.root / name)
        except OSError as error:
            msg = (
                f"the spool {self.root} cannot be made: {error.strerror}; create it for this "
                "user, or name another folder with --spool or the key `spool`"
            )
            raise SpoolError("spool_unusable", msg) from None

    @staticmethod
    def _create_folder(path: Path) -> None:
        if path.is_dir() and path.stat().st_mode & 0o777:
            return
        # Made with no rights at all, so that a crash before the chmod is seen at the next start:
        # mkdir cannot give a folder to a group.
        durable.make_dir(path, mode=0)
        path.chmod(_SHARED.get(path.name, 0o700))

    def mend_inbox(self) -> None:
        """Make inbox/ and its lanes again if a sender's script has removed them.

        Not where the rest of the spool is gone too: then its filesystem is not mounted.
        """
        if self.claimed.is_dir():
            self._clear_lanes()
            for folder in (self.inbox, *(self.lane(lane) for lane in Priority)):
                self._create_folder(folder)

    def _clear_lanes(self) -> None:
        """Set aside what senders have put in a lane's place: a file, or a link that leads away."""
        for lane in Priority:
            path = self.lane(lane)
            if (
                path != self.inbox
                and os.path.lexists(path)
                and not stat.S_ISDIR(path.lstat().st_mode)
            ):
                self.quarantine_path(path)

    def open_lane(self, priority: Priority) -> int:
        """Open a lane by way of no link, because senders may rename what lies in inbox/.

        Returns the descriptor; the caller closes it.
        Raises FileNotFoundError, NotADirectoryError: it is not there any more, see
        `mend_inbox`; OSError.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.lane(priority), flags)

    def check_lane(self, fd: int, priority: Priority) -> None:
        """Hold an open lane to what it takes to empty it.

        Raises OSError: something is mounted over it, or it is another user's folder.
        """
        path = str(self.lane(priority))
        if os.fstat(fd).st_dev != self.claimed.stat().st_dev:
            raise OSError(errno.EXDEV, "it is on another filesystem than the spool", path)
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=fd):
            raise OSError(errno.EACCES, "its files may not be moved by this user", path)

    def check(self) -> None:
        """Hold the spool to what every move relies on.

        Raises SpoolError: a folder is missing, is not one, is not ours to write, or
        lies on another filesystem.
        """
        device = self._stat_folder(self.root).st_dev
        for name in FOLDERS:
            path = self.root / name
            if self._stat_folder(path).st_dev != device:
                msg = f"{path} is on another filesystem than {self.root}; they must share one"
                raise SpoolError("spool_split", msg)
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                msg = f"{path} is not readable and writable for this user; change its owner"
                raise SpoolError("spool_unusable", msg)

    @staticmethod
    def _stat_folder(path: Path) -> os.stat_result:
        try:
            found = path.lstat()
        except OSError as error:
            msg = f"{path}: {error.strerror}; `inbox-daemon init` makes the spool's folders"
            raise SpoolError("spool_unusable", msg) from None
        if not stat.S_ISDIR(found.st_mode):
            msg = f"{path} is not a folder; move it away and run `inbox-daemon init`"
            raise SpoolError("spool_unusable", msg)
        return found

    def lock(self, holder: dict[str, object]) -> None:
        """Become the one daemon of this spool, until the process ends.

        Raises SpoolError: another one runs; says which.
        """
        path = self.root / "daemon.lock"
        self._lock = durable.lock_file(path, orjson.dumps(holder))
        if self._lock is None:
            msg = f"a daemon runs on {self.root} already: {holder_of(path)}; stop that one first"
            raise SpoolError("spool_locked", msg)

    def unlock(self) -> None:
        """Let the spool go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def free(self) -> tuple[int, int]:
        """Free bytes and inodes of the spool's filesystem, for this user."""
        found = os.statvfs(self.root)
        # A filesystem without a fixed number of inodes says that it has none at all.
        inodes = found.f_favail if found.f_files else _ANY_NUMBER
        return found.f_bavail * found.f_frsize, inodes

    # -- where things lie -----------------------------------------------------------

    def lane(self, priority: Priority) -> Path:
        """The folder into which jobs of that priority are dropped."""
        return self.inbox if priority is Priority.NORMAL else self.inbox / priority.value

    def claim_path(self, job_id: str) -> Path:
        """Where the copy of a drop lies while it is validated."""
        return self.claimed / f"{job_id}.jsonl"

    def input_path(self, job_id: str) -> Path:
        """The validated file of a running job."""
        return self.running / job_id / "input.jsonl"

    def results_path(self, job_id: str) -> Path:
        """The journal of a running job."""
        return self.running / job_id / "results.part"

    def build_path(self, job_id: str) -> Path:
        """Where the folder that will be published is built."""
        return self.running / job_id / "outbox"

    def quarantine_path(self, path: Path) -> Path:
        """Move what cannot be understood to quarantine/; return where it is now."""
        target = self.quarantine / path.name
        number = 1
        while durable.exists(target):
            number += 1
            target = self.quarantine / f"{path.name}.{number}"
        durable.move(path, target)
        return target

    # -- removal --------------------------------------------------------------------

    def remove_whole(self, paths: Sequence[Path]) -> None:
        """Remove files and folders of the spool, all that they hold or nothing.

        Raises OSError: something cannot be removed.
        """
        durable.remove_whole(paths, self.claimed / f"retained.{secrets.token_hex(8)}")

    def removed_in_part(self) -> list[Path]:
        """What `remove_whole` has taken out of sight and not removed, as after a crash."""
        return sorted(self.claimed.glob("retained.*"))

    def quarantined(self) -> list[str]:
        """The names of what was set aside, in printable ASCII."""
        return sorted(ascii(path.name)[1:-1] for path in self.quarantine.iterdir())


def claim_of(path: Path) -> str:
    """The claim to which something in claimed/ belongs."""
    return path.name[:26]


def holder_of(lock_path: Path) -> str:
    """Say who holds the lock at `lock_path`, for a message."""
    try:
        holder = orjson.loads(lock_path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return "an unknown process"
    return f"process {holder.get('pid')} since {holder.get('since')}"

"""The spool: which folders there are, and every move of a job between them.

Purpose: the named moves of a job's life, each in the safe order and each repeatable
after a crash in its middle.
Invariants: the folder in which a job lies is its state (states.py); all folders are
on one filesystem, so a move is one rename; nothing in outbox/ or rejected/ is ever
overwritten, except a `status.json` by its newer self; what cannot be understood goes
to quarantine/, never away.

    inbox/            what senders drop; never trusted; high/ and low/ in it are the
                      other two priorities
    claimed/          <id>.jsonl               our copy, while it is validated
                      <id>.reason.json         a rejection that is being carried out
                      <id>.drop.NAME           a drop that is being taken away
    queued/           <id>.jsonl
    running/<id>/     input.jsonl  results.part  outbox/ (the folder being built)
    outbox/NAME/      output.jsonl  errors.jsonl  retry.jsonl  status.json
    outbox/status.json
    rejected/         NAME.jsonl  NAME.reason.json
    quarantine/       what could not be read
    ledger/           LMDB (ledger.py)
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import orjson

from inbox_daemon import durable
from inbox_daemon.errors import SpoolError
from inbox_daemon.settling import Signature
from inbox_daemon.states import Event, JobState, Priority, after

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
# What lies in claimed/ beside the copies, by the ULID of its claim.
_ASIDE = re.compile(r"[0-9A-Z]{26}\.(high|normal|low)\.drop\.")
_NOTE = re.compile(r"[0-9A-Z]{26}\.reason\.json$")
STATUS = "status.json"
OUTPUT = "output.jsonl"


class Spool:
    """One spool, by its root folder."""

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
        self._lock: int | None = None

    # -- the whole spool ------------------------------------------------------------

    def create(self) -> None:
        """Make the folders that are missing.

        Senders write into inbox/ and read outbox/ and rejected/ by way of the
        spool's group; the rest is the daemon's own.
        Raises SpoolError: the folder cannot be made.
        """
        try:
            self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
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
        if path.is_dir():
            return
        durable.make_dir(path)
        path.chmod(_SHARED.get(path.name, 0o700))

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
            msg = f"another daemon runs on {self.root}: {holder_of(path)}; stop that one first"
            raise SpoolError("spool_locked", msg)

    def unlock(self) -> None:
        """Let the spool go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def free(self) -> tuple[int, int]:
        """Free bytes and inodes of the spool's filesystem, for this user."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize, found.f_favail

    # -- a drop ---------------------------------------------------------------------

    def lane(self, priority: Priority) -> Path:
        """The folder into which jobs of that priority are dropped."""
        return self.inbox if priority is Priority.NORMAL else self.inbox / priority.value

    def open_drop(self, name: str, priority: Priority) -> int:
        """Open a file of inbox/ without following a link or waiting for a FIFO.

        Returns the descriptor; the caller closes it.
        """
        folder = os.open(self.lane(priority), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return os.open(name, flags, dir_fd=folder)
        finally:
            os.close(folder)

    def claim(self, fd: int, job_id: str, limit: int) -> tuple[str, int]:
        """Copy an open drop into claimed/; return its sha256 and length in bytes."""
        copied = durable.copy_hashing(fd, self.claim_path(job_id), limit)
        durable.sync_dir(self.claimed)
        return copied

    def claim_lines(self, job_id: str, lines: Iterator[bytes]) -> tuple[str, int]:
        """Write a claim of our own making; return its sha256 and length in bytes."""
        made = durable.write_hashing(self.claim_path(job_id), lines)
        durable.sync_dir(self.claimed)
        return made

    def claim_path(self, job_id: str) -> Path:
        """Where the copy of a drop lies while it is validated."""
        return self.claimed / f"{job_id}.jsonl"

    def drop_claim(self, job_id: str) -> None:
        """Remove a copy that is not wanted; its drop still lies in inbox/."""
        durable.remove_file(self.claim_path(job_id))

    def drop(self, source: Path, marker: bytes, priority: Priority = Priority.NORMAL) -> None:
        """Put a file into inbox/ as a careful sender does: the marker, then the whole file.

        Raises FileExistsError: a file of that name waits there; OSError.
        """
        lane = self.lane(priority)
        target = lane / source.name
        if target.exists():
            raise FileExistsError(errno.EEXIST, "the name is taken", str(target))
        hidden = lane / f".{source.name}.{os.getpid()}"
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            durable.copy_hashing(fd, hidden, os.fstat(fd).st_size)
        except OSError:
            hidden.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        hidden.chmod(0o640)
        durable.replace_file(lane / f"{source.name}.ready", marker, lane)
        durable.move(hidden, target)

    def drop_note(self, name: str, content: bytes, priority: Priority = Priority.NORMAL) -> None:
        """Put a small file into inbox/, such as NAME.cancel or NAME.options.json.

        Raises OSError: inbox/ cannot be written.
        """
        lane = self.lane(priority)
        durable.replace_file(lane / name, content, lane)

    def take_away(self, name: str, priority: Priority, signature: Signature, job_id: str) -> bool:
        """Remove a drop whose content we hold; False when it is gone, or another file by now."""
        aside = self.seize(name, priority, signature, job_id)
        if aside is not None:
            durable.remove_file(aside)
        return aside is not None

    def seize(
        self, name: str, priority: Priority, signature: Signature, job_id: str
    ) -> Path | None:
        """Move a drop out of its sender's reach; None when it is gone, or another file by now.

        The rename decides: what is seized is what was looked at, and a newer file of
        the same name stays.
        """
        aside = self.claimed / f"{job_id}.{priority}.drop.{name}"
        try:
            durable.rename_noreplace(self.lane(priority) / name, aside)
        except FileNotFoundError:
            return None
        if _same_file(aside, signature):
            return aside
        self._put_back(aside)
        return None

    def _put_back(self, aside: Path) -> None:
        origin, name = aside.name.split(".drop.", 1)
        lane = self.lane(Priority(origin.rpartition(".")[2]))
        try:
            durable.rename_noreplace(aside, lane / name)
        except FileExistsError:
            self.set_aside(aside)

    def remove_drop(self, name: str, priority: Priority) -> None:
        """Remove a file of inbox/ that has done its work, such as NAME.jsonl.ready."""
        durable.remove_file(self.lane(priority) / name)

    # -- the moves of a job ---------------------------------------------------------

    def admit(self, job_id: str) -> JobState:
        """Move a claimed job to queued/."""
        durable.move(self.claim_path(job_id), self.queued / f"{job_id}.jsonl")
        return after(JobState.CLAIMED, Event.ADMIT)

    def start(self, job_id: str) -> JobState:
        """Move a queued job to running/<id>/."""
        durable.make_dir(self.running / job_id)
        durable.move(self.queued / f"{job_id}.jsonl", self.input_path(job_id))
        return after(JobState.QUEUED, Event.START)

    def publish(self, job_id: str, name: str) -> str:
        """Move the folder built in running/<id>/outbox to outbox/NAME; return its name.

        A folder that stands there, other than an empty one or the notice of a
        refusal, is left alone and the results go beside it, with the id in the name.
        """
        built = self.build_path(job_id)
        if not built.is_dir():
            return self.published_as(job_id, name) or name
        after(JobState.RUNNING, Event.PUBLISH)
        self.clear_notice(name)
        try:
            durable.move(built, self.outbox / name)
        except FileExistsError:
            name = f"{name}.{job_id}"
            durable.move(built, self.outbox / name)
        return name

    def discard(self, job_id: str) -> None:
        """Remove running/<id> of a job that was published."""
        durable.remove_tree(self.running / job_id)

    def set_aside(self, path: Path) -> Path:
        """Move what cannot be understood to quarantine/; return where it is now."""
        target = self.quarantine / path.name
        number = 1
        while os.path.lexists(target):
            number += 1
            target = self.quarantine / f"{path.name}.{number}"
        durable.move(path, target)
        return target

    def input_path(self, job_id: str) -> Path:
        """The validated file of a running job."""
        return self.running / job_id / "input.jsonl"

    def results_path(self, job_id: str) -> Path:
        """The journal of a running job."""
        return self.running / job_id / "results.part"

    def build_path(self, job_id: str) -> Path:
        """Where the folder that will be published is built."""
        return self.running / job_id / "outbox"

    # -- rejections -----------------------------------------------------------------

    def rejected_as(self, stem: str, suffix: str, job_id: str) -> str:
        """The file stem under which a rejection of `stem` will lie, taken by none yet."""
        taken = [f"{stem}{suffix}", f"{stem}.reason.json"]
        if any(os.path.lexists(self.rejected / name) for name in taken):
            return f"{stem}.{job_id}"
        return stem

    def reject(self, job_id: str, file: str, reason: bytes, source: Path) -> None:
        """Carry out a rejection: the file, then its reason, into rejected/.

        The reason is written first, beside the claims, so that a crash at any point
        is finished by `finish_rejections`.
        """
        note = self.claimed / f"{job_id}.reason.json"
        durable.write_file(note, reason)
        durable.sync_dir(self.claimed)
        after(JobState.CLAIMED, Event.REJECT)
        durable.move(source, self.rejected / file)
        durable.move(note, self.rejected / _reason_name(file))

    def finish_rejections(self) -> None:
        """After a crash: complete the rejections that were being carried out.

        A reason whose file never left inbox/ is dropped: the next scan finds the
        file again.
        """
        for note in sorted(self.claimed.iterdir()):
            if not _NOTE.match(note.name):
                continue
            file = _file_of(note)
            job_id = note.name.removesuffix(".reason.json")
            if file and self.claim_path(job_id).exists():
                durable.move(self.claim_path(job_id), self.rejected / file)
            if file and os.path.lexists(self.rejected / file):
                durable.move(note, self.rejected / _reason_name(file))
            else:
                durable.remove_file(note)

    def finish_drops(self) -> None:
        """After a crash: put drops that were being taken away back into inbox/.

        What was accepted from them is recognised by its content and not run again.
        """
        for aside in sorted(self.claimed.iterdir()):
            if _ASIDE.match(aside.name):
                self._put_back(aside)

    # -- the outbox -----------------------------------------------------------------

    def published_as(self, job_id: str, name: str) -> str | None:
        """The outbox folder that holds this job's results, None when there is none."""
        for candidate in (name, f"{name}.{job_id}"):
            status = self.read_status(candidate)
            if status and status.get("id") == job_id and self.holds_results(candidate):
                return candidate
        return None

    def holds_results(self, name: str) -> bool:
        """Say whether outbox/NAME is a job's folder that was not collected yet.

        A folder without output.jsonl is only a notice (a refusal, or the answer to
        a re-delivery), an empty one was collected by a fetch that removes files.
        """
        return (self.outbox / name / OUTPUT).exists() or self._holds_strangers(name)

    def _holds_strangers(self, name: str) -> bool:
        folder = self.outbox / name
        return folder.is_dir() and any(entry.name != STATUS for entry in folder.iterdir())

    def read_status(self, name: str) -> dict[str, object] | None:
        """outbox/NAME/status.json, None when it is missing or unreadable."""
        try:
            found = orjson.loads((self.outbox / name / STATUS).read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return None
        return found if isinstance(found, dict) else None

    def put_notice(self, name: str, document: bytes) -> bool:
        """Show a job's status in outbox/NAME; False where results or anything else lie."""
        folder = self.outbox / name
        if self.holds_results(name) or (os.path.lexists(folder) and not folder.is_dir()):
            return False
        if folder.is_dir():
            durable.replace_file(folder / STATUS, document, self.claimed)
            return True
        built = self.claimed / f"notice.{name}"
        durable.remove_tree(built)
        durable.make_dir(built)
        durable.write_file(built / STATUS, document)
        self.share(built)
        durable.move(built, folder)
        return True

    def share(self, folder: Path) -> None:
        """Make a folder that is about to go to outbox/ last, readable by that one's group."""
        group = self.outbox.stat().st_gid
        for path in (*folder.iterdir(), folder):
            durable.share(path, group)
        durable.sync_dir(folder)

    def clear_notice(self, name: str) -> None:
        """Remove outbox/NAME when it is only a notice, or empty."""
        folder = self.outbox / name
        if folder.is_dir() and not self.holds_results(name):
            durable.remove_file(folder / STATUS)
            durable.remove_empty_dir(folder)

    def write_service_status(self, document: bytes) -> None:
        """Replace outbox/status.json atomically."""
        durable.replace_file(self.outbox / STATUS, document, self.claimed)

    def published_folders(self) -> Iterator[tuple[str, float, int]]:
        """Each folder of outbox/: its name, when it was published, its bytes."""
        for folder in sorted(self.outbox.iterdir()):
            if folder.is_dir() and not folder.is_symlink() and (folder / STATUS).exists():
                size = sum(path.lstat().st_size for path in folder.iterdir())
                yield folder.name, (folder / STATUS).lstat().st_mtime, size

    def remove_published(self, name: str) -> None:
        """Remove a folder of outbox/: out of sight first, so that none is seen in part."""
        aside = self.claimed / f"retained.{name}"
        durable.remove_tree(aside)
        durable.move(self.outbox / name, aside)
        durable.remove_tree(aside)

    def rejections(self) -> Iterator[tuple[list[str], float, int]]:
        """Each refusal in rejected/: its files' names, when, and its bytes."""
        for reason in sorted(self.rejected.glob("*.reason.json")):
            stem = reason.name.removesuffix(".reason.json")
            names = [n for n in (f"{stem}.jsonl", stem, reason.name) if self._refused(n)]
            size = sum((self.rejected / name).lstat().st_size for name in names)
            yield names, reason.lstat().st_mtime, size

    def _refused(self, name: str) -> bool:
        return os.path.lexists(self.rejected / name)

    def remove_rejection(self, names: list[str]) -> None:
        """Remove the files of one refusal, its reason last."""
        for name in names:
            if (self.rejected / name).is_dir() and not (self.rejected / name).is_symlink():
                durable.remove_tree(self.rejected / name)
            else:
                durable.remove_file(self.rejected / name)

    def quarantined(self) -> list[str]:
        """The names of what was set aside."""
        return sorted(path.name for path in self.quarantine.iterdir())

    # -- what is there --------------------------------------------------------------

    def queued_ids(self) -> list[str]:
        """The ids of the queued jobs, oldest first."""
        return sorted(path.stem for path in self.queued.glob("*.jsonl"))

    def running_ids(self) -> list[str]:
        """The ids of the jobs in running/, oldest first, leftovers included."""
        return sorted(path.name for path in self.running.iterdir() if path.is_dir())

    def leftover_claims(self) -> Iterator[Path]:
        """What a crash left in claimed/ after rejections and drops were finished."""
        yield from sorted(self.claimed.iterdir())


def holder_of(lock_path: Path) -> str:
    """Say who holds the lock at `lock_path`, for a message."""
    try:
        holder = orjson.loads(lock_path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return "an unknown process"
    return f"process {holder.get('pid')} since {holder.get('since')}"


def _reason_name(file: str) -> str:
    """NAME.jsonl has NAME.reason.json; a control file NAME.cancel has NAME.cancel.reason.json."""
    return f"{file.removesuffix('.jsonl')}.reason.json"


def _file_of(note: Path) -> str | None:
    """Which file a reason speaks of; None when the crash came before it was whole."""
    try:
        return str(orjson.loads(note.read_bytes())["file"])
    except (orjson.JSONDecodeError, KeyError):
        return None


def _same_file(path: Path, signature: Signature) -> bool:
    """Compare all but the ctime, which our own rename has just changed."""
    found = Signature.of(path.lstat())
    return (found.dev, found.ino, found.size, found.mtime_ns) == (
        signature.dev,
        signature.ino,
        signature.size,
        signature.mtime_ns,
    )

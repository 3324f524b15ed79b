"""inbox/: opening, claiming and taking away drops; dropping, for our own command line.

Purpose: every effect on what senders share with us.
Invariants: nothing of a drop is trusted before it is a claim of our own; what is
removed is what was looked at, never a newer file of the same name.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from inbox_daemon.contract.states import Priority
from inbox_daemon.spool import durable
from inbox_daemon.spool.entries import Signature
from inbox_daemon.spool.layout import Layout, claim_of
from inbox_daemon.spool.troubles import STUCK

# A drop that is being taken away, in claimed/, by the ULID of its claim; and one that was.
_ASIDE = re.compile(r"[0-9A-Z]{26}\.(high|normal|low)\.drop$")
_GONE = re.compile(r"[0-9A-Z]{26}\.(high|normal|low)\.gone$")


class Inbox(Layout):
    """What is done to drops and claims."""

    def open_drop(self, name: str, priority: Priority) -> int:
        """Open a file of inbox/ without following a link or waiting for a FIFO.

        Returns the descriptor; the caller closes it.
        """
        folder = self.open_lane(priority)
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

    def discard_claim(self, job_id: str) -> None:
        """Remove a copy that is not wanted; its drop still lies in inbox/."""
        durable.remove_file(self.claim_path(job_id))

    def leftover_claims(self) -> Iterator[Path]:
        """What a crash left in claimed/ after rejections and drops were finished."""
        yield from sorted(self.claimed.iterdir())

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

    def take_away(
        self,
        name: str,
        priority: Priority,
        signature: Signature,
        job_id: str,
        sidecars: Sequence[str] = (),
    ) -> bool:
        """Remove a drop whose content we hold, with the files that speak of it.

        False when it is gone, or another file by now.
        """
        aside = self.take_out(name, priority, signature, job_id, sidecars)
        if aside is None:
            return False
        # A crash before this rename puts all of it back, one after it nothing: a sidecar
        # that stayed alone would speak of the next file of that name.
        gone = aside.parent.with_suffix(".gone")
        durable.move(aside.parent, gone)
        durable.remove_tree(gone)
        return True

    def take_out(
        self,
        name: str,
        priority: Priority,
        signature: Signature,
        job_id: str,
        sidecars: Sequence[str] = (),
    ) -> Path | None:
        """Move a drop out of its sender's reach; None when it is gone, or another file by now.

        The rename decides: what is taken is what was looked at, and a newer file of
        the same name stays.  The sidecars that are there come along, beside it, and go
        where their file is gone.
        Raises OSError, one of `STUCK`: it may not be moved.
        """
        # In a folder of its own, because a name may be as long as the filesystem allows.
        aside = self.claimed / f"{job_id}.{priority}.drop" / name
        durable.make_dir(aside.parent)
        try:
            with self._anchored(priority) as lane:
                try:
                    durable.rename_noreplace(lane / aside.name, aside)
                except FileNotFoundError:
                    self._take_sidecars(lane, sidecars, aside.parent)
                    durable.remove_tree(aside.parent)
                    return None
                found = Signature.of(aside.lstat())
                # Our own rename has just changed the ctime.
                if found._replace(ctime_ns=signature.ctime_ns) == signature:
                    self._take_sidecars(lane, sidecars, aside.parent)
                    return aside
                self._put_back(aside)
                return None
        except (FileNotFoundError, NotADirectoryError):  # the lane itself is gone
            return None
        finally:
            durable.remove_empty_dir(aside.parent)

    @contextlib.contextmanager
    def _anchored(self, priority: Priority) -> Iterator[Path]:
        """A lane, as a path that leads to it whatever is put in its place meanwhile."""
        fd = self.open_lane(priority)
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    @staticmethod
    def _take_sidecars(lane: Path, sidecars: Sequence[str], aside: Path) -> None:
        for sidecar in sidecars:
            path = lane / sidecar
            try:
                if not stat.S_ISDIR(path.lstat().st_mode):  # a folder is no marker
                    durable.rename_noreplace(path, aside / sidecar)
            except OSError as error:
                if error.errno not in STUCK | {errno.ENOENT, errno.ENAMETOOLONG}:
                    raise

    def _put_back(self, aside: Path) -> None:
        with self._anchored(Priority(aside.parent.name.split(".")[1])) as lane:
            try:
                durable.rename_noreplace(aside, lane / aside.name)
            except FileExistsError:
                if durable.same_content(aside, lane / aside.name):  # it was sent again
                    durable.remove_file(aside)
                else:
                    self.quarantine_path(aside)
        durable.remove_empty_dir(aside.parent)

    def remove_drop(self, name: str, priority: Priority) -> None:
        """Remove a file of inbox/ that has done its work, such as NAME.cancel.

        Raises OSError, one of `STUCK`: it may not be removed.
        """
        with self._anchored(priority) as lane:
            durable.remove_file(lane / name)

    def finish_drops(self, left: set[str]) -> None:
        """After a crash: put drops that were being taken away back into inbox/.

        What was accepted from them is recognised by its content and not run again.  Each is
        tried alone: the claims of those that stay are added to `left`, and the claims that are
        in it already are left alone.
        """
        for folder in sorted(self.claimed.iterdir()):
            if claim_of(folder) in left:
                continue
            if _ASIDE.match(folder.name):
                with self.troubles.alone(folder, "put back into inbox/"):
                    for aside in folder.iterdir():
                        self._put_back(aside)
                    durable.remove_empty_dir(folder)
            elif _GONE.match(folder.name):
                with self.troubles.alone(folder, "removed"):
                    durable.remove_tree(folder)
            else:
                continue
            if folder in self.troubles:
                left.add(claim_of(folder))

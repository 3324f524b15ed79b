"""outbox/: what senders fetch.

Purpose: show results, notices and the service's health whole or not at all.
Invariants: a published folder is never changed; a notice (a folder with nothing but
status.json) may be replaced by its newer self and gives way to results.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import orjson

from inbox_daemon.contract.names import STATUS
from inbox_daemon.spool import durable
from inbox_daemon.spool.layout import Layout


class Outbox(Layout):
    """What is done to the outbox."""

    def published_as(self, job_id: str, name: str) -> str | None:
        """The outbox folder that holds this job's results, None when there is none."""
        for candidate in (name, f"{name}.{job_id}"):
            status = self.read_status(candidate)
            if status and status.get("id") == job_id and self.holds_results(candidate):
                return candidate
        return None

    def holds_results(self, name: str) -> bool:
        """Return whether outbox/NAME is a job's folder that was not collected yet.

        A folder without output.jsonl is only a notice (a refusal, or the answer to
        a re-delivery), an empty one was collected by a fetch that removes files.  One that
        cannot be read may hold anything.
        """
        folder = self.outbox / name
        try:
            return any(entry.name != STATUS for entry in folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # another user's, as likely as not: it is not ours to replace
            return True

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
        if self.holds_results(name) or (durable.exists(folder) and not durable.is_folder(folder)):
            return False
        with contextlib.suppress(FileNotFoundError):  # it may be collected at any moment
            durable.replace_file(folder / STATUS, document, self.claimed)
            return True
        built = self.claimed / f"notice.{name}"
        durable.remove_tree(built)
        try:
            durable.make_dir(built)
            durable.write_file(built / STATUS, document)
            self.share(built)
            durable.move(built, folder)
        except OSError:
            with contextlib.suppress(OSError):
                durable.remove_tree(built)
            raise
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
        if durable.is_folder(folder) and not self.holds_results(name):
            durable.remove_file(folder / STATUS)
            durable.remove_empty_dir(folder)

    def write_service_status(self, document: bytes) -> None:
        """Replace outbox/status.json atomically; on a full disk, over its old content.

        Raises OSError: it cannot be written.
        """
        path = self.outbox / STATUS
        try:
            durable.replace_file(path, document, self.claimed)
        except OSError as error:
            if error.errno not in durable.DISK_FULL or not path.exists():
                raise
            durable.overwrite(path, document)

    def published_folders(self) -> Iterator[tuple[str, float, int]]:
        """Each folder of outbox/: its name, when it was published, its bytes."""
        for folder in sorted(self.outbox.iterdir()):
            found = None
            # A reader that fetches it may remove it at any moment.
            gone = contextlib.suppress(FileNotFoundError, NotADirectoryError)
            with self.troubles.alone(folder, "looked at"), gone:
                at = (folder / STATUS).lstat().st_mtime
                size = sum(path.lstat().st_size for path in folder.iterdir())
                found = None if folder.is_symlink() else (folder.name, at, size)
            if found is not None:
                yield found

    def remove_published(self, name: str) -> None:
        """Remove a folder of outbox/ with all that it holds, out of sight first, or leave it.

        Raises OSError: something of it cannot be removed.
        """
        self.remove_whole([self.outbox / name])

"""What of the spool could not be dealt with, and why.

Purpose: let an error belong to the one entry that it met: a step is tried alone, the others
go on, and the health names what waits.
Invariants: an entry is logged once for each reason until it is dealt with; too little memory
and too many descriptors are the process's own trouble and pass through.
Threads: any may use it.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inbox_daemon.contract.names import escape

log = logging.getLogger(__name__)

# The errors that no file has caused.
OWN_ERRORS = frozenset({errno.ENOMEM, errno.EMFILE, errno.ENFILE})
# Why a file cannot be moved though it lies there: immutable, another user's folder, a mount.
STUCK = frozenset({errno.EPERM, errno.EACCES, errno.EXDEV, errno.EBUSY})


class Troubles:
    """The entries of a spool that a step could not deal with."""

    def __init__(self, root: Path) -> None:
        """Know of none yet, below `root`."""
        self._root = root
        # By the entry and by what could not be done to it.
        self._words: dict[tuple[Path, str], str] = {}

    def __contains__(self, path: Path) -> bool:
        return any(path == other for other, _ in list(self._words))

    @contextmanager
    def alone(self, path: Path, done: str) -> Iterator[None]:
        """Let an OSError in the block concern this entry only.

        `done` is what the block does to it, as in "removed".  Once the block comes to its end
        the entry is in no trouble of that kind any more.
        """
        try:
            yield
        except OSError as error:
            if error.errno in OWN_ERRORS:
                raise
            self.note(path, done, error)
        else:
            self._words.pop((path, done), None)

    def note(self, path: Path, done: str, error: OSError) -> None:
        """Take note of an entry that could not be `done`, and log it if that is new."""
        remedy = "give it to the daemon's user, or remove it" if error.errno in STUCK else ""
        words = (
            f"{escape(str(path.relative_to(self._root)))} cannot be {done}: {error.strerror}; "
            f"{remedy or 'look at the disk'}"
        )
        if self._words.get((path, done)) != words:
            self._words[path, done] = words
            log.warning("left_in_place", extra={"path": str(path), "reason": words})

    def below(self, folder: Path) -> list[Path]:
        """The entries of a folder that are in trouble."""
        return [path for path, _ in list(self._words) if path.parent == folder]

    def words(self) -> tuple[str, ...]:
        """What is wrong, by entry; an entry that is gone by now is forgotten."""
        for key in list(self._words):
            try:
                key[0].lstat()
            except FileNotFoundError:
                self._words.pop(key, None)
            except OSError:
                continue
        return tuple(self._words.values())

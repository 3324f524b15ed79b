"""Hints that something was dropped, and the scan that decides.

Purpose: `scan` reads a folder; `Watcher` wakes the scan early.
Invariants: a hint proves nothing and its absence proves nothing; whatever happens to
the watcher, the next scan sees every file.  Nothing here raises into watchdog's
threads, and a watcher that cannot watch says so instead of failing.  `check`, called
with what each scan saw, finds a watcher that stopped reporting and rebuilds it: the
folder was deleted, replaced or mounted over (its device and inode changed), or one of
watchdog's threads is dead.
Known limits: a filesystem that reports no events (a network share written elsewhere,
procfs) gives no hints and looks watched.  After an overflow of the kernel's queue the
events in it are lost, the watch goes on.  A folder deleted and made again with the
same inode number is noticed by its emitter's end alone.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

from watchdog.events import (
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from inbox_daemon.spool.entries import Identity

log = logging.getLogger(__name__)

# A drop arrives by being created, renamed or closed after writing.  Each further kind
# would cost: a slow writer's modifications come by the thousand, and opening or reading
# a file is what the intake itself does.
HINTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileMovedEvent,
    FileClosedEvent,
    DirMovedEvent,
]


class _Hinter(FileSystemEventHandler):
    """Turns each event into a hint; an exception here would end all events for good."""

    def __init__(self, on_hint: Callable[[], None]) -> None:
        self._on_hint = on_hint
        self._complained = False

    def dispatch(self, event: FileSystemEvent) -> None:  # noqa: ARG002 - what happened is no matter
        try:
            self._on_hint()
        except Exception:  # the edge of watchdog's loop
            if not self._complained:
                log.exception("hint_failed")
            self._complained = True


class Watcher:
    """Wakes the scan when something seems to have been dropped into its folders.

    `on_hint` is called in a thread of watchdog's, once for each event: it must be quick
    and thread-safe, such as `loop.call_soon_threadsafe(event.set)`.  `check` and `close`
    may block for some milliseconds and are called by one thread at a time.
    """

    def __init__(
        self, folders: Iterable[str | os.PathLike[str]], on_hint: Callable[[], None]
    ) -> None:
        """Start watching at once as far as that is possible; `watching` says whether it was."""
        self._hinter = _Hinter(on_hint)
        self._folders = [Path(folder) for folder in folders]
        self._observer: BaseObserver | None = None
        self._watched: dict[Path, Identity] = {}
        self._problem: str | None = None
        self._build()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def watching(self) -> bool:
        """True while every folder is watched, as far as the last check could see."""
        return self._problem is None

    @property
    def reason(self) -> str | None:
        """Why hints may be missing, as a sentence for the operator; None while watching."""
        return self._problem

    def check(
        self, identities: Mapping[str | os.PathLike[str], Identity | None] | None = None
    ) -> bool:
        """Find out whether hints still come, and rebuild the observer if they may not.

        `identities` is what each scan saw of its folder (None: it could not be opened);
        a folder that is not in it is looked at here.  Returns True if the observer was
        rebuilt.  Never raises: without hints the scan still decides.
        """
        given = {Path(folder): identity for folder, identity in (identities or {}).items()}
        seen = {
            folder: given[folder] if folder in given else _look(folder) for folder in self._folders
        }
        silent = self._problem
        if self._observer is not None:
            replaced = (f for f, identity in seen.items() if identity != self._watched.get(f))
            folder = next(replaced, None)
            if folder is not None:
                silent = f"{folder} is not the folder that was watched"
            elif not all(thread.is_alive() for thread in threads_of(self._observer)):
                silent = "a thread of the watcher has ended"
        if silent is None:
            return False
        before = self._problem
        self._build()
        # A rebuild is tried at each scan, so only what is new is worth a line.
        if self._problem is None:
            log.info("watch_renewed", extra={"reason": silent})
        elif self._problem != before:
            log.warning("watch_lost", extra={"reason": self._problem})
        return True

    def close(self) -> None:
        """Stop watching; a later check would begin again."""
        observer, self._observer = self._observer, None
        self._watched = {}
        self._problem = "the watcher is closed; drops are found by the regular scan"
        if observer is not None:
            try:
                observer.stop()
                observer.join()
            except (OSError, RuntimeError) as error:  # it never started, or ended half-way
                log.debug("watch_stop_failed", extra={"reason": str(error)})

    def _build(self) -> None:
        self.close()
        self._problem = None
        try:
            self._observer = Observer()
            self._observer.start()
        except (OSError, RuntimeError) as error:  # no more inotify instances, or threads
            self._complain("no folder", error)
            return
        for folder in self._folders:
            # Identity first: a folder replaced between the two lines is then watched under
            # the old one's identity, which the next check notices.
            identity = _look(folder)
            try:
                # watchdog does not follow a link at the end of the path.
                self._observer.schedule(self._hinter, str(folder.resolve()), event_filter=HINTS)
            except (OSError, RuntimeError) as error:
                self._complain(str(folder), error)
            else:
                if identity is not None:
                    self._watched[folder] = identity

    def _complain(self, what: str, error: Exception) -> None:
        self._problem = f"{what} cannot be watched ({error}); drops are found by the regular scan"


def threads_of(observer: BaseObserver) -> list[threading.Thread]:
    """Return every thread that must live for hints to come.

    The observer dispatches, its emitters translate, and a reader, which watchdog keeps
    in a private attribute that differs by release, reads from the kernel.
    """
    holders: list[threading.Thread] = [observer, *observer.emitters]
    found = {id(thread): thread for thread in holders}
    for holder in holders:
        for value in vars(holder).values():
            if isinstance(value, threading.Thread):
                found[id(value)] = value
    return list(found.values())


def _look(folder: Path) -> Identity | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return Identity(status.st_dev, status.st_ino)

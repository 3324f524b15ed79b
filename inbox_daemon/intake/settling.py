"""Which drops have stopped changing.

Purpose: from what each scan of a folder saw, say which files kept one signature for
long enough to be taken.  A writer that pauses looks finished, so this is one sign of
a complete drop among several; the intake asks for a read lease as well.
Invariants: a name is never settled by its first sighting; any change of its signature
restarts the count; a name that a scan did not see is forgotten, so that what comes
back under it counts from the start.  One scan costs time and memory in proportion to
its names.
`Rota` bounds how many names there are at once.
Known limits: a file that is rewritten in place with the same size within one tick of
the filesystem's clock keeps its signature; time spent in suspend does not count where
the monotonic clock stops for it.
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from inbox_daemon.spool.entries import Signature

FOREIGN_FACTOR = 5
Item = TypeVar("Item")


class Sighting(NamedTuple):
    """One file as one scan saw it.

    `own` is False where no read lease may be asked for, as for another user's file:
    then quiet is the only sign, and more of it is wanted.
    """

    name: str
    signature: Signature
    own: bool


class _Seen(NamedTuple):
    # Text, because a tuple of five integers takes twice the memory, and a hostile sender
    # decides how many names there are; not packed to 64 bits, which his mtime may exceed.
    signature: str
    since: float


class Settling:
    """The memory between scans: who has been seen, and unchanged since when."""

    def __init__(self, settle_s: float, foreign_factor: float = FOREIGN_FACTOR) -> None:
        """Take the seconds of quiet to ask for, and how many times that of foreign files."""
        self._settle_s = settle_s
        self._foreign_s = settle_s * foreign_factor
        self._seen: dict[str, _Seen] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def observe(self, now: float, sightings: Iterable[Sighting]) -> list[str]:
        """Take in one scan and return the settled names, in the order given.

        `now` is the monotonic clock in seconds, read before the scan began.  A name
        is returned by every scan until it is forgotten, vanishes or changes.
        """
        seen: dict[str, _Seen] = {}
        settled = []
        for name, signature, own in sightings:
            compact = " ".join(map(str, signature))
            before = self._seen.get(name)
            if before is None or before.signature != compact:
                seen[name] = _Seen(compact, now)
                continue
            seen[name] = before
            if now - before.since >= (self._settle_s if own else self._foreign_s):
                settled.append(name)
        self._seen = seen
        return settled

    def unchanged_for(self, name: str, now: float) -> float:
        """Return the seconds since the name's signature was first seen; 0 if unknown."""
        before = self._seen.get(name)
        return 0.0 if before is None else max(0.0, now - before.since)

    def forget(self, name: str) -> None:
        """Start over with this name, as after it was taken; an unknown one is fine."""
        self._seen.pop(name, None)


class Rota:
    """Which files of a folder are looked at, when it holds more than are to be remembered.

    Others get their turn after `turn_s` seconds, long enough for what is whole to settle
    and be taken; so files that only wait do not hide others forever.
    """

    def __init__(self, most: int, turn_s: float) -> None:
        """Take how many files are looked at in one scan, and for how long the same ones."""
        self._most = most
        self._turn_s = turn_s
        self._skip = 0
        self._since = 0.0

    def choose(self, now: float, found: Iterable[Item]) -> list[Item]:
        """Return those whose turn it is; `found` is read once, in the folder's own order."""
        chosen: list[Item] = []
        count = 0
        for item in found:
            if self._skip <= count < self._skip + self._most:
                chosen.append(item)
            count += 1
        over = now - self._since >= self._turn_s
        if count <= self._most or not chosen:
            self._skip, self._since = 0, now
        elif over:
            last = count <= self._skip + self._most
            self._skip, self._since = 0 if last else self._skip + self._most, now
        return chosen

"""A process that dies at a chosen moment, played inside this one.

Purpose: run real code on a real disk and cut it off before its n-th effect, so that
what a killed process leaves behind can be recovered from, for every n.
Invariant: after the cut nothing of the dead code has an effect any more, whatever its
`finally` blocks try.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import durable


class CrashError(BaseException):
    """The process is dead; no handler of `Exception` may think otherwise."""


class Crasher:
    """Counts effects and dies before a chosen one."""

    def __init__(self, at: int) -> None:
        """Die before effect number `at`, counted from 1."""
        self.at = at
        self.count = 0

    @property
    def dead(self) -> bool:
        """Whether the moment has come."""
        return self.count >= self.at

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """An effect that happens only while the process lives."""

        def effect(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any call
            if not self.dead:
                self.count += 1
            if self.dead:
                raise CrashError
            return real(*args, **kwargs)

        return effect


# Every call by which the daemon changes the disk, but for the making of empty files.
_EFFECTS: tuple[tuple[Any, str], ...] = (
    (os, "write"),
    (os, "pwrite"),
    (os, "fsync"),
    (os, "fdatasync"),
    (os, "ftruncate"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (Path, "rmdir"),
    (durable, "rename_noreplace"),
    (Ledger, "accept"),
    (Ledger, "update"),
    (Ledger, "finish"),
    (Ledger, "forget"),
    (Ledger, "checkpoint"),
    (Ledger, "put_state"),
)


@contextmanager
def dying(at: int) -> Iterator[Crasher]:
    """Run the block's code until its effect number `at`; swallow the end of it."""
    crasher = Crasher(at)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _EFFECTS:
            patch.setattr(owner, name, crasher.wrap(getattr(owner, name)))
        try:
            yield crasher
        except CrashError:
            assert crasher.dead

"""Errors at the calls that touch the files of some jobs, played inside this process.

Purpose: let a chosen call on those jobs' files fail, once or from then on, while the calls
on all others' files do what they always do, in the same daemon.
Invariants: only the daemon's own calls by way of `os` and `open` are seen, the ledger's
(LMDB) are not; a call on a file without a job's name, and the sync of a folder, belongs to
the job that was named last, because one call is made after the other.
"""

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from inbox_daemon.spool import FOLDERS, durable

# By a path, or the name in an open folder; by two paths; by a descriptor.
_BY_PATH = ("open", "unlink", "rmdir", "mkdir", "chmod", "chown", "stat", "lstat")
_BY_TWO = ("rename", "replace")
_BY_DESCRIPTOR = ("read", "pread", "write", "pwrite", "fsync", "fdatasync", "ftruncate", "fstat")
_MODES = {"rb": os.O_RDONLY, "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL}


class Strikes:
    """Counts the calls that belong to the jobs, and lets one, or all from one on, fail.

    `of` says of a name in the spool whether it is one of theirs, None where it does not tell.
    """

    def __init__(self, root: Path, of: Callable[[str], bool | None]) -> None:
        """See the calls below `root`; none fails yet."""
        self._root, self._of = f"{root}/", of
        self._shared = {str(root / name) for name in FOLDERS} | {str(root)}
        self._named, self._looking = False, True
        self.seen: list[str] = []
        self.struck = 0
        self._at, self._number, self._lasting = 0, 0, False

    def arm(self, at: int, number: int, *, lasting: bool) -> None:
        """Let call `at`, from 1, fail with this errno, and all later ones if it is `lasting`."""
        self._at, self._number, self._lasting = at, number, lasting

    def lift(self) -> None:
        """Let nothing fail any more."""
        self._at = 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """See none of the calls in the block: they are not the daemon's."""
        before, self._looking = self._looking, False
        try:
            yield
        finally:
            self._looking = before

    def name(self, path: Path | None = None) -> None:
        """Take the next call for theirs whose name this is, unless it has a name of its own."""
        self._named = path is not None and self._of(path.name) is True

    # -- whose call it is -----------------------------------------------------------

    def _place(self, what: object, dir_fd: int | None = None) -> str:
        if isinstance(what, int):
            return _opened_as(what)
        path = os.fsdecode(what)  # type: ignore[arg-type]
        if dir_fd is not None and not path.startswith("/"):
            path = f"{_opened_as(dir_fd)}/{path}"
        if path.startswith("/proc/self/fd/"):
            number, _, rest = path.removeprefix("/proc/self/fd/").partition("/")
            path = f"{_opened_as(int(number))}/{rest}"
        return path

    def _theirs(self, path: str, *, shared: bool) -> bool:
        """Whether a call on a path is theirs; `shared` for one on a folder of all."""
        if path in self._shared:
            return shared and self._named
        if not path.startswith(self._root):
            return False
        told = {self._of(part) for part in path.removeprefix(self._root).split("/")}
        if told != {None}:
            self._named = True in told
        return self._named

    def see(self, call: str, what: object, *, dir_fd: int | None = None) -> bool:
        """Count a call if it is theirs, and raise if its turn has come; return whose it is."""
        if not self._looking:
            return False
        path = self._place(what, dir_fd)
        # A folder of all is opened to be synced; inbox/ to be looked at too, for all jobs.
        synced = call == "fsync" or (call == "open" and "/inbox" not in path)
        theirs = self._theirs(path, shared=synced)
        if theirs:
            self.seen.append(f"{call} {path.removeprefix(self._root)}")
            here = len(self.seen)
            if self._at and (here == self._at or (self._lasting and here > self._at)):
                self.struck += 1
                raise OSError(self._number, os.strerror(self._number), path)
        return theirs

    # -- the calls ------------------------------------------------------------------

    @contextmanager
    def active(self) -> Iterator[None]:
        """Put itself before each call."""
        with pytest.MonkeyPatch.context() as patch:
            for name in (*_BY_PATH, *_BY_DESCRIPTOR):
                patch.setattr(os, name, self._one(name, getattr(os, name)))
            for name in _BY_TWO:
                patch.setattr(os, name, self._two(name, getattr(os, name)))
            rename = durable.rename_noreplace
            patch.setattr(durable, "rename_noreplace", self._two("renameat2", rename))
            patch.setattr(os, "scandir", self._scan(os.scandir))
            patch.setattr(os, "listdir", self._one("listdir", os.listdir))
            opened = self._opened(io.open)
            patch.setattr(io, "open", opened)
            patch.setattr(builtins, "open", opened)
            yield

    def _one(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: object, *words: Any, **more: Any) -> Any:  # noqa: ANN401 - any call
            self.see(name, what, dir_fd=more.get("dir_fd"))
            return real(what, *words, **more)

        return call

    def _two(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: object, target: object, **more: Any) -> Any:  # noqa: ANN401 - any call
            # The name that tells is the source's, or else the target's.
            told = [self._of(part) for part in self._place(source).split("/")]
            self.see(name, source if True in told else target)
            return real(source, target, **more)

        return call

    def _scan(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: object = ".") -> Any:  # noqa: ANN401 - os's own type has no maker
            self.see("scandir", what)
            return _Scan(self, self._place(what), real(what))

        return call

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **named: Any) -> Any:  # noqa: ANN401 - as open takes them
            ours = not self._looking or not self._theirs(self._place(file), shared=False)
            if mode not in _MODES or ours:
                return real(file, mode, buffering, *more, **named)
            fd = (
                file if isinstance(file, int) else os.open(file, _MODES[mode] | os.O_CLOEXEC, 0o666)
            )
            size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
            raw = _Raw(fd)
            return io.BufferedReader(raw, size) if mode == "rb" else io.BufferedWriter(raw, size)

        return call


def _opened_as(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - not by way of what is replaced


class _Raw(io.RawIOBase):
    """A file whose reads and writes go by way of `os`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return os.lseek(self._fd, offset, whence)

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - a buffer
        data = os.read(self._fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - a buffer
        return os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                os.close(self._fd)


class _Scan:
    """What os.scandir returns, with entries whose stat is seen."""

    def __init__(self, strikes: Strikes, folder: str, real: Any) -> None:  # noqa: ANN401 - os's own type
        self._strikes, self._folder, self._real = strikes, folder, real

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return (_Entry(self._strikes, self._folder, entry) for entry in self._real)

    def close(self) -> None:
        """Let the folder go."""
        self._real.close()


class _Entry:
    """One entry of a folder."""

    def __init__(self, strikes: Strikes, folder: str, real: os.DirEntry[str]) -> None:
        self._strikes, self._folder, self._real = strikes, folder, real

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the entry has it
        return getattr(self._real, name)

    def __fspath__(self) -> str:
        return self._real.path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Look at it."""
        self._strikes.see("stat", f"{self._folder}/{self._real.name}")
        return self._real.stat(follow_symlinks=follow_symlinks)

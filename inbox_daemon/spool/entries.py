"""What one look at a folder saw: its entries, with the signature of each.

Purpose: the values that scan, gate and spool pass to each other.
Invariants: no link is followed; what vanishes while the folder is read is left out, and
what cannot be looked at is of an unknown kind.
"""

import os
import stat
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple, Protocol, Self


class StatResult(Protocol):
    """The part of `os.stat_result` that makes a signature."""

    @property
    def st_dev(self) -> int:
        """Return the device that the file lies on."""

    @property
    def st_ino(self) -> int:
        """Return the file's number on that device."""

    @property
    def st_size(self) -> int:
        """Return the size in bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """Return when the content changed, in nanoseconds; the sender may set it."""

    @property
    def st_ctime_ns(self) -> int:
        """Return when anything changed, in nanoseconds; no user can set it."""


class Signature(NamedTuple):
    """What changes when a file is written, replaced, renamed or touched."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: StatResult) -> Self:
        """Take the signature from what stat, lstat or fstat returned."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


class Kind(StrEnum):
    """What a directory entry is, without following links."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    UNKNOWN = "unknown"


_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}


class Identity(NamedTuple):
    """Which folder a path led to when it was opened."""

    dev: int
    ino: int


class DirEntry(NamedTuple):
    """One directory entry; `name` holds undecodable bytes as surrogate escapes."""

    name: str
    kind: Kind
    signature: Signature
    uid: int
    nlink: int

    @property
    def mtime_ns(self) -> int:
        """When the content changed, in nanoseconds; 0 marks an interrupted rsync."""
        return self.signature.mtime_ns


class Scan(NamedTuple):
    """One folder at one moment: which folder it was, and all that lay in it."""

    identity: Identity
    entries: list[DirEntry]


def scan(folder: str | os.PathLike[str] | int) -> Scan:
    """Read a folder, given as a path or as an open directory's descriptor.

    Raises OSError: the folder is gone, is no directory, or may not be read.
    """
    if isinstance(folder, int):
        return Scan(identity_of(folder), list(entries(folder)))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Scan(identity_of(descriptor), list(entries(descriptor)))
    finally:
        os.close(descriptor)


def identity_of(descriptor: int) -> Identity:
    """Return which folder an open descriptor stands for."""
    status = os.fstat(descriptor)
    return Identity(status.st_dev, status.st_ino)


def entries(descriptor: int) -> Iterator[DirEntry]:
    """Read a folder one entry at a time, in no order, for folders too large to hold.

    Raises OSError: the directory cannot be read.
    """
    with os.scandir(descriptor) as found:
        for item in found:
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:  # taken away since the folder was read
                continue
            except OSError:  # its own trouble; the others can be looked at
                yield DirEntry(item.name, Kind.UNKNOWN, Signature(0, 0, 0, 0, 0), -1, 1)
                continue
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), Kind.OTHER)
            yield DirEntry(item.name, kind, Signature.of(status), status.st_uid, status.st_nlink)

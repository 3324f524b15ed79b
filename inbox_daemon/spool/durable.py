"""The system calls that make something last, each in its safe order.

Purpose: the only code that renames, fsyncs and unlinks; its callers say what is moved
where, this module how a move survives a power cut.
Invariants: a function that returns has its effect on the disk, a folder's entry
included, unless its docstring says otherwise; nothing is ever replaced except by
`replace_file` and, on a full disk, `overwrite`.
Source: what ext4 and XFS kept after a power cut when a step was left out, measured;
the order is that of borg's `SaveFile`.
Known limit: Linux only (renameat2, F_SETLEASE).
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# What the calls below raise, by number, where there is no room for what they would write.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_CAP_LEASE = 28
_COPY_BYTES = 1 << 20
_JOIN_BYTES = 1 << 18
_FLOCK = struct.Struct("hhqqi4x")  # fcntl.h: struct flock
_libc = ctypes.CDLL(None, use_errno=True)


def exists(path: Path) -> bool:
    """Return whether something stands at a path, be it a link.

    Raises OSError: that cannot be known; `Path.exists` says no then, from Python 3.14 on.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_folder(path: Path) -> bool:
    """Return whether a path leads to a folder.

    Raises OSError: that cannot be known; `Path.is_dir` says no then, from Python 3.14 on.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def sync_dir(path: Path) -> None:
    """Make the folder's entries last: a new name is lost in a power cut without it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make the file's content last."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dir(path: Path, mode: int = 0o750) -> None:
    """Make a folder, its parent's entry included; one that exists is left as it is."""
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        return
    sync_dir(path.parent)


def share(path: Path, group: int) -> None:
    """Let the group read a file or folder that is about to be shown; its entry not yet.

    A daemon that is no member of the group leaves it as it is: the folder's owner
    decided so.
    """
    with contextlib.suppress(PermissionError):
        os.chown(path, -1, group)
    path.chmod(0o750 if path.is_dir() else 0o640)


def write_file(path: Path, data: bytes, mode: int = 0o640, at: float | None = None) -> None:
    """Write a new file, content only: the caller makes its entry last.

    `at` is its time, in seconds since 1970; None means now.
    Raises FileExistsError: the name is taken.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        write_all(fd, data)
        if at is not None:
            os.utime(fd, (at, at))
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_at(fd: int, parts: Iterable[bytes], offset: int) -> None:
    """Write every byte of the parts at `offset` and make them last (not the file's times)."""
    for block in _blocks(parts):
        view = memoryview(block)
        while view:
            count = os.pwrite(fd, view, offset)
            view, offset = view[count:], offset + count
    os.fdatasync(fd)


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join small parts, as a call for each would take longer, and copy no large one."""
    small, size = list[bytes](), 0
    for part in parts:
        small.append(part)
        size += len(part)
        if size >= _JOIN_BYTES:
            large = small.pop() if len(part) >= _JOIN_BYTES else b""
            yield b"".join(small)
            yield large
            small, size = [], 0
    yield b"".join(small)


def replace_file(path: Path, data: bytes, workplace: Path) -> None:
    """Put `data` at `path` whole or not at all, whatever stood there.

    The new content is made in the folder `workplace`, on the same filesystem, so
    that a reader of `path`'s folder never sees a temporary name.  It belongs to the
    group of the folder in which it is shown.
    """
    # Unique, because documents of several jobs may be written at once.
    temporary = workplace / f".{secrets.token_hex(8)}.new"
    try:
        write_file(temporary, data)
        share(temporary, path.parent.stat().st_gid)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def overwrite(path: Path, data: bytes) -> None:
    """Write `data` over the file's old content, with spaces up to its old length.

    Takes no room on the disk where it is no longer than before; a reader may see a part of
    each for a moment, and a power cut may leave that.
    """
    with path.open("r+b", buffering=0) as file:
        file.write(data.ljust(os.fstat(file.fileno()).st_size))


def put_in_place(source: Path, target: Path) -> None:
    """Replace `target` by a file that was made beside it, whole."""
    sync_file(source)
    source.replace(target)
    sync_dir(target.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder and make both folders' entries last.

    Raises FileExistsError: something stands at `target`; nothing was changed.
    """
    rename_noreplace(source, target)
    sync_dir(target.parent)
    if source.parent != target.parent:
        sync_dir(source.parent)


def rename_noreplace(source: Path, target: Path) -> None:
    """Rename, in memory only; refuse to replace.

    Raises FileExistsError: something stands at `target`; OSError otherwise.
    """
    result = _libc.renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE
    )
    if result == 0:
        return
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def remove_file(path: Path) -> None:
    """Unlink a file and make that last; one that is gone is no error."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    sync_dir(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that it holds and make that last."""
    if not is_folder(path):
        return
    shutil.rmtree(path)
    sync_dir(path.parent)


def remove_whole(paths: Sequence[Path], aside: Path) -> None:
    """Remove files and folders with all that they hold, or leave all of it where it is.

    What may be renamed may be removed: so each of it is moved into a new folder `aside`, on
    the same filesystem, before the first is removed.  One that is gone is no error.
    Raises OSError: one is another user's, immutable or mounted, and all is as it was; or what
    was moved cannot be removed, and is in `aside`.
    """
    make_dir(aside, mode=0o700)
    moved: list[tuple[Path, Path]] = []

    def take(path: Path) -> None:
        target = aside / str(len(moved))
        try:
            rename_noreplace(path, target)
        except FileNotFoundError:
            return
        moved.append((path, target))
        if stat.S_ISDIR(target.lstat().st_mode):
            for inner in list(target.iterdir()):
                take(inner)

    try:
        for path in paths:
            take(path)
    except OSError:
        for path, target in reversed(moved):
            rename_noreplace(target, path)
        remove_empty_dir(aside)
        raise
    for folder in {path.parent for path in paths}:
        sync_dir(folder)
    remove_tree(aside)


def remove_empty_dir(path: Path) -> bool:
    """Remove a folder that holds nothing; return whether it is gone."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST}:
            return False
        raise
    sync_dir(path.parent)
    return True


def copy_hashing(source_fd: int, target: Path, limit: int) -> tuple[str, int]:
    """Copy at most `limit` + 1 bytes into a new file; return its sha256 and length.

    The content lasts on return, the entry does not yet.
    """
    digest, length, offset = hashlib.sha256(), 0, 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    target_fd = os.open(target, flags, 0o640)
    try:
        while length <= limit:
            block = os.pread(source_fd, min(_COPY_BYTES, limit + 1 - length), offset)
            if not block:
                break
            digest.update(block)
            write_all(target_fd, block)
            length += len(block)
            offset = length
        os.fsync(target_fd)
    finally:
        os.close(target_fd)
    return digest.hexdigest(), length


def same_content(first: Path, second: Path) -> bool:
    """Return whether both are regular files of the same bytes; False when one cannot be read."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with (
            open(os.open(first, flags), "rb") as one,  # noqa: PTH123 - a descriptor
            open(os.open(second, flags), "rb") as other,  # noqa: PTH123 - a descriptor
        ):
            found = [os.fstat(file.fileno()) for file in (one, other)]
            if found[0].st_size != found[1].st_size or not all(
                stat.S_ISREG(s.st_mode) for s in found
            ):
                return False
            while block := one.read(_COPY_BYTES):
                if other.read(_COPY_BYTES) != block:
                    return False
            return not other.read(1)
    except OSError:
        return False


def write_hashing(target: Path, parts: Iterable[bytes]) -> tuple[str, int]:
    """Write a new file part by part; return its sha256 and length, like `copy_hashing`."""
    digest, length = hashlib.sha256(), 0
    with target.open("xb", buffering=_COPY_BYTES) as file:
        for part in parts:
            digest.update(part)
            file.write(part)
            length += len(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), length


def lock_file(path: Path, content: bytes) -> int | None:
    """Take the one lock at `path` and write who holds it; None when it is taken.

    The lock lasts as long as the returned descriptor is open, so it cannot be left
    behind by a process that died.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.pwrite(fd, content, 0)
    return fd


def lock_first_byte(fd: int) -> int | None:
    """Lock a file's first byte for this process alone; return the process that has it, if any.

    This is the lock by which LMDB knows that a ledger is open.  It goes when this process
    closes any descriptor of the file.
    """
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except BlockingIOError:
            wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, wanted))
            if kind != fcntl.F_UNLCK:  # else it was let go just now
                return int(pid)
        else:
            return None


def may_lease(owner: int) -> bool:
    """Return whether we may ask for a lease on a file of that user: ours, or with CAP_LEASE."""
    return owner == os.geteuid() or _has_cap_lease()


@functools.cache
def _has_cap_lease() -> bool:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_LEASE & 1)


def has_writer(fd: int) -> bool | None:
    """Return whether any process has the open file open for writing.

    A read lease is granted only while none has.  None: we may not ask, because the
    file is another user's or its filesystem knows no leases.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False

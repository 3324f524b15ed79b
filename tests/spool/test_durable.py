"""Durable: each call leaves the disk as it says, and nothing is replaced by accident."""

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inbox_daemon.spool import durable

DATA = b"some content\n"


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced, by path, in order."""
    seen: list[str] = []

    def note(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            seen.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
            real(fd)

        return sync

    monkeypatch.setattr(os, "fsync", note(os.fsync))
    monkeypatch.setattr(os, "fdatasync", note(os.fdatasync))
    return seen


# -- files --------------------------------------------------------------------------


def test_a_new_file_is_written_and_synced(tmp_path: Path, syncs: list[str]) -> None:
    """The content is on the disk on return; the entry is the caller's."""
    durable.write_file(tmp_path / "a", DATA)
    assert (tmp_path / "a").read_bytes() == DATA
    assert syncs == [str(tmp_path / "a")]


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_writing_never_replaces_and_follows_no_link(tmp_path: Path, kind: str) -> None:
    """A name that is taken, even by a link to nowhere, is refused."""
    target = tmp_path / "a"
    if kind == "file":
        target.write_bytes(b"old")
    else:
        (tmp_path / "b").write_bytes(b"old")
        target.symlink_to(tmp_path / ("b" if kind == "link" else "none"))
    with pytest.raises(FileExistsError):
        durable.write_file(target, DATA)
    assert not (tmp_path / "none").exists()


def test_a_replaced_file_is_whole_and_its_folder_synced(tmp_path: Path, syncs: list[str]) -> None:
    """The new content takes the old one's place in one step, made elsewhere before."""
    (tmp_path / "work").mkdir()
    (tmp_path / "a").write_bytes(b"old")
    durable.replace_file(tmp_path / "a", DATA, tmp_path / "work")
    assert (tmp_path / "a").read_bytes() == DATA
    assert list((tmp_path / "work").iterdir()) == []
    assert len(syncs) == 2
    assert syncs[0].startswith(f"{tmp_path}/work/")
    assert syncs[1] == str(tmp_path)


def test_a_replacement_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the old content stays and no half-written file is left."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "work").mkdir()
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        durable.replace_file(tmp_path / "a", DATA, tmp_path / "work")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert list((tmp_path / "work").iterdir()) == []


def test_writing_goes_on_after_a_short_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that takes a few bytes at a time gets all of them."""
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:3])))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data[:3]), at))
    durable.write_file(tmp_path / "a", DATA)
    fd = os.open(tmp_path / "a", os.O_RDWR)
    durable.write_at(fd, [b"SO", b"ME"], 0)
    os.close(fd)
    assert (tmp_path / "a").read_bytes() == b"SOME content\n"


def test_writing_at_an_offset_is_synced(tmp_path: Path, syncs: list[str]) -> None:
    """What a journal writes lasts on return."""
    (tmp_path / "a").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "a", os.O_RDWR)
    durable.write_at(fd, [b"x", b"y"], 4)
    os.close(fd)
    assert (tmp_path / "a").read_bytes() == b"0123xy6789"
    assert syncs == [str(tmp_path / "a")]


# -- moves --------------------------------------------------------------------------


def test_a_move_syncs_both_folders(tmp_path: Path, syncs: list[str]) -> None:
    """The new entry lasts before the old one's end does."""
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    (tmp_path / "x" / "a").write_bytes(DATA)
    durable.move(tmp_path / "x" / "a", tmp_path / "y" / "b")
    assert (tmp_path / "y" / "b").read_bytes() == DATA
    assert syncs == [str(tmp_path / "y"), str(tmp_path / "x")]


@pytest.mark.parametrize("target", ["file", "folder", "empty", "dangling"])
def test_a_move_replaces_nothing(tmp_path: Path, target: str) -> None:
    """Whatever stands at the target, an empty folder or a broken link included, stays."""
    source = tmp_path / "a"
    source.mkdir()
    place = tmp_path / "b"
    if target == "file":
        place.write_bytes(b"old")
    elif target == "dangling":
        place.symlink_to(tmp_path / "none")
    else:
        place.mkdir()
        if target == "folder":
            (place / "x").touch()
    with pytest.raises(FileExistsError):
        durable.move(source, place)
    assert source.is_dir()
    assert os.path.lexists(place)


def test_a_move_of_nothing_is_an_error_with_both_names(tmp_path: Path) -> None:
    """The error tells what was to be moved where."""
    with pytest.raises(FileNotFoundError) as caught:
        durable.move(tmp_path / "a", tmp_path / "b")
    assert (caught.value.filename, caught.value.filename2) == (
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    )


def test_a_name_that_is_no_text_is_moved_too(tmp_path: Path) -> None:
    """Undecodable bytes in a name are no obstacle."""
    source = tmp_path / os.fsdecode(b"a\xff")
    source.write_bytes(DATA)
    durable.move(source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == DATA


# -- folders and ends ---------------------------------------------------------------


def test_a_folder_is_made_once(tmp_path: Path, syncs: list[str]) -> None:
    """Its entry lasts; one that exists is left as it is."""
    durable.make_dir(tmp_path / "a")
    (tmp_path / "a" / "x").touch()
    durable.make_dir(tmp_path / "a")
    assert (tmp_path / "a" / "x").exists()
    assert syncs == [str(tmp_path)]


def test_removing_is_repeatable(tmp_path: Path, syncs: list[str]) -> None:
    """What is gone already is no error, so a removal that was cut off can be done again."""
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").touch()
    for _ in range(2):
        durable.remove_file(tmp_path / "a")
        durable.remove_tree(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []
    assert syncs == [str(tmp_path)] * 2


def test_only_an_empty_folder_is_removed_as_one(tmp_path: Path) -> None:
    """A folder that holds anything, and a file, are left and said to be there."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    assert durable.remove_empty_dir(tmp_path / "empty")
    assert durable.remove_empty_dir(tmp_path / "empty")
    assert not durable.remove_empty_dir(tmp_path / "full")
    assert not durable.remove_empty_dir(tmp_path / "file")
    assert (tmp_path / "full" / "x").exists()


# -- copies -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "limit", "copied"), [(0, 10, 0), (10, 10, 10), (11, 10, 11), (5_000_000, 10, 11)]
)
def test_a_copy_stops_one_byte_past_its_limit(
    tmp_path: Path, size: int, limit: int, copied: int
) -> None:
    """A file that grew past the limit is seen to be too long, and no more of it is taken."""
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    sha256, length = durable.copy_hashing(fd, tmp_path / "b", limit)
    os.close(fd)
    assert length == copied
    assert (tmp_path / "b").read_bytes() == data[:copied]
    assert sha256 == hashlib.sha256(data[:copied]).hexdigest()


def test_a_large_file_is_copied_whole(tmp_path: Path) -> None:
    """Many blocks make the same file and the same checksum."""
    data = os.urandom(3_500_000)
    (tmp_path / "a").write_bytes(data)
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    found = durable.copy_hashing(fd, tmp_path / "b", 1 << 30)
    os.close(fd)
    assert found == (hashlib.sha256(data).hexdigest(), len(data))
    assert (tmp_path / "b").read_bytes() == data


def test_lines_of_our_own_are_written_with_their_checksum(tmp_path: Path) -> None:
    """What was generated is known as well as what was copied."""
    found = durable.write_hashing(tmp_path / "a", iter([b"one\n", b"two\n"]))
    assert found == (hashlib.sha256(b"one\ntwo\n").hexdigest(), 8)
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\n"


# -- locks and leases ---------------------------------------------------------------

HOLDER = """
import os, sys
from pathlib import Path
from inbox_daemon.spool import durable
fd = durable.lock_file(Path(sys.argv[1]), b"other")
print(fd is not None, flush=True)
sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    """A second process is refused, and the end of the first, however it came, frees it."""
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert durable.lock_file(path, b"mine") is None
        assert path.read_bytes() == b"other"
        holder.kill()
    fd = durable.lock_file(path, b"me")
    assert fd is not None
    assert path.read_bytes() == b"me"
    os.close(fd)


def test_a_writer_is_seen(tmp_path: Path) -> None:
    """A file is complete only when no process has it open for writing."""
    path = tmp_path / "a"
    path.write_bytes(DATA)
    reading = os.open(path, os.O_RDONLY)
    assert durable.has_writer(reading) is False
    writing = os.open(path, os.O_WRONLY)
    assert durable.has_writer(reading) is True
    os.close(writing)
    assert durable.has_writer(reading) is False
    os.close(reading)


def test_no_lease_on_what_is_no_file() -> None:
    """On a file that takes no lease the answer is None: unknown."""
    read, write = os.pipe()
    assert durable.has_writer(read) is None
    os.close(read)
    os.close(write)


def test_what_is_removed_whole_is_gone_with_all_that_it_holds(tmp_path: Path) -> None:
    """Files and folders; one that is not there is no error."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "c").touch()
    paths = [tmp_path / name for name in ("a", "gone", "c")]
    durable.remove_whole(paths, tmp_path / "aside")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", range(1, 6))
def test_what_cannot_be_removed_whole_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whichever of it may not be moved, nothing has gone."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/1", "a/b/2", "c"):
        (tmp_path / name).write_text(name)
    before = sorted(tmp_path.rglob("*"))
    real, calls = durable.rename_noreplace, 0

    def rename(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(source, target)

    monkeypatch.setattr(durable, "rename_noreplace", rename)
    with pytest.raises(PermissionError):
        durable.remove_whole([tmp_path / "a", tmp_path / "c"], tmp_path / "aside")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "a" / "b" / "2").read_text() == "a/b/2"


def test_what_stands_at_a_path_is_known_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails is no empty place."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert [durable.exists(tmp_path / name) for name in ("file", "link", "no", "file/no")] == [
        True,
        True,
        False,
        False,
    ]
    assert [durable.is_folder(tmp_path / name) for name in ("", "file", "no")] == [
        True,
        False,
        False,
    ]

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        patch.setattr(os, "lstat", fail)
        for look in (durable.exists, durable.is_folder):
            with pytest.raises(OSError):
                look(tmp_path / "file")

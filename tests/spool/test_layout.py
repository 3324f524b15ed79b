"""The spool's folders: made, checked, shared and locked."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from inbox_daemon.contract.errors import SpoolError
from inbox_daemon.spool import FOLDERS, Spool, holder_of
from spool_files import drop, names

# -- the whole ----------------------------------------------------------------------


def test_a_new_spool_can_be_used_at_once(tmp_path: Path) -> None:
    """All folders are made, below parents that were missing too, and pass the check."""
    spool = Spool(tmp_path / "a" / "b" / "spool")
    spool.create()
    spool.check()
    assert {name for name in FOLDERS if "/" not in name} == names(spool.root)


def test_a_spool_is_shared_by_its_group_only(spool: Spool) -> None:
    """Senders' folders are the group's, the rest is the daemon's own."""
    modes = {name: stat.S_IMODE((spool.root / name).stat().st_mode) for name in FOLDERS}
    assert modes["inbox"] == modes["inbox/high"] == modes["inbox/low"] == 0o2770
    assert modes["outbox"] == modes["rejected"] == 0o2750
    assert {modes[name] for name in ("claimed", "queued", "running", "ledger")} == {0o700}


def test_making_a_spool_again_changes_nothing(spool: Spool) -> None:
    """What lies in it and how it was set up stays."""
    drop(spool, "a.jsonl")
    spool.inbox.chmod(0o1777)
    spool.create()
    assert stat.S_IMODE(spool.inbox.stat().st_mode) == 0o1777
    assert "a.jsonl" in names(spool.inbox)


@pytest.mark.parametrize("harm", ["missing", "file", "link"])
def test_a_broken_spool_is_refused_in_words(spool: Spool, tmp_path: Path, harm: str) -> None:
    """A folder that is gone, is a file or leads elsewhere is named."""
    spool.queued.rmdir()
    if harm == "file":
        spool.queued.touch()
    elif harm == "link":
        (tmp_path / "elsewhere").mkdir()
        spool.queued.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpoolError, match="queued") as caught:
        spool.check()
    assert "inbox-daemon init" in caught.value.message


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_spool_over_two_filesystems_is_refused(spool: Spool) -> None:
    """A folder that is a mount of its own cannot be moved into by a rename."""
    mount = ["mount", "-t", "tmpfs", "none", str(spool.outbox)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount")
    try:
        with pytest.raises(SpoolError) as caught:
            spool.check()
        assert caught.value.code == "spool_split"
    finally:
        subprocess.run(["umount", str(spool.outbox)], check=True)


def test_a_spool_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    """A file in the way is an error for the operator."""
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match="--spool"):
        Spool(tmp_path / "file" / "spool").create()


def test_one_daemon_holds_a_spool(spool: Spool) -> None:
    """The second lock's error names the holder, and the lock is free once the holder lets go."""
    other = Spool(spool.root)
    spool.lock({"pid": 4711, "since": "noon"})
    with pytest.raises(SpoolError, match="process 4711 since noon"):
        other.lock({"pid": 1, "since": "x"})
    spool.unlock()
    spool.unlock()
    other.lock({"pid": 1, "since": "x"})
    other.unlock()


def test_a_lock_that_cannot_be_read_has_an_unknown_holder(tmp_path: Path) -> None:
    """A missing or broken lock file names an unknown process."""
    assert holder_of(tmp_path / "none") == "an unknown process"
    (tmp_path / "lock").write_bytes(b"{")
    assert holder_of(tmp_path / "lock") == "an unknown process"


def test_free_room_is_known(spool: Spool) -> None:
    """Free bytes and inodes of the spool's filesystem are returned."""
    free_bytes, free_inodes = spool.free()
    assert free_bytes > 0
    assert free_inodes >= 0


# -- retention of the outbox --------------------------------------------------------


def test_quarantine_is_listed_in_printable_words(spool: Spool) -> None:
    """Names of any bytes can be shown in the status."""
    (spool.queued / os.fsdecode(b"x\xff\x1b.jsonl")).touch()
    spool.quarantine_path(spool.queued / os.fsdecode(b"x\xff\x1b.jsonl"))
    assert spool.quarantined() == ["x\\udcff\\x1b.jsonl"]

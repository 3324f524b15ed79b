"""inbox/: what is opened, copied and taken out is what was looked at."""

import os
from pathlib import Path

import pytest

from builders import JOB_ID
from inbox_daemon.contract.states import Priority
from inbox_daemon.spool import Spool
from spool_files import NORMAL, drop, names

# -- drops --------------------------------------------------------------------------


def test_a_drop_is_opened_without_following_or_waiting(spool: Spool, tmp_path: Path) -> None:
    """Links are refused and FIFOs opened without a reader being waited for."""
    (tmp_path / "secret").write_bytes(b"x")
    (spool.inbox / "link.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        spool.open_drop("link.jsonl", NORMAL)
    os.mkfifo(spool.inbox / "fifo.jsonl")
    os.close(spool.open_drop("fifo.jsonl", NORMAL))


@pytest.mark.parametrize("lane", Priority)
def test_a_drop_is_copied_into_a_claim(spool: Spool, lane: Priority) -> None:
    """The claim holds the drop's bytes, and the drop stays until it is taken away."""
    signature = drop(spool, "a.jsonl", b"abc\n", lane)
    fd = spool.open_drop("a.jsonl", lane)
    _, size = spool.claim(fd, JOB_ID, 100)
    os.close(fd)
    assert (size, spool.claim_path(JOB_ID).read_bytes()) == (4, b"abc\n")
    assert (spool.lane(lane) / "a.jsonl").exists()
    assert spool.take_away("a.jsonl", lane, signature, JOB_ID)
    assert not (spool.lane(lane) / "a.jsonl").exists()
    assert names(spool.claimed) == {f"{JOB_ID}.jsonl"}
    spool.discard_claim(JOB_ID)
    spool.discard_claim(JOB_ID)
    assert names(spool.claimed) == set()


def test_a_drop_that_was_replaced_meanwhile_stays(spool: Spool) -> None:
    """Only what was looked at is taken away; a newer file of the name is left."""
    signature = drop(spool, "a.jsonl", b"old\n")
    replacement = spool.inbox / ".new"
    replacement.write_bytes(b"new\n")
    replacement.rename(spool.inbox / "a.jsonl")
    assert not spool.take_away("a.jsonl", NORMAL, signature, JOB_ID)
    assert (spool.inbox / "a.jsonl").read_bytes() == b"new\n"
    assert names(spool.claimed) == set()


@pytest.mark.parametrize("change", ["grown", "touched"])
def test_a_drop_that_was_written_to_meanwhile_stays(spool: Spool, change: str) -> None:
    """More bytes or another time make it another file."""
    signature = drop(spool, "a.jsonl", b"old\n")
    with (spool.inbox / "a.jsonl").open("ab") as file:
        file.write(b"more" if change == "grown" else b"")
    os.utime(spool.inbox / "a.jsonl", ns=(1, 1))
    assert not spool.take_away("a.jsonl", NORMAL, signature, JOB_ID)
    assert (spool.inbox / "a.jsonl").exists()


def test_a_drop_that_is_gone_is_no_error(spool: Spool) -> None:
    """A sender may take its file back at any moment."""
    signature = drop(spool, "a.jsonl")
    (spool.inbox / "a.jsonl").unlink()
    assert not spool.take_away("a.jsonl", NORMAL, signature, JOB_ID)
    spool.remove_drop("a.jsonl", NORMAL)


@pytest.mark.parametrize("name", ["a" * 255, "я" * 127])
def test_a_name_of_any_length_can_be_taken_out(spool: Spool, name: str) -> None:
    """The longest name that a sender can make is refused like any other bad one."""
    signature = drop(spool, name)
    assert spool.take_out(name, NORMAL, signature, JOB_ID) is not None

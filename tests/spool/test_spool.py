"""The spool: every move is whole, replaces nothing, and may be done again."""

import os
import stat
import subprocess
from pathlib import Path

import orjson
import pytest

from builders import JOB_ID, make_spool
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.errors import SpoolError
from inbox_daemon.contract.job_documents import pretty, reason
from inbox_daemon.contract.states import JobState, Priority
from inbox_daemon.spool import FOLDERS, Spool, holder_of
from inbox_daemon.spool.entries import Signature

NOTICE = b'{"id": "x", "status": "failed"}'
NORMAL = Priority.NORMAL


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return make_spool(tmp_path)


def names(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {path.name for path in folder.iterdir()}


def drop(spool: Spool, name: str, content: bytes = b"{}\n", lane: Priority = NORMAL) -> Signature:
    """Put a file into inbox/ and say what it looks like."""
    path = spool.lane(lane) / name
    path.write_bytes(content)
    return Signature.of(path.lstat())


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
    """The second one is told who has it, and gets it when that one lets go."""
    other = Spool(spool.root)
    spool.lock({"pid": 4711, "since": "noon"})
    with pytest.raises(SpoolError, match="process 4711 since noon"):
        other.lock({"pid": 1, "since": "x"})
    spool.unlock()
    spool.unlock()
    other.lock({"pid": 1, "since": "x"})
    other.unlock()


def test_a_lock_without_words_is_somebodys(tmp_path: Path) -> None:
    """A lock file that cannot be read still gives a sentence."""
    assert holder_of(tmp_path / "none") == "an unknown process"
    (tmp_path / "lock").write_bytes(b"{")
    assert holder_of(tmp_path / "lock") == "an unknown process"


def test_free_room_is_told(spool: Spool) -> None:
    """Bytes and inodes of the spool's filesystem are known."""
    free_bytes, free_inodes = spool.free()
    assert free_bytes > 0
    assert free_inodes >= 0


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


# -- jobs ---------------------------------------------------------------------------


def test_a_job_moves_from_folder_to_folder(spool: Spool) -> None:
    """Claimed, queued, running, published: one folder at a time holds it."""
    spool.claim_path(JOB_ID).write_bytes(b"{}\n")
    assert spool.admit(JOB_ID) is JobState.QUEUED
    assert (spool.queued_ids(), spool.running_ids()) == ([JOB_ID], [])
    assert spool.start(JOB_ID) is JobState.RUNNING
    assert (spool.queued_ids(), spool.running_ids()) == ([], [JOB_ID])
    assert spool.input_path(JOB_ID).read_bytes() == b"{}\n"
    build(spool)
    assert spool.publish(JOB_ID, "job") == "job"
    spool.discard(JOB_ID)
    spool.discard(JOB_ID)
    assert (spool.running_ids(), names(spool.outbox)) == ([], {"job"})


def build(spool: Spool, name: str = "job") -> None:
    """Make the folder that will be published."""
    folder = spool.build_path(JOB_ID)
    folder.mkdir(parents=True)
    (folder / "output.jsonl").write_bytes(b"{}\n")
    (folder / "status.json").write_bytes(orjson.dumps({"id": JOB_ID, "name": name}))


def test_publishing_again_finds_what_was_published(spool: Spool) -> None:
    """After a crash the same call gives the same answer and moves nothing."""
    build(spool)
    spool.publish(JOB_ID, "job")
    assert spool.publish(JOB_ID, "job") == "job"
    assert spool.published_as(JOB_ID, "job") == "job"
    assert spool.published_as("another", "job") is None


@pytest.mark.parametrize("occupant", ["results", "stranger", "file", "dangling"])
def test_an_occupied_name_is_left_alone(spool: Spool, occupant: str) -> None:
    """Results go beside whatever stands in outbox/ under the job's name, with the id in theirs."""
    place = spool.outbox / "job"
    if occupant == "file":
        place.write_bytes(b"mine")
    elif occupant == "dangling":
        place.symlink_to("nowhere")
    else:
        place.mkdir()
        (place / ("output.jsonl" if occupant == "results" else "notes.txt")).write_bytes(b"mine")
    build(spool)
    assert spool.publish(JOB_ID, "job") == f"job.{JOB_ID}"
    assert spool.published_as(JOB_ID, "job") == f"job.{JOB_ID}"
    assert os.path.lexists(place)
    assert (spool.outbox / f"job.{JOB_ID}" / "output.jsonl").exists()


@pytest.mark.parametrize("occupant", ["empty", "notice"])
def test_a_notice_or_an_empty_folder_gives_way(spool: Spool, occupant: str) -> None:
    """A refusal of before, or a folder that was collected, does not push results aside."""
    (spool.outbox / "job").mkdir()
    if occupant == "notice":
        (spool.outbox / "job" / "status.json").write_bytes(NOTICE)
    build(spool)
    assert spool.publish(JOB_ID, "job") == "job"
    assert names(spool.outbox / "job") == {"output.jsonl", "status.json"}


# -- notices ------------------------------------------------------------------------


def test_a_notice_appears_whole_and_is_replaced_by_a_newer(spool: Spool) -> None:
    """outbox/NAME/status.json tells a refusal where no results lie."""
    assert spool.put_notice("job", NOTICE)
    assert spool.put_notice("job", b'{"id": "y"}')
    assert spool.read_status("job") == {"id": "y"}
    assert not spool.holds_results("job")
    assert names(spool.claimed) == set()


@pytest.mark.parametrize("occupant", ["results", "stranger", "file", "dangling"])
def test_a_notice_never_disturbs_anything_else(spool: Spool, occupant: str) -> None:
    """Where results, strangers' files or no folder at all stand, no notice is put."""
    place = spool.outbox / "job"
    if occupant == "file":
        place.write_bytes(b"mine")
    elif occupant == "dangling":
        place.symlink_to("nowhere")
    else:
        place.mkdir()
        (place / ("output.jsonl" if occupant == "results" else "notes.txt")).write_bytes(b"mine")
    assert not spool.put_notice("job", NOTICE)
    assert not (place / "status.json").exists()


def test_clearing_a_notice_clears_nothing_else(spool: Spool) -> None:
    """Results stay, a notice goes, and nothing is no error."""
    build(spool)
    spool.publish(JOB_ID, "job")
    spool.put_notice("refused", NOTICE)
    for name in "job", "refused", "nothing":
        spool.clear_notice(name)
    assert names(spool.outbox) == {"job"}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_status_that_cannot_be_read_is_none(spool: Spool, content: bytes) -> None:
    """Whatever lies there is not mistaken for a job's status."""
    (spool.outbox / "job").mkdir()
    (spool.outbox / "job" / "status.json").write_bytes(content)
    assert spool.read_status("job") is None
    assert spool.published_as(JOB_ID, "job") is None


def test_the_services_health_is_replaced_whole(spool: Spool) -> None:
    """Readers of outbox/ never see a temporary name."""
    for content in (b"one", b"two"):
        spool.write_service_status(content)
        assert (spool.outbox / "status.json").read_bytes() == content
        assert names(spool.outbox) == {"status.json"}


def test_what_is_published_belongs_to_the_outboxs_group(spool: Spool) -> None:
    """A web app in the group of outbox/ can read what appears there, and nobody else."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to any group")
    os.chown(spool.outbox, -1, 4242)
    spool.put_notice("job", NOTICE)
    spool.put_notice("job", NOTICE)
    spool.write_service_status(b"{}")
    for path in (spool.outbox / "job", *spool.outbox.glob("**/*.json")):
        assert path.stat().st_gid == 4242
        assert path.stat().st_mode & 0o007 == 0
        assert path.stat().st_mode & 0o040


# -- refusals -----------------------------------------------------------------------


def refuse(spool: Spool, job_id: str, file: str, source: Path) -> None:
    """Carry out a refusal."""
    why = reason(job_id, "job", [Fault(code="x", message="m")], 1.0, file=file)
    spool.reject(job_id, file, pretty(why), source, lambda _: None)


def test_a_refused_file_lies_beside_its_reason(spool: Spool) -> None:
    """Both are in rejected/ and nothing is left of the way there."""
    spool.claim_path(JOB_ID).write_bytes(b"bad")
    refuse(spool, JOB_ID, "job.jsonl", spool.claim_path(JOB_ID))
    assert names(spool.rejected) == {"job.jsonl", "job.reason.json"}
    assert names(spool.claimed) == set()


@pytest.mark.parametrize("taken", ["job.jsonl", "job.reason.json"])
def test_a_second_refusal_lies_beside_the_first(spool: Spool, taken: str) -> None:
    """A name of which the file or the reason is there gets the id."""
    assert spool.rejected_as("job", ".jsonl", JOB_ID) == "job"
    (spool.rejected / taken).touch()
    assert spool.rejected_as("job", ".jsonl", JOB_ID) == f"job.{JOB_ID}"


def test_a_control_file_is_refused_under_its_own_name(spool: Spool) -> None:
    """NAME.cancel lies in rejected/ with NAME.cancel.reason.json."""
    drop(spool, "job.cancel", b"?")
    refuse(spool, JOB_ID, "job.cancel", spool.inbox / "job.cancel")
    assert names(spool.rejected) == {"job.cancel", "job.cancel.reason.json"}


def test_refusals_are_listed_with_their_files_and_removed_whole(spool: Spool) -> None:
    """What retention removes is a refusal with all that belongs to it, and nothing beside."""
    for number, file in enumerate(("a.jsonl", "b.cancel")):
        (spool.inbox / file).write_bytes(b"1234")
        refuse(spool, JOB_ID[:-1] + str(number), file, spool.inbox / file)
    (spool.rejected / "stray").touch()
    listed = {tuple(files): size for files, _, size in spool.rejections()}
    assert set(listed) == {("a.jsonl", "a.reason.json"), ("b.cancel", "b.cancel.reason.json")}
    assert all(size > 4 for size in listed.values())
    spool.remove_rejection(["a.jsonl", "a.reason.json"])
    assert names(spool.rejected) == {"b.cancel", "b.cancel.reason.json", "stray"}


# -- retention of the outbox --------------------------------------------------------


def test_published_folders_are_listed_and_removed_whole(spool: Spool) -> None:
    """Only folders with a status are the daemon's to remove, and then out of sight at once."""
    build(spool)
    spool.publish(JOB_ID, "job")
    (spool.outbox / "stranger").mkdir()
    spool.write_service_status(b"{}")
    listed = list(spool.published_folders())
    assert [(name, size > 3) for name, _, size in listed] == [("job", True)]
    spool.remove_published("job")
    assert names(spool.outbox) == {"stranger", "status.json"}
    assert names(spool.claimed) == set()


def test_quarantine_is_listed_in_printable_words(spool: Spool) -> None:
    """Names of any bytes can be shown in the status."""
    (spool.queued / os.fsdecode(b"x\xff\x1b.jsonl")).touch()
    spool.quarantine_path(spool.queued / os.fsdecode(b"x\xff\x1b.jsonl"))
    assert spool.quarantined() == ["x\\udcff\\x1b.jsonl"]

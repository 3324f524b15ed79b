"""rejected/: a file beside its reason, whatever lay there before."""

from pathlib import Path

import pytest

from builders import JOB_ID
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.job_documents import pretty, reason
from inbox_daemon.spool import Spool
from spool_files import drop, names

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


def test_a_refusal_has_the_time_that_was_given(spool: Spool) -> None:
    """Retention goes by the time that was given, not by a disk's that may be wrong."""
    spool.claim_path(JOB_ID).write_bytes(b"bad")
    spool.reject(JOB_ID, "job.jsonl", b"{}", spool.claim_path(JOB_ID), lambda _: None, at=5.0)
    assert [at for _, at, _ in spool.rejections()] == [5.0]


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


@pytest.mark.parametrize("other", ["job.reason.json", "job", "job.jsonl", "job.cancel"])
def test_a_refusal_has_no_file_of_another_ones(spool: Spool, other: str) -> None:
    """A job whose name is that of another refusal's file is removed without it."""
    for number, name in enumerate(("job", other, "job.cancel", "job.options.json")):
        job_id = JOB_ID[:-1] + str(number)
        suffix = "" if number > 1 else ".jsonl"
        source = spool.claim_path(job_id)
        source.write_bytes(b"1")
        file = spool.rejected_as(name, suffix, job_id) + suffix
        assert not (spool.rejected / file).exists()
        refuse(spool, job_id, file, source)
    listed = [files for files, _, _ in spool.rejections()]
    every = sorted(file for files in listed for file in files)
    assert every == sorted(names(spool.rejected))
    for files in listed:
        spool.remove_rejection(files)
    assert names(spool.rejected) == set()


def test_refusals_are_listed_with_their_files_and_removed_whole(spool: Spool) -> None:
    """What retention removes is a refusal with all that belongs to it, and nothing beside."""
    for number, file in enumerate(("a.jsonl", "b.cancel")):
        (spool.inbox / file).write_bytes(b"1234")
        refuse(spool, JOB_ID[:-1] + str(number), file, spool.inbox / file)
    (spool.rejected / "foreign").touch()
    listed = {tuple(files): size for files, _, size in spool.rejections()}
    assert set(listed) == {("a.jsonl", "a.reason.json"), ("b.cancel", "b.cancel.reason.json")}
    assert all(size > 4 for size in listed.values())
    spool.remove_rejection(["a.jsonl", "a.reason.json"])
    assert names(spool.rejected) == {"b.cancel", "b.cancel.reason.json", "foreign"}

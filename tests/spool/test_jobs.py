"""queued/ and running/: each move of a job, also when it is repeated."""

import os

import pytest

from builders import JOB_ID
from inbox_daemon.contract.states import JobState
from inbox_daemon.spool import Spool
from spool_files import NOTICE, build, names


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


def test_publishing_again_finds_what_was_published(spool: Spool) -> None:
    """After a crash the same call gives the same answer and moves nothing."""
    build(spool)
    spool.publish(JOB_ID, "job")
    assert spool.publish(JOB_ID, "job") == "job"
    assert spool.published_as(JOB_ID, "job") == "job"
    assert spool.published_as("another", "job") is None


@pytest.mark.parametrize("occupant", ["results", "foreign", "file", "dangling"])
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

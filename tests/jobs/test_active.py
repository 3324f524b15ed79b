"""The active jobs: each change is on the disk first, and then wakes the runner."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import JOB_ID, job_record
from inbox_daemon.contract.job_documents import ended_damaged, ended_job
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.contract.states import BatchStatus, Priority
from inbox_daemon.jobs.active import RECENT, ActiveJobs
from inbox_daemon.jobs.clock import Correction
from inbox_daemon.ledger import Ledger

OTHER = f"{JOB_ID[:-1]}1"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger that knows one job."""
    ledger = Ledger(tmp_path)
    ledger.accept(job_record(requests=3), [])
    yield ledger
    ledger.close()


@pytest.fixture
def jobs(ledger: Ledger) -> ActiveJobs:
    """That job, queued."""
    jobs = ActiveJobs(ledger)
    jobs.add(job_record(requests=3))
    return jobs


async def test_a_pause_is_on_the_disk_and_wakes(jobs: ActiveJobs, ledger: Ledger) -> None:
    """A pause holds after a restart, and a resume undoes that pause only."""
    woken: list[set[str]] = []
    jobs.on_change = lambda: woken.append(ActiveJobs(ledger).paused)
    await jobs.pause(JOB_ID)
    await jobs.pause("ALL")
    await jobs.resume(JOB_ID)
    assert woken == [{JOB_ID}, {JOB_ID, "ALL"}, {"ALL"}]
    assert jobs.is_paused(job_record(OTHER))


async def test_a_pause_of_a_job_that_is_over_is_forgotten(jobs: ActiveJobs, ledger: Ledger) -> None:
    """The list of paused jobs has no jobs that are over."""
    await jobs.pause(JOB_ID)
    jobs.ended(ended_damaged(job_record(), "gone", 5.0))
    await jobs.pause("ALL")
    assert (jobs.paused, ActiveJobs(ledger).paused) == ({"ALL"}, {"ALL"})


async def test_the_first_reason_for_an_end_counts(jobs: ActiveJobs, ledger: Ledger) -> None:
    """A second order changes nothing, nor does one for a job that is over."""
    await jobs.end(JOB_ID, DeadReason.CANCELLED)
    await jobs.end(JOB_ID, DeadReason.EXPIRED)
    await jobs.end(OTHER, DeadReason.CANCELLED)
    stored = ledger.job(JOB_ID)
    assert stored is not None
    assert stored.ending is DeadReason.CANCELLED
    assert jobs.entries[JOB_ID].record == stored


def test_an_ended_job_is_gone_and_among_the_recent(jobs: ActiveJobs) -> None:
    """The last finished job is known, and a damaged job does not count as finished."""
    done = job_record(status=BatchStatus.COMPLETED, finished_at=5.0)
    jobs.ended(ended_job(done))
    jobs.ended(ended_damaged(job_record(OTHER, "other"), "gone", 6.0))
    facts = jobs.facts()
    assert (facts.active, [job.status for job in facts.recent]) == (0, ["damaged", "completed"])
    assert facts.last_finished is not None
    assert facts.last_finished.name == "job"


def test_the_recent_ones_are_bounded(jobs: ActiveJobs) -> None:
    """Only the newest ended jobs are kept, however many have ended."""
    for number in range(RECENT + 5):
        jobs.ended(ended_damaged(job_record(f"{number:026}", f"job{number}"), "gone", 6.0))
    assert len(jobs.facts().recent) == RECENT


def test_the_most_urgent_is_next_and_one_that_only_ends_before_it(jobs: ActiveJobs) -> None:
    """Jobs go by priority, then by age; a cancelled job needs no engine and goes first."""
    jobs.add(job_record(OTHER, "high", priority=Priority.HIGH, created_at=1000.0))
    found = jobs.next_queued(1000.0)
    assert found is not None
    assert found.name == "high"
    jobs.entries[JOB_ID].record = job_record(ending=DeadReason.CANCELLED)
    found = jobs.next_queued(1000.0)
    assert found is not None
    assert found.id == JOB_ID


# -- the clock ----------------------------------------------------------------------


async def test_a_correction_moves_what_was_reckoned(jobs: ActiveJobs, ledger: Ledger) -> None:
    """The time that a job has left stays, on the disk too; what is unknown stays unknown."""
    jobs.add(job_record(requests=3, created_at=100.0, expires_at=160.0))
    await jobs.correct(Correction(1000.0, None))
    stored = ledger.job(JOB_ID)
    assert stored is not None
    assert (stored.created_at, stored.expires_at, stored.in_progress_at) == (1100.0, 1160.0, None)
    assert jobs.entries[JOB_ID].record == stored


async def test_a_correction_leaves_the_jobs_of_before_alone(
    jobs: ActiveJobs, ledger: Ledger
) -> None:
    """The time in which the machine was off has passed for them."""
    ledger.accept(job_record(OTHER, "other"), [])
    jobs.add(job_record(requests=3, created_at=100.0, expires_at=160.0))
    jobs.add(job_record(OTHER, "other", created_at=200.0, expires_at=260.0))
    await jobs.correct(Correction(1000.0, 200.0))
    expires = {job_id: entry.record.expires_at for job_id, entry in jobs.entries.items()}
    assert expires == {JOB_ID: 160.0, OTHER: 1260.0}

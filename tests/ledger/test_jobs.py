"""The ledger's jobs: by id, by delivery, and what is left of one that ended."""

from builders import JOB_ID, dead_letter, job_record
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.job_documents import ended_job
from inbox_daemon.contract.records import (
    Checkpoint,
    InvalidLine,
    Progress,
)
from ledger_rows import OTHER, RETRY, Open, entry

# -- jobs ---------------------------------------------------------------------------


def test_an_accepted_job_is_known_by_id_and_by_content(reopen: Open) -> None:
    """Its record is found by its id and by the name and bytes that were delivered."""
    job = job_record()
    reopen().accept(job, [])
    ledger = reopen()
    assert ledger.job(JOB_ID) == job
    assert ledger.jobs() == [job]
    assert ledger.delivered("job", job.sha256) == job
    assert ledger.delivered("other", job.sha256) is None
    assert ledger.delivered("job", "0" * 64) is None


def test_jobs_are_listed_oldest_first(reopen: Open) -> None:
    """Ids are in order of time, and so are the records."""
    ledger = reopen()
    for end in "2", "0", "1":
        ledger.accept(job_record(JOB_ID[:-1] + end, f"job{end}"), [])
    assert [job.name for job in ledger.jobs()] == ["job0", "job1", "job2"]


def test_invalid_lines_are_kept_with_their_job(reopen: Open) -> None:
    """The faults of lines that were accepted as dead letters come back by line."""
    fault = Fault(code="too_deep", message="it is too deep", line=7)
    reopen().accept(job_record(invalid=1), [InvalidLine(7, fault)])
    assert reopen().invalid(JOB_ID) == {7: fault}


def test_a_finished_job_keeps_its_record_and_letters(reopen: Open) -> None:
    """What re-deliveries and redrives need stays, what only the run needed goes."""
    ledger = reopen()
    job = job_record()
    ledger.accept(job, [InvalidLine(2, Fault(code="x", message="m"))])
    ledger.checkpoint(
        [Checkpoint(JOB_ID, Progress(completed=1), [entry(1)], {3: RETRY}, [dead_letter(2)])]
    )
    done = job.model_copy(update={"finished_at": 5.0})
    ledger.finish(done, ended_job(done))
    ledger = reopen()
    assert ledger.job(JOB_ID) == done
    assert ledger.delivered("job", job.sha256) == done
    assert list(ledger.dead_letters(JOB_ID)) == [dead_letter(2)]
    assert ledger.progress(JOB_ID) == Progress()
    assert (ledger.entries(JOB_ID), ledger.retries(JOB_ID), ledger.invalid(JOB_ID)) == ([], {}, {})


def test_a_forgotten_job_is_gone_and_its_neighbours_stay(reopen: Open) -> None:
    """Forgetting touches the rows of one job alone, and may be repeated."""
    ledger = reopen()
    for job_id, name in (JOB_ID, "job"), (OTHER, "other"):
        ledger.accept(job_record(job_id, name), [])
        ledger.checkpoint([Checkpoint(job_id, Progress(completed=2), [entry(1), entry(2)])])
    for _ in range(2):
        ledger.forget(JOB_ID)
    ledger = reopen()
    assert (ledger.job(JOB_ID), ledger.entries(JOB_ID)) == (None, [])
    assert ledger.delivered("job", job_record().sha256) is None
    assert ledger.entries(OTHER) == [entry(1), entry(2)]
    assert ledger.progress(OTHER) == Progress(completed=2)


def test_forgetting_an_older_job_keeps_the_newer_ones_delivery(reopen: Open) -> None:
    """The same file accepted again belongs to the job that it was last."""
    ledger = reopen()
    ledger.accept(job_record(), [])
    ledger.accept(job_record(OTHER), [])
    ledger.forget(JOB_ID)
    found = ledger.delivered("job", job_record().sha256)
    assert found is not None
    assert found.id == OTHER

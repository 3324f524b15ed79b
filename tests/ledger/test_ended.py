"""Ended events: each job that is over has one, and each consumer sees it once."""

import pytest

from builders import JOB_ID, job_record
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.job_documents import ended_damaged, ended_job, ended_rejected, reason
from inbox_daemon.contract.records import Ended, EndedKind
from inbox_daemon.contract.states import BatchStatus
from inbox_daemon.ledger import ended
from ledger_rows import OTHER, Open


def event(number: int, kind: EndedKind = EndedKind.REJECTED) -> Ended:
    """An event of a job of that number."""
    return Ended(id=f"{number:026}", name=f"job{number}", kind=kind, at=5.0, message="no")


def test_a_finished_job_leaves_its_event_with_its_record(reopen: Open) -> None:
    """Both are written or neither is, and both are there after a crash."""
    ledger, job = reopen(), job_record(requests=2)
    ledger.accept(job, [])
    done = job.model_copy(
        update={"finished_at": 9.0, "status": BatchStatus.CANCELLED, "completed": 1, "failed": 1}
    )
    ledger.finish(done, ended_job(done))
    [(number, found)] = reopen().endings()
    assert (number, found.id, found.kind, found.at) == (1, JOB_ID, EndedKind.CANCELLED, 9.0)
    assert (found.requests, found.completed, found.failed) == (2, 1, 1)


def test_a_damaged_job_leaves_its_event_when_it_is_forgotten(reopen: Open) -> None:
    """The record goes and the event stays; a job that only never started leaves none."""
    ledger, job = reopen(), job_record()
    ledger.accept(job, [])
    ledger.forget(JOB_ID, ended_damaged(job, "bytes are missing", 7.0))
    ledger.accept(job_record(OTHER, "other"), [])
    ledger.forget(OTHER)
    ledger = reopen()
    assert ledger.jobs() == []
    assert [(e.id, e.kind, e.message) for _, e in ledger.endings()] == [
        (JOB_ID, EndedKind.DAMAGED, "bytes are missing")
    ]


def test_a_refusal_is_recorded_once_whatever_a_crash_repeats(reopen: Open) -> None:
    """The second writing of the same id changes nothing."""
    why = reason(JOB_ID, "job", [Fault(code="empty", message="no request")], 5.0)
    for _ in range(2):
        reopen().record_ended(ended_rejected(why))
    assert [(n, e.kind) for n, e in reopen().endings()] == [(1, EndedKind.REJECTED)]


def test_events_are_numbered_in_order_and_read_in_pages(reopen: Open) -> None:
    """Numbers grow by one, and a reader goes on after the last one that it knows."""
    ledger = reopen()
    for number in range(1, 8):
        ledger.record_ended(event(number))
    assert [n for n, _ in ledger.endings(most=3)] == [1, 2, 3]
    assert [n for n, _ in ledger.endings(3)] == [4, 5, 6, 7]
    assert ledger.endings(7) == []
    assert [e.name for e in ledger.last_endings(2)] == ["job6", "job7"]


def test_a_consumer_sees_each_event_once(reopen: Open) -> None:
    """An event is unseen until the consumer's own mark, also after a crash, and never after it."""
    ledger = reopen()
    for number in (1, 2):
        ledger.record_ended(event(number))
    assert [n for n, _ in ledger.unseen("mail")] == [1, 2]
    ledger = reopen()  # it was not marked: nothing is lost
    assert [n for n, _ in ledger.unseen("mail")] == [1, 2]
    ledger.mark_seen("mail", 1)
    ledger = reopen()
    assert [n for n, _ in ledger.unseen("mail")] == [2]
    assert [n for n, _ in ledger.unseen("metrics")] == [1, 2]
    ledger.mark_seen("mail", 2)
    assert reopen().unseen("mail") == []


def test_the_list_is_bounded(reopen: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go, their numbers are not used again, and their ids may return."""
    monkeypatch.setattr(ended, "KEPT", 3)
    ledger = reopen()
    for number in range(1, 6):
        ledger.record_ended(event(number))
    assert [n for n, _ in ledger.endings()] == [3, 4, 5]
    ledger.record_ended(event(1))
    assert [(n, e.name) for n, e in ledger.endings()] == [(4, "job4"), (5, "job5"), (6, "job1")]

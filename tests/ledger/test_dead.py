"""The ledger's dead letters: paged, redriven, purged."""

import tracemalloc

import pytest

from builders import JOB_ID, dead_letter, job_record
from inbox_daemon.contract.job_documents import ended_job
from inbox_daemon.contract.records import (
    Checkpoint,
    Progress,
)
from inbox_daemon.ledger import jobs
from ledger_rows import OTHER, Open

# -- checkpoints --------------------------------------------------------------------


def test_dead_letters_are_paged_without_a_gap(reopen: Open) -> None:
    """All letters, or those of one job, are walked once and in order."""
    ledger = reopen()
    many = [dead_letter(line) for line in range(1, 451)]
    other = [dead_letter(line, OTHER) for line in range(1, 3)]
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(), dead=many)])
    ledger.checkpoint([Checkpoint(OTHER, Progress(), dead=other)])
    assert list(ledger.dead_letters()) == many + other
    assert list(ledger.dead_letters(JOB_ID)) == many
    assert list(ledger.dead_letters(OTHER)) == other
    assert ledger.dead_count() == 452
    assert ledger.dead_letter(OTHER, 2) == other[1]


def test_a_page_of_large_letters_is_a_short_one(reopen: Open) -> None:
    """Of letters that hold a megabyte each, one or two are in memory at a time."""
    ledger = reopen()
    many = [dead_letter(line, request="x" * (1 << 20)) for line in range(1, 33)]
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(), dead=many)])
    assert list(ledger.dead_letters()) == many
    tracemalloc.start()
    assert sum(1 for _ in ledger.dead_letters()) == 32
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 24 << 20  # of which orjson asks for some 14 to parse one


def test_letters_may_go_while_they_are_walked(reopen: Open) -> None:
    """A purge in the middle of a walk neither ends nor repeats it."""
    ledger = reopen()
    many = [dead_letter(line) for line in range(1, 601)]
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(), dead=many)])
    seen = []
    for letter in ledger.dead_letters():
        seen.append(letter.line)
        ledger.purge([(JOB_ID, letter.line)])
    assert seen == list(range(1, 601))
    assert ledger.dead_count() == 0


def test_redriven_letters_stay_until_their_new_job_has_answered(reopen: Open) -> None:
    """While a job runs letters again they are marked, and go when it is finished."""
    ledger = reopen()
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(), dead=[dead_letter(4), dead_letter(9)])])
    again = job_record(OTHER, "again", redrive_of=JOB_ID)
    ledger.accept(again, [], [9])
    assert reopen().being_redriven() == {(JOB_ID, 9)}
    done = again.model_copy(update={"finished_at": 5.0})
    reopen().finish(done, ended_job(done))
    ledger = reopen()
    assert [letter.line for letter in ledger.dead_letters()] == [4]
    assert ledger.being_redriven() == set()


def test_many_letters_that_were_answered_go_in_steps(
    reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between two steps leaves the rest marked, and the next finish removes it."""
    monkeypatch.setattr(jobs, "_AT_ONCE", 10)
    ledger = reopen()
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(), dead=[dead_letter(n) for n in range(35)])])
    again = job_record(OTHER, "again", redrive_of=JOB_ID)
    ledger.accept(again, [], range(5, 35))
    assert ledger._forget_answered(OTHER)
    ledger = reopen()
    assert (ledger.dead_count(), len(ledger.being_redriven())) == (25, 20)
    assert ledger.job(OTHER) == again
    done = again.model_copy(update={"finished_at": 5.0})
    ledger.finish(done, ended_job(done))
    assert (ledger.dead_count(), ledger.being_redriven(), ledger.job(OTHER)) == (5, set(), done)


def test_a_redrive_that_was_forgotten_frees_its_letters(reopen: Open) -> None:
    """A new job that never started leaves the letters to be redriven again."""
    ledger = reopen()
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(), dead=[dead_letter(4)])])
    ledger.accept(job_record(OTHER, "again", redrive_of=JOB_ID), [], [4])
    ledger.forget(OTHER)
    assert (ledger.being_redriven(), ledger.dead_count()) == (set(), 1)

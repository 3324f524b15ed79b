"""Marks: each request has one, and none starts before it may."""

from inbox_daemon.jobs.marks import Marks


def started(marks: Marks, now: float = 0.0) -> list[int]:
    """Start everything that may be started; return the ordinals."""
    found = []
    while (ordinal := marks.next_ordinal(now)) is not None:
        marks.start(ordinal)
        found.append(ordinal)
    return found


def commit(marks: Marks) -> None:
    """Make everything count, chunks in their own order."""
    marks.committed(*marks.take_uncommitted())


def test_a_job_that_is_taken_up_goes_on_where_it_was() -> None:
    """Ended requests stay ended, failed ones are due at once, the rest of the chunk is new."""
    marks = Marks(6, 4, ended=[0, 2], failed=[3])
    assert (marks.startable, marks.retrying, marks.fully_admitted) == (1, 1, False)
    assert started(marks) == [3, 1]
    assert [marks.is_open(ordinal) for ordinal in range(3)] == [False, True, False]


def test_a_chunk_starts_once_it_is_committed_in_the_order_given() -> None:
    """The commit gives the order, and the next chunk may be admitted meanwhile."""
    marks = Marks(5, 0)
    assert marks.admit(3) == (0, 2)
    failures, chunk = marks.take_uncommitted()
    assert (started(marks), list(chunk), marks.admitting) == ([], [0, 1, 2], True)
    marks.admit(9)
    marks.committed(failures, [2, 0, 1])
    assert (started(marks), marks.admitting, marks.fully_admitted) == ([2, 0, 1], True, True)
    commit(marks)
    assert (started(marks), marks.spent) == ([3, 4], True)


def test_a_charged_failure_waits_for_its_commit_and_its_backoff() -> None:
    """Before that the request is neither due nor may it run as a suspect."""
    marks = Marks(1, 1)
    started(marks)
    marks.fail(0, due=10.0)
    assert (started(marks, 99.0), marks.take_suspect(0), marks.in_flight) == ([], False, 0)
    commit(marks)
    assert (started(marks, 9.0), marks.next_due()) == ([], 10.0)
    assert started(marks, 10.0) == [0]


def test_an_abandoned_request_comes_next_and_is_not_charged() -> None:
    """An abandoned request needs no commit, and may be put off until a given time."""
    marks = Marks(2, 2)
    started(marks)
    marks.abandon(1)
    marks.abandon(0, due=5.0)
    assert (started(marks), started(marks, 5.0)) == ([1], [0])


def test_a_suspect_that_is_put_off_runs_when_it_is_taken() -> None:
    """A suspect that was put off never starts by itself; one in flight or over cannot be taken."""
    marks = Marks(3, 3)
    marks.put_off(0)
    assert started(marks, 1e9) == [1, 2]
    assert marks.take_suspect(0)
    marks.start(0)
    assert not marks.take_suspect(0)
    marks.end(1)
    assert not marks.take_suspect(1)


def test_what_is_left_of_a_job_is_found_one_by_one() -> None:
    """Of a job that is ended early, requests in flight or over are not returned."""
    marks = Marks(4, 4)
    marks.start(0)
    marks.end(1)
    assert marks.next_open() == 2
    marks.end(2)
    assert marks.next_open() == 3
    marks.end(3)
    assert marks.next_open() is None

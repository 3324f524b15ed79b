"""Limits: what fits and what does not, to the last request and byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import limits
from inbox_daemon.contract.config import DiskConfig
from inbox_daemon.contract.limits import (
    RETRYABLE,
    QueueLoad,
    check_bytes,
    check_queue,
    check_requests,
    disk_shortage,
    publication_shortage,
)

COUNTS = st.integers(0, 50)


@pytest.mark.parametrize(("jobs", "fits"), [(0, True), (4, True), (5, False), (6, False)])
def test_the_queue_takes_as_many_jobs_as_it_may(jobs: int, fits: bool) -> None:  # noqa: FBT001 - a table
    """A job is refused from the moment that the queue is as deep as it may be."""
    fault = check_queue(QueueLoad(jobs, 0), limits(max_queue_depth=5))
    assert (fault is None) == fits
    assert fault is None or (fault.code in RETRYABLE and "queue_available" in fault.message)


@pytest.mark.parametrize(("size", "code"), [(0, "empty"), (1, None), (10, None), (11, "too_large")])
def test_a_files_size_is_held_to_its_limit_exactly(size: int, code: str | None) -> None:
    """An empty file and one a byte too large are refused, and never worth a second try."""
    fault = check_bytes(size, limits(max_file_bytes=10))
    assert (fault.code if fault else None) == code
    assert code not in RETRYABLE


@given(COUNTS, COUNTS, st.integers(1, 50))
def test_requests_fit_beside_those_that_are_queued(queued: int, new: int, limit: int) -> None:
    """A job is accepted exactly when its requests and the open ones stay within the limit."""
    fault = check_requests(QueueLoad(1, queued), new, limits(max_total_queued_requests=limit))
    assert (fault is None) == (queued + new <= limit)
    if fault is not None:
        assert (fault.code in RETRYABLE) == (new <= limit)


def test_a_job_larger_than_the_whole_queue_has_to_be_split() -> None:
    """Where waiting cannot help, the sender is not told to wait."""
    fault = check_requests(QueueLoad(0, 0), 11, limits(max_total_queued_requests=10))
    assert fault is not None
    assert (fault.code, "split" in fault.message) == ("too_many_requests", True)


def test_a_full_queue_never_shows_negative_room() -> None:
    """After the limit was lowered the message counts no room as none."""
    fault = check_requests(QueueLoad(1, 99), 5, limits(max_total_queued_requests=10))
    assert fault is not None
    assert "room for 0 of 10" in fault.message


@pytest.mark.parametrize(
    ("free_bytes", "free_inodes", "words"),
    [
        (100, 10, None),
        (99, 10, "MiB"),
        (100, 9, "9 inodes"),
        (0, 0, "MiB"),
        (100, 0, "0 inodes"),
    ],
)
def test_room_on_the_disk_is_held_to_its_floor_exactly(
    free_bytes: int, free_inodes: int, words: str | None
) -> None:
    """At the floor work goes on, and one byte or inode below it nothing is taken."""
    floor = DiskConfig(min_free_bytes=100, min_free_inodes=10)
    found = disk_shortage(free_bytes, free_inodes, floor)
    assert (found is None) == (words is None)
    assert words is None or words in str(found)


def test_a_floor_of_nothing_never_stops_the_work() -> None:
    """Both floors can be switched off."""
    assert disk_shortage(0, 0, DiskConfig(min_free_bytes=0, min_free_inodes=0)) is None


@pytest.mark.parametrize(
    ("free_bytes", "free_inodes", "words"),
    [
        (150, 16, None),
        (149, 16, "free some space"),
        (150, 15, "15 free"),
    ],
)
def test_a_publication_leaves_the_floor_free_exactly(
    free_bytes: int, free_inodes: int, words: str | None
) -> None:
    """A job's folder is built only where the floor stays free beside it."""
    floor = DiskConfig(min_free_bytes=100, min_free_inodes=10)
    found = publication_shortage(free_bytes, free_inodes, 50, floor)
    assert (found is None) == (words is None)
    assert words is None or words in str(found)

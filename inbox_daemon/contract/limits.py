"""The limits: what one line, one job and the whole queue may hold.

Purpose: pure decisions, each of which returns a Fault or None.
Invariants: no clock, no file; the same figures give the same answer.
"""

from dataclasses import dataclass

from inbox_daemon.contract.config import DiskConfig, LimitsConfig
from inbox_daemon.contract.documents import Fault

MAX_LISTED_FAULTS = 100
# A folder of outbox/ with its four files, and one that is replaced.
PUBLICATION_INODES = 6
# More than the ledger grows by for an order or a refusal.
ORDER_BYTES = 16 << 20

# What may be accepted later, although nothing about the file changes.
RETRYABLE = frozenset({"queue_full", "too_many_queued_requests", "name_in_use", "truncated"})


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """What the queue holds: jobs queued and running, and their open requests."""

    jobs: int
    requests: int


def check_queue(load: QueueLoad, limits: LimitsConfig) -> Fault | None:
    """Refuse a further job when the queue is as deep as it may be."""
    if load.jobs < limits.max_queue_depth:
        return None
    message = (
        f"{load.jobs} jobs are queued or running and the limit is {limits.max_queue_depth}; "
        "send the file again when outbox/status.json shows queue_available above 0"
    )
    return Fault(code="queue_full", message=message)


def check_requests(load: QueueLoad, requests: int, limits: LimitsConfig) -> Fault | None:
    """Refuse a job whose requests do not fit beside those already queued."""
    room = limits.max_total_queued_requests - load.requests
    if requests <= room:
        return None
    if requests > limits.max_total_queued_requests:  # never, so another code: not retryable
        message = (
            f"the file has {requests} requests and the whole queue holds "
            f"{limits.max_total_queued_requests}; split it"
        )
        return Fault(code="too_many_requests", message=message)
    message = (
        f"the file has {requests} requests and the queue has room for {max(room, 0)} of "
        f"{limits.max_total_queued_requests}; send the file again when jobs have finished"
    )
    return Fault(code="too_many_queued_requests", message=message)


def check_bytes(size: int, limits: LimitsConfig) -> Fault | None:
    """Refuse a file that is too large or empty, by its size in bytes alone."""
    if size == 0:
        return Fault(code="empty", message="the file is empty; it needs at least one request")
    if size <= limits.max_file_bytes:
        return None
    message = f"the file has {size} bytes and the limit is {limits.max_file_bytes}; split it"
    return Fault(code="too_large", message=message)


def publication_shortage(
    free_bytes: int, free_inodes: int, needed_bytes: int, floor: DiskConfig
) -> str | None:
    """Say why a job's results cannot be published yet; None while there is room for them."""
    if free_bytes - needed_bytes < floor.min_free_bytes:
        return (
            f"they need {mebibytes(needed_bytes)} more, the disk has {mebibytes(free_bytes)} free "
            f"and {mebibytes(floor.min_free_bytes)} are kept free: free some space"
        )
    if free_inodes - PUBLICATION_INODES < floor.min_free_inodes:
        return (
            f"they need {PUBLICATION_INODES} inodes, the disk has {free_inodes} free and "
            f"{floor.min_free_inodes} are kept free: remove some files"
        )
    return None


def disk_full(free_bytes: int, floor: DiskConfig) -> str | None:
    """Say why not even an order is obeyed; None while there is room for what that writes."""
    reserve = min(floor.min_free_bytes, ORDER_BYTES)
    if free_bytes >= reserve:
        return None
    return (
        f"the disk is full ({mebibytes(free_bytes)} free, and an order takes up to "
        f"{mebibytes(reserve)}): free some space"
    )


def mebibytes(count: int) -> str:
    """Return a number of bytes in words, rounded up to a MiB."""
    return f"{-(-count >> 20):,} MiB"


def disk_shortage(free_bytes: int, free_inodes: int, floor: DiskConfig) -> str | None:
    """Say why nothing more may be taken or sent; None while there is room."""
    if free_bytes < floor.min_free_bytes:
        return (
            f"the disk has {free_bytes >> 20} MiB free and {floor.min_free_bytes >> 20} MiB are "
            "kept free: nothing is taken or sent until there is room"
        )
    if free_inodes < floor.min_free_inodes:
        return (
            f"the disk has {free_inodes} inodes free and {floor.min_free_inodes} are kept free: "
            "nothing is taken or sent until there is room"
        )
    return None

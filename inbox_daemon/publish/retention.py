"""Retention: remove what has ended, by age and by total bytes.

Purpose: choose, purely, what goes; and carry it out through spool and ledger.
Invariants: only published folders, refused files, dead letters and the records of
jobs that left nothing else are ever removed, never anything unfinished, in quarantine/
or in inbox/; the oldest goes first; a limit of 0 keeps everything; what goes goes whole.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ulid import ULID

from inbox_daemon.contract.config import Config
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool, durable

log = logging.getLogger(__name__)

_DAY_S = 86400.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """Something that takes room, its end in seconds since 1970, its size in bytes."""

    what: T
    at: float
    size: int


def surplus(kept: Iterable[Kept[T]], now: float, days: float, max_bytes: int) -> list[T]:
    """What is older than `days`, and the oldest of the rest above `max_bytes` in all."""
    ordered = sorted(kept, key=lambda item: item.at)
    total = sum(item.size for item in ordered)
    gone = []
    for item in ordered:
        old = days > 0 and now - item.at > days * _DAY_S
        if not old and not (max_bytes > 0 and total > max_bytes):
            continue
        gone.append(item.what)
        total -= item.size
    return gone


def retain(config: Config, spool: Spool, ledger: Ledger, now: float) -> int:
    """Remove the surplus; blocks, use a thread.  Returns how many things went.

    `now` is in seconds since 1970, and not later than it surely is.  What cannot be removed is
    left whole and named in the health, and the others go.
    Raises LedgerError; OSError: one of the spool's own folders cannot be read.
    """
    rules, gone = config.retention, 0
    _clear_leftovers(spool, ledger)
    jobs = {record.id: record for record in ledger.jobs()}
    # The file's time is the disk's alone, which may have been behind.
    ends = {record.outbox: record.finished_at or 0.0 for record in jobs.values()}
    published = [
        Kept(name, max(at, ends.get(name, at)), size)
        for name, at, size in spool.published_folders()
    ]
    for name in surplus(published, now, rules.outbox_days, rules.outbox_max_bytes):
        with spool.troubles.alone(spool.outbox / name, "removed"):
            spool.remove_published(name)
            log.info("outbox_removed", extra={"job": name})
            gone += 1
    refused = [Kept(names, at, size) for names, at, size in spool.rejections()]
    for names in surplus(refused, now, rules.rejected_days, rules.rejected_max_bytes):
        with spool.troubles.alone(spool.rejected / names[-1], "removed"):
            spool.remove_rejection(names)
            log.info("rejection_removed", extra={"files": names})
            gone += 1
    letters, busy = [], ledger.being_redriven()
    for job_id, line, size in ledger.dead_sizes():
        # Its age is that of its job's end, or of the job's id where the record is gone, as of
        # one whose files vanished; an active job has no end.
        record = jobs.get(job_id)
        at = record.finished_at if record else ULID.from_str(job_id).timestamp
        if at is not None and (job_id, line) not in busy:
            letters.append(Kept((job_id, line), at, size))
    old = surplus(letters, now, rules.dead_letter_days, rules.dead_letter_max_bytes)
    if old:
        ledger.purge(old)
        log.info("dead_letters_removed", extra={"count": len(old)})
        gone += len(old)
    # Forget jobs whose re-delivery counts as new by now and that left nothing else.
    lettered = {job_id for job_id, _, _ in ledger.dead_sizes()}
    for record in jobs.values():
        ended = record.finished_at
        if ended is None or now - ended <= config.intake.dedup_days * _DAY_S:
            continue
        if record.id not in lettered and spool.published_as(record.id, record.name) is None:
            ledger.forget(record.id)
            gone += 1
    return gone


def _clear_leftovers(spool: Spool, ledger: Ledger) -> None:
    """Try once more to remove what an error has kept in place though it was over."""
    for path in spool.removed_in_part():
        with spool.troubles.alone(path, "removed"):
            durable.remove_tree(path)
    for path in spool.troubles.below(spool.running):
        record = ledger.job(path.name)
        if record is not None and record.finished_at is not None:
            spool.discard(record.id)

"""Recover: repair at start what a crash left in the middle.

Purpose: bring spool and ledger to a state that the loops know, and fill the queue.
Invariants: every step may itself be interrupted and repeated; nothing is deleted that
is not known to be published, to be a copy, or to be empty; what cannot be understood
goes to quarantine/ and is named in the log.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
from pydantic import ValidationError

from inbox_daemon.contract import job_documents
from inbox_daemon.contract.documents import Refusal
from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.contract.health_documents import RecentJob
from inbox_daemon.contract.records import JobRecord
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool, durable

log = logging.getLogger(__name__)

# What opening a job raises when its files lost something.
DAMAGE = (DamagedJobError, KeyError, FileNotFoundError)
_RECENT = 20


def recover(spool: Spool, ledger: Ledger) -> ActiveJobs:
    """Repair the spool and return the queue; blocks, called before any loop runs.

    Raises LedgerError, OSError: the spool cannot be read.
    """
    spool.finish_rejections()
    spool.finish_drops()
    _discard_claims(spool, ledger)
    queue = ActiveJobs()
    for job_id in spool.running_ids():
        _recover_running(job_id, spool, ledger, queue)
    for job_id in spool.queued_ids():
        _recover_queued(job_id, spool, ledger, queue)
    _forget_vanished(ledger, queue)
    _remember_recent(spool, ledger, queue)
    return queue


def _discard_claims(spool: Spool, ledger: Ledger) -> None:
    """Undo the claims in hand: their drops still lie in inbox/."""
    for path in spool.leftover_claims():
        if path.is_dir():
            durable.remove_tree(path)
            continue
        if path.suffix == ".jsonl":
            ledger.forget(path.stem)
        durable.remove_file(path)


def _recover_running(job_id: str, spool: Spool, ledger: Ledger, queue: ActiveJobs) -> None:
    record = ledger.job(job_id)
    if record is not None and record.finished_at is not None:
        spool.discard(job_id)
    elif record is not None and spool.input_path(job_id).exists():
        _reopen(record, spool, ledger, queue)
    elif not durable.remove_empty_dir(spool.running / job_id):
        _quarantine(spool.running / job_id, spool)


def _reopen(record: JobRecord, spool: Spool, ledger: Ledger, queue: ActiveJobs) -> None:
    """Go on with a running job; one whose files are damaged is set aside, not the rest."""
    try:
        run = RunningJob(record, spool, ledger)
    except DAMAGE as error:
        queue.note(quarantine_job(record, spool, error))
        return
    queue.add(record, run)
    fields = {"job": record.name, "ended": run.progress.ended, "requests": run.total}
    log.info("job_recovered", extra=fields)


def quarantine_job(record: JobRecord, spool: Spool, error: Exception) -> RecentJob:
    """Keep a running job whose files are damaged in quarantine/; return what to tell of it.

    Its record is left to whoever calls.
    """
    log.error("job_damaged", extra={"job": record.name, "reason": str(error)}, exc_info=error)
    if not durable.remove_empty_dir(spool.running / record.id):
        _quarantine(spool.running / record.id, spool)
    return job_documents.recent_damaged(record, str(error), time.time())


def _recover_queued(job_id: str, spool: Spool, ledger: Ledger, queue: ActiveJobs) -> None:
    record = ledger.job(job_id)
    if record is None or job_id in queue.entries:
        _quarantine(spool.queued / f"{job_id}.jsonl", spool)
    else:
        queue.add(record)


def _quarantine(path: Path, spool: Spool) -> None:
    moved = spool.quarantine_path(path)
    log.error("quarantined", extra={"path": str(path), "moved_to": str(moved)})


def _forget_vanished(ledger: Ledger, queue: ActiveJobs) -> None:
    """Free the names of jobs whose files somebody took out of the spool."""
    for record in ledger.jobs():
        if record.finished_at is None and record.id not in queue.entries:
            log.error("job_vanished", extra={"job": record.name, "id": record.id})
            ledger.forget(record.id)


def _remember_recent(spool: Spool, ledger: Ledger, queue: ActiveJobs) -> None:
    finished = [record for record in ledger.jobs() if record.finished_at is not None]
    notes = [job_documents.recent_finished(record) for record in finished]
    notes += [job_documents.recent_rejected(reason) for reason in _reasons(spool)]
    for note in sorted(notes, key=lambda note: note.at)[-_RECENT:]:
        queue.note(note)


def _reasons(spool: Spool) -> Iterator[Refusal]:
    newest = sorted(spool.rejected.glob("*.reason.json"), key=lambda path: path.lstat().st_mtime)
    for path in newest[-_RECENT:]:
        try:
            yield Refusal.model_validate(orjson.loads(path.read_bytes()))
        except (OSError, orjson.JSONDecodeError, ValidationError):
            log.warning("reason_unreadable", extra={"path": str(path)})

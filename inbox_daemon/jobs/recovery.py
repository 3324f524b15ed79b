"""Recover: repair at start what a crash left in the middle.

Purpose: bring spool and ledger to a state that the loops know, and fill the queue.
Invariants: every step may itself be interrupted and repeated; nothing is deleted that
is not known to be published, to be a copy, or to be empty; what cannot be understood
goes to quarantine/ and is named in the log.
"""

import logging
import time
from pathlib import Path

from pydantic import ValidationError

from inbox_daemon.contract.documents import Refusal
from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.contract.job_documents import ended_damaged, ended_rejected, recent_ended
from inbox_daemon.contract.names import JOB_SUFFIX
from inbox_daemon.contract.records import Ended, JobRecord
from inbox_daemon.jobs.active import RECENT, ActiveJobs
from inbox_daemon.jobs.clock import CheckedClock
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool, durable

log = logging.getLogger(__name__)

# What opening a job raises when its files lost something.
DAMAGE = (DamagedJobError, KeyError, FileNotFoundError)


def recover(
    spool: Spool, ledger: Ledger, ageing_s: float = 3600.0, clock: CheckedClock | None = None
) -> ActiveJobs:
    """Repair the spool and return the active jobs; blocks, called before any loop runs.

    `ageing_s` and `clock` are passed on to them.
    Raises LedgerError, OSError: the spool cannot be read.
    """
    settle_claims(spool, ledger)
    for path in spool.leftover_claims():
        if path.is_dir():
            durable.remove_tree(path)
        else:
            durable.remove_file(path)
    jobs = ActiveJobs(ledger, ageing_s, clock)
    for job_id in spool.running_ids():
        _recover_running(job_id, spool, ledger, jobs)
    for job_id in spool.queued_ids():
        record = ledger.job(job_id)
        if record is None or job_id in jobs.entries:
            _quarantine(spool.queued / f"{job_id}{JOB_SUFFIX}", spool)
        else:
            jobs.add(record)
    # Free the names of jobs whose files were taken out of the spool.
    for record in ledger.jobs():
        if record.finished_at is None and record.id not in jobs.entries:
            log.error("job_vanished", extra={"job": record.name, "id": record.id})
            why = "its files are no longer in queued/ or running/; send it again if it is wanted"
            ledger.forget(record.id, ended_damaged(record, why, time.time()))
    for ended in ledger.last_endings(RECENT):
        jobs.note(recent_ended(ended))
    return jobs


def settle_claims(spool: Spool, ledger: Ledger) -> None:
    """Finish or undo what intake was doing with a drop when it was interrupted.

    Blocks; no drop may be answered meanwhile.
    Raises LedgerError, OSError.
    """
    spool.finish_rejections(lambda reason: _record_refusal(reason, ledger))
    spool.finish_drops()
    for path in spool.leftover_claims():  # their drops still lie in inbox/
        if path.suffix == JOB_SUFFIX and not path.is_dir():
            ledger.forget(path.stem)
            durable.remove_file(path)


def _record_refusal(reason: bytes, ledger: Ledger) -> None:
    """Write the ended event of a refusal, unless its reason cannot be read."""
    try:
        ledger.record_ended(ended_rejected(Refusal.model_validate_json(reason)))
    except ValidationError as error:
        log.warning("reason_unreadable", extra={"reason": str(error)})


def _recover_running(job_id: str, spool: Spool, ledger: Ledger, jobs: ActiveJobs) -> None:
    """Go on with a running job; one whose files are damaged is set aside, not the rest."""
    record = ledger.job(job_id)
    if record is not None and record.finished_at is not None:
        spool.discard(job_id)
        return
    if record is None or not spool.input_path(job_id).exists():
        if not durable.remove_empty_dir(spool.running / job_id):
            _quarantine(spool.running / job_id, spool)
        return
    try:
        run = RunningJob(record, spool, ledger)
    except DAMAGE as error:
        quarantine_job(record, spool, ledger, error)
        return
    jobs.add(record, run)
    fields = {"job": record.name, "ended": run.progress.ended, "requests": run.total}
    log.info("job_recovered", extra=fields)


def quarantine_job(record: JobRecord, spool: Spool, ledger: Ledger, error: Exception) -> Ended:
    """Keep a running job whose files are damaged in quarantine/; return its ended event.

    Raises LedgerError, OSError.
    """
    log.error("job_damaged", extra={"job": record.name, "reason": str(error)}, exc_info=error)
    if not durable.remove_empty_dir(spool.running / record.id):
        _quarantine(spool.running / record.id, spool)
    why = f"{error}; what is left of the job lies in quarantine/{record.id}"
    ended = ended_damaged(record, why, time.time())
    ledger.forget(record.id, ended)
    return ended


def _quarantine(path: Path, spool: Spool) -> None:
    moved = spool.quarantine_path(path)
    log.error("quarantined", extra={"path": str(path), "moved_to": str(moved)})

"""Recover: repair at start what a crash left in the middle.

Purpose: bring spool and ledger to a state that the loops know, and fill the queue.
Invariants: every step may itself be interrupted and repeated; nothing is deleted that
is not known to be published, to be a copy, or to be empty; what cannot be understood
goes to quarantine/ and is named in the log; each entry is tried alone, and one that cannot
be dealt with waits in its place, with the reason in the health.
"""

import logging
import time
from collections.abc import Callable
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
from inbox_daemon.spool import OWN_ERRORS, Spool, claim_of, durable

log = logging.getLogger(__name__)

# What opening a job raises when its files lost something.
DAMAGE = (DamagedJobError, KeyError, FileNotFoundError)


def recover(
    spool: Spool, ledger: Ledger, ageing_s: float = 3600.0, clock: CheckedClock | None = None
) -> ActiveJobs:
    """Repair the spool and return the active jobs; blocks, called before any loop runs.

    `ageing_s` and `clock` are passed on to them.
    Raises LedgerError; OSError: one of the spool's own folders cannot be read.
    """
    left = settle_claims(spool, ledger)
    for path in spool.leftover_claims():
        if claim_of(path) not in left:
            with spool.troubles.alone(path, "removed"):
                if durable.is_folder(path):
                    durable.remove_tree(path)
                else:
                    durable.remove_file(path)
    jobs = ActiveJobs(ledger, ageing_s, clock)
    queued = spool.queued_ids()
    for job_id in spool.running_ids():
        with spool.troubles.alone(spool.running / job_id, "moved to quarantine/"):
            _recover_running(job_id, spool, ledger, jobs, queued)
    for job_id in queued:
        record = ledger.job(job_id)
        if record is None or job_id in jobs.entries:
            path = spool.queued / f"{job_id}{JOB_SUFFIX}"
            with spool.troubles.alone(path, "moved to quarantine/"):
                _quarantine(path, spool)
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


def settle_claims(
    spool: Spool, ledger: Ledger, note: Callable[[Ended], None] = lambda _: None
) -> set[str]:
    """Finish or undo what intake was doing with a drop when it was interrupted.

    Blocks; no drop may be answered meanwhile.  Returns the claims that could not be settled,
    by id; the others are.  `note` takes the ended event of each refusal that this finished.
    Raises LedgerError; OSError: claimed/ cannot be read.
    """
    left = spool.finish_rejections(lambda reason: _record_refusal(reason, ledger, note))
    spool.finish_drops(left)
    for path in spool.leftover_claims():  # their drops still lie in inbox/
        if path.suffix == JOB_SUFFIX and path.stem not in left:
            with spool.troubles.alone(path, "removed"):
                if not durable.is_folder(path):
                    ledger.forget(path.stem)
                    durable.remove_file(path)
            if path in spool.troubles:
                left.add(path.stem)
    return left


def _record_refusal(reason: bytes, ledger: Ledger, note: Callable[[Ended], None]) -> None:
    """Write the ended event of a refusal, unless its reason cannot be read."""
    try:
        ended = ended_rejected(Refusal.model_validate_json(reason))
    except ValidationError as error:
        log.warning("reason_unreadable", extra={"reason": str(error)})
    else:
        ledger.record_ended(ended)
        note(ended)


def _recover_running(
    job_id: str, spool: Spool, ledger: Ledger, jobs: ActiveJobs, queued: list[str]
) -> None:
    """Go on with a running job; one whose files are damaged is set aside, not the rest.

    One that can be neither opened nor set aside now waits for its start, as if it were queued.
    """
    record = ledger.job(job_id)
    if record is not None and record.finished_at is not None:
        spool.discard(job_id)
        return
    if record is None:
        _set_aside(job_id, spool)
        return
    try:
        if not durable.exists(spool.input_path(job_id)):
            _set_aside(job_id, spool)
            return
        try:
            run = RunningJob(record, spool, ledger)
        except DAMAGE as error:
            quarantine_job(record, spool, ledger, error)
            return
    except OSError as error:
        if error.errno in OWN_ERRORS:
            raise
        words = f"{record.name} cannot be taken up: {error.strerror}"
        log.warning("job_held", extra={"job": record.name, "reason": words})
        if job_id not in queued:
            jobs.add(record)
        return
    jobs.add(record, run)
    fields = {"job": record.name, "ended": run.progress.ended, "requests": run.total}
    log.info("job_recovered", extra=fields)


def quarantine_job(record: JobRecord, spool: Spool, ledger: Ledger, error: Exception) -> Ended:
    """Keep a running job whose files are damaged in quarantine/; return its ended event.

    Raises LedgerError, OSError.
    """
    log.error("job_damaged", extra={"job": record.name, "reason": str(error)}, exc_info=error)
    _set_aside(record.id, spool)
    why = f"{error}; what is left of the job lies in quarantine/{record.id}"
    ended = ended_damaged(record, why, time.time())
    ledger.forget(record.id, ended)
    return ended


def _set_aside(job_id: str, spool: Spool) -> None:
    if not durable.remove_empty_dir(spool.running / job_id):
        _quarantine(spool.running / job_id, spool)


def _quarantine(path: Path, spool: Spool) -> None:
    moved = spool.quarantine_path(path)
    log.error("quarantined", extra={"path": str(path), "moved_to": str(moved)})

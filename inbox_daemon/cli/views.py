"""What the reading commands show, with or without a running daemon.

Purpose: gather jobs and health from the spool without disturbing it.
Invariants: nothing is written; a part that this user may not read is left out, not
an error; a document that is being replaced is read whole, old or new.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from pydantic import ValidationError

from inbox_daemon.contract import job_documents
from inbox_daemon.contract.documents import JobStatus, Refusal
from inbox_daemon.contract.errors import LedgerError, SenderError
from inbox_daemon.contract.health_documents import ServiceStatus
from inbox_daemon.contract.job_documents import answered_so_far
from inbox_daemon.contract.names import REASON_SUFFIX, STATUS
from inbox_daemon.contract.records import DeadLetter, JobRecord, Progress
from inbox_daemon.contract.states import JobState
from inbox_daemon.spool import Spool

if TYPE_CHECKING:  # what only some commands need is loaded by them: it takes its time
    from inbox_daemon.ledger import Ledger
    from inbox_daemon.publish.verify import Proof

_UNVERIFIABLE = {
    JobState.QUEUED: "it is queued and has no results yet; ask again when it runs",
    JobState.RUNNING: "it has just begun and has no results yet; ask again in a moment",
    JobState.PUBLISHED: "its results were collected and no longer lie in outbox/",
    JobState.REJECTED: "it was refused and never ran; `inbox-daemon job NAME` says why",
}


@dataclass(frozen=True, slots=True)
class JobView:
    """One job as the reading commands show it: where it lies, and its status."""

    state: JobState
    status: JobStatus


def service_status(spool: Spool) -> ServiceStatus | None:
    """The newest health document; None when there is none."""
    try:
        return ServiceStatus.model_validate_json((spool.outbox / STATUS).read_bytes())
    except (OSError, ValidationError):
        return None


def is_fresh(status: ServiceStatus, now: float | None = None) -> bool:
    """Return whether the document was written lately enough for its daemon to live.

    One from the future, by a clock that was set back since, is as stale as an old one.
    """
    age_s = (time.time() if now is None else now) - status.written_at
    return abs(age_s) <= status.stale_after_s


def daemon_runs(spool: Spool) -> bool:
    """Return whether the health document is a running daemon's, as far as its age tells."""
    status = service_status(spool)
    return status is not None and is_fresh(status)


def why_waits(spool: Spool, job_id: str) -> str | None:
    """Why an active job waits while others may go on, by the running daemon's health."""
    status = service_status(spool)
    if status is None or not is_fresh(status):
        return None
    return next((job.reason for job in status.jobs if job.id == job_id), None)


def how_to_start(spool: Spool) -> str:
    """Return what to do where no daemon runs."""
    command = f"inbox-daemon run --spool {spool.root}"
    return f"start it: `systemctl start inbox-daemon` or `{command}`"


def list_jobs(spool: Spool) -> list[JobView]:
    """Every job that left a trace, oldest first: active, finished and refused."""
    views = []
    for path in entries_of(spool.rejected):
        reason = read_reason(path) if path.name.endswith(REASON_SUFFIX) else None
        if reason is not None:
            views.append(JobView(JobState.REJECTED, job_documents.refused_status(reason, 0)))
    for folder in entries_of(spool.outbox):
        status = read_status(folder)
        if status is not None and status.status != "failed":
            views.append(JobView(JobState.PUBLISHED, status))
    # The ledger knows best, so what it says of a job counts.
    newest = {view.status.id: view for view in [*views, *_known(spool)]}
    return sorted(newest.values(), key=lambda view: (view.status.created_at, view.status.id))


def find_jobs(spool: Spool, name: str) -> list[JobView]:
    """The jobs of that name or id, the newest last."""
    wanted = name.removesuffix(".jsonl")
    return [view for view in list_jobs(spool) if wanted in {view.status.name, view.status.id}]


def _known(spool: Spool) -> list[JobView]:
    """What the ledger knows; falls back on the health document without access to it."""
    from inbox_daemon.ledger import Ledger

    for _ in range(2):  # the daemon may make it larger at this moment, but not twice
        with (
            suppress(LedgerError, OSError),
            closing(Ledger(spool.ledger, readonly=True)) as ledger,
        ):
            return [_view(record, ledger.progress(record.id), spool) for record in ledger.jobs()]
    status = service_status(spool)
    views = []
    for job in status.jobs if status else []:
        counts = {"total": job.requests, "completed": job.completed, "failed": job.failed}
        document = JobStatus.model_validate(
            {
                "id": job.id,
                "name": job.name,
                "input_file_id": f"{job.name}.jsonl",
                "status": "in_progress" if job.state == "running" else "validating",
                "created_at": job.created_at,
                "in_progress_at": job.in_progress_at,
                "request_counts": counts,
                "energy_j": job.energy_j,
                "energy_j_per_1000_output_tokens": job.energy_j_per_1000_output_tokens,
                "message": answered_so_far(job.completed + job.failed, job.requests),
            }
        )
        views.append(JobView(JobState(job.state), document))
    return views


def _view(record: JobRecord, progress: Progress, spool: Spool) -> JobView:
    if record.finished_at is not None:
        shown = read_status(spool.outbox / (record.outbox or record.name))
        if shown is None or shown.id != record.id:
            shown = job_documents.job_status(record, errors=record.failed > 0, retry=False)
        return JobView(JobState.PUBLISHED, shown)
    running = spool.input_path(record.id).exists()
    state = JobState.RUNNING if running else JobState.QUEUED
    return JobView(state, job_documents.active_status(record, progress, state))


def read_reason(path: Path) -> Refusal | None:
    """One reason document; None when it is gone or unreadable."""
    try:
        return Refusal.model_validate(orjson.loads(path.read_bytes()))
    except (OSError, orjson.JSONDecodeError, ValidationError):
        return None


def read_status(folder: Path) -> JobStatus | None:
    """The status of a folder of outbox/; None when it is gone or unreadable."""
    try:
        return JobStatus.model_validate(orjson.loads((folder / STATUS).read_bytes()))
    except (OSError, orjson.JSONDecodeError, ValidationError):
        return None


def entries_of(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where this user may not look."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def dead_letters(spool: Spool, job: str | None, reason: str | None) -> Iterator[DeadLetter]:
    """The dead letters of a job, by name or id, or of one reason, or all.

    Raises LedgerError: this user may not read the ledger, or there is none.
    """
    ledger = _open_ledger(spool)
    try:
        for letter in ledger.dead_letters():
            wanted = job is None or job in {letter.job, letter.job_id}
            if wanted and reason in {None, letter.reason.value}:
                yield letter
    finally:
        ledger.close()


def _open_ledger(spool: Spool) -> "Ledger":
    from inbox_daemon.ledger import Ledger

    try:
        return Ledger(spool.ledger, readonly=True)
    except OSError as error:
        msg = f"{spool.ledger} cannot be read: {error.strerror}; ask as the daemon's user"
        raise LedgerError("ledger_unreadable", msg) from None


def verify(spool: Spool, name: str) -> "Proof":
    """Prove the newest job of that name, published or running.

    Raises LedgerError as `dead_letters`; SenderError: there is nothing to verify.
    """
    from inbox_daemon.publish.verify import verify_published, verify_running

    ledger = _open_ledger(spool)
    try:
        records = [record for record in ledger.jobs() if name in {record.name, record.id}]
        record = records[-1] if records else None
        if record is not None and record.finished_at is None:
            with contextlib.suppress(FileNotFoundError):  # published meanwhile, or queued
                return verify_running(record, spool, ledger)
    finally:
        ledger.close()
    folder = spool.outbox / ((record.outbox if record else None) or name)
    status = read_status(folder)
    if status is None or not spool.holds_results(folder.name):
        known = find_jobs(spool, name)
        msg = f"there is no job named {name!a}; `inbox-daemon jobs` lists all"
        if known:
            msg = f"{name!a} cannot be verified: {_UNVERIFIABLE[known[-1].state]}"
        raise SenderError("unknown_job", msg)
    return verify_published(folder, status, record if record and record.id == status.id else None)

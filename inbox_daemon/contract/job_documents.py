"""Documents built from records: what a sender reads about its job.

Purpose: pure construction of JobStatus and Reason, so that every way to a document
gives the same one.
Invariants: no clock, no I/O.
"""

import orjson

from inbox_daemon.contract.documents import (
    Document,
    Fault,
    FaultList,
    JobStatus,
    Refusal,
    RequestCounts,
)
from inbox_daemon.contract.health_documents import RecentJob
from inbox_daemon.contract.limits import MAX_LISTED_FAULTS, RETRYABLE
from inbox_daemon.contract.names import ERRORS, JOB_SUFFIX, OUTPUT, RETRY, is_control_name
from inbox_daemon.contract.records import DeadReason, Ended, EndedKind, JobRecord, Progress
from inbox_daemon.contract.states import BatchStatus, JobState


def pretty(document: Document) -> bytes:
    """The document as indented JSON with a final newline."""
    return orjson.dumps(
        document.model_dump(mode="json"), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    )


def counted(count: int, thing: str) -> str:
    """A number of things in words, for people."""
    return f"{count} {thing}" if count == 1 else f"{count:,} {thing}s"


def job_status(record: JobRecord, *, errors: bool, retry: bool) -> JobStatus:
    """The status of a finished job, as it lies in its outbox folder."""
    ended = _at(record.finished_at)
    return _batch(
        record,
        status=record.status or BatchStatus.COMPLETED,
        counts=RequestCounts(
            total=record.requests, completed=record.completed, failed=record.failed
        ),
        output_file_id=OUTPUT,
        error_file_id=ERRORS if errors else None,
        retry_file=RETRY if retry else None,
        completed_at=ended if record.status is BatchStatus.COMPLETED else None,
        expired_at=ended if record.status is BatchStatus.EXPIRED else None,
        cancelling_at=_cancelling_at(record),
        cancelled_at=ended if record.status is BatchStatus.CANCELLED else None,
        usage=record.usage,
        energy_j=record.energy_j,
        energy_j_per_1000_output_tokens=per_1000(record.energy_j, record.usage.output_tokens),
        checksums=record.checksums,
        message=_closing_words(record, retry=retry),
    )


def active_status(record: JobRecord, progress: Progress, state: JobState) -> JobStatus:
    """The status of a job that is queued or running."""
    running = state is JobState.RUNNING
    words = answered_so_far(progress.ended, record.requests)
    word = BatchStatus.IN_PROGRESS if running else BatchStatus.VALIDATING
    if record.ending is not None:
        word = BatchStatus.CANCELLING
    return _batch(
        record,
        status=word,
        counts=RequestCounts(
            total=record.requests, completed=progress.completed, failed=progress.failed
        ),
        energy_j=progress.energy_j,
        energy_j_per_1000_output_tokens=per_1000(progress.energy_j, progress.output_tokens),
        cancelling_at=_cancelling_at(record),
        message=words if running else "the job was accepted and waits for its turn",
    )


def answered_so_far(ended: int, requests: int) -> str:
    """How many requests of a running job have their outcome, in words, for people."""
    verb = "is" if 1 in {ended, requests} else "are"
    return f"{ended:,} of {counted(requests, 'request')} {verb} answered"


def per_1000(energy_j: float | None, output_tokens: int) -> float | None:
    """Joules for 1,000 output tokens; None where either is not known."""
    return round(1000 * energy_j / output_tokens, 3) if energy_j and output_tokens else None


def redelivered_status(record: JobRecord, now: float) -> JobStatus:
    """The answer to a file that was answered before and whose results were collected."""
    status = job_status(record, errors=False, retry=False)
    words = (
        "this file was answered before and its results were collected; "
        "send it under another name to run it again"
    )
    return status.model_copy(
        update={
            "output_file_id": None,
            "checksums": None,
            "redelivered_at": int(now),
            "message": words,
        }
    )


def _cancelling_at(record: JobRecord) -> int | None:
    return _at(record.ending_at) if record.ending is DeadReason.CANCELLED else None


def _batch(
    record: JobRecord,
    *,
    status: BatchStatus,
    counts: RequestCounts,
    message: str,
    **fields: object,
) -> JobStatus:
    known = {
        "id": record.id,
        "name": record.name,
        "endpoint": record.endpoint,
        "model": record.model,
        "earlier_models": record.earlier_models,
        "input_file_id": f"{record.name}{JOB_SUFFIX}",
        "created_at": _at(record.created_at),
        "in_progress_at": _at(record.in_progress_at),
        "finalizing_at": _at(record.finalizing_at),
        "metadata": record.metadata,
        "expires_at": _at(record.expires_at),
        "priority": record.priority.value,
        "redrive_of": record.redrive_of,
        "sha256": record.sha256,
        "bytes": record.bytes,
    }
    return JobStatus.model_validate(
        known | fields | {"status": status, "request_counts": counts, "message": message}
    )


def _closing_words(record: JobRecord, *, retry: bool) -> str:
    verb = "was" if 1 in {record.completed, record.requests} else "were"
    words = f"{record.completed:,} of {counted(record.requests, 'request')} {verb} answered"
    if record.failed == 0:
        return words
    verb, them = ("was", "it") if record.failed == 1 else ("were", "them")
    words += f"; {record.failed:,} {verb} not, see {ERRORS}"
    return f"{words}; drop {RETRY} to run {them} again" if retry else words


def _at(moment: float | None) -> int | None:
    return None if moment is None else int(moment)


def reason(  # noqa: PLR0913 - the parts of one document
    job_id: str,
    name: str,
    faults: list[Fault],
    now: float,
    *,
    count: int = 0,
    sha256: str | None = None,
    size: int | None = None,
    file: str | None = None,
) -> Refusal:
    """Why a drop was refused; `name` is escaped already, `count` counts all faults."""
    first, found = faults[0], max(count, len(faults))
    where = f"line {first.line}: " if first.line else ""
    more = f" (and {found - 1} more)" if found > 1 else ""
    what = "order" if is_control_name(name) else "file"
    return Refusal(
        id=job_id,
        name=name,
        rejected_at=now,
        retryable=all(fault.code in RETRYABLE for fault in faults),
        code=first.code,
        message=f"the {what} was refused: {where}{first.message}{more}",
        fault_count=found,
        faults=faults[:MAX_LISTED_FAULTS],
        sha256=sha256,
        bytes=size,
        file=file,
    )


def refused_status(why: Refusal, requests: int) -> JobStatus:
    """The refusal as it appears in outbox/NAME/status.json."""
    return JobStatus(
        id=why.id,
        name=why.name,
        input_file_id=f"{why.name}{JOB_SUFFIX}",
        status=BatchStatus.FAILED,
        created_at=int(why.rejected_at),
        failed_at=int(why.rejected_at),
        errors=FaultList(data=why.faults),
        request_counts=RequestCounts(total=requests, completed=0, failed=0),
        sha256=why.sha256,
        bytes=why.bytes,
        retryable=why.retryable,
        message=why.message,
    )


def ended_job(record: JobRecord) -> Ended:
    """Return the ended event of a published job."""
    return Ended(
        id=record.id,
        name=record.name,
        kind=EndedKind((record.status or BatchStatus.COMPLETED).value),
        at=record.finished_at or record.created_at,
        requests=record.requests,
        completed=record.completed,
        failed=record.failed,
        message=_closing_words(record, retry=False),
    )


def ended_damaged(record: JobRecord, why: str, now: float) -> Ended:
    """Return the ended event of a job whose files lost data, at `now` in seconds since 1970."""
    return Ended(
        id=record.id,
        name=record.name,
        kind=EndedKind.DAMAGED,
        at=now,
        requests=record.requests,
        message=why,
    )


def ended_rejected(why: Refusal) -> Ended:
    """Return the ended event of a refused drop."""
    return Ended(
        id=why.id,
        name=why.name,
        kind=EndedKind.REJECTED,
        at=why.rejected_at,
        message=f"{why.code}: {why.message}",
    )


def recent_ended(ended: Ended) -> RecentJob:
    """Return an ended event as the service status lists it."""
    return RecentJob(
        id=ended.id,
        name=ended.name,
        status=ended.kind.value,
        at=int(ended.at),
        requests=ended.requests,
        completed=ended.completed,
        failed=ended.failed,
        message=ended.message,
    )


def recent_redelivered(record: JobRecord, now: float) -> RecentJob:
    """Return a job that was delivered again, at `now` in seconds since 1970, for the status."""
    return RecentJob(
        id=record.id,
        name=record.name,
        status="redelivered",
        at=int(now),
        message=f"the same file as job {record.id}; it is not run again",
    )

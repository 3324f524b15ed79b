"""From a complete job to its folder in outbox/.

Purpose: put the results in input order, prove that each request has exactly one, and
show the folder whole or not at all.
Invariants: the folder is built inside running/<id>, so outbox/ never holds a part of
one; every step may be repeated after a crash; the ledger forgets a job's lines only
after its folder is in outbox/.
Known limit: results are read from results.part in input order, which on a cold disk
cache costs a seek each.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Self

import orjson

from inbox_daemon.contract import job_documents
from inbox_daemon.contract.documents import Usage
from inbox_daemon.contract.errors import DamagedJobError, LedgerError
from inbox_daemon.contract.names import ERRORS, OUTPUT, RETRY, STATUS
from inbox_daemon.contract.records import DeadReason, JobRecord
from inbox_daemon.contract.states import BatchStatus, Outcome
from inbox_daemon.jobs.files import InputFile, as_damage, tried
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.line import with_model
from inbox_daemon.spool import Spool, durable

log = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 18
# More than status.json and the folder's own blocks take.
_STATUS_BYTES = 1 << 17
_ADVANCE_LINES = 256
_STATUS = {
    None: BatchStatus.COMPLETED,
    DeadReason.CANCELLED: BatchStatus.CANCELLED,
    DeadReason.EXPIRED: BatchStatus.EXPIRED,
}


def needed_bytes(record: JobRecord, spool: Spool, ledger: Ledger, failed: int) -> int:
    """Return how much a job's folder will take on the disk, at most, in bytes.

    Nothing where it was built already, and only its move or what comes after it is left.

    Its results lie there twice until it is published, because they are put in order; of a
    job with `failed` requests its input may, in retry.jsonl.
    Raises DamagedJobError: a file of the job is gone; OSError.
    """
    if _is_built(record, ledger):
        return 0
    try:
        results = spool.results_path(record.id).stat().st_size
        requests = spool.input_path(record.id).stat().st_size if failed else 0
    except FileNotFoundError as error:
        raise DamagedJobError("file_missing", f"{error.filename} is gone") from None
    names = failed * len((record.model or "").encode()) if record.earlier_models else 0
    return results + requests + names + _STATUS_BYTES


def unbuild(record: JobRecord, spool: Spool, ledger: Ledger) -> None:
    """Remove what was built of a job's folder, so that it takes no room while it waits.

    Raises OSError: it cannot be removed.
    """
    if not _is_built(record, ledger):
        durable.remove_tree(spool.build_path(record.id))


def _is_built(record: JobRecord, ledger: Ledger) -> bool:
    """Return whether the ledger says so: then a folder that is missing was collected."""
    stored = ledger.job(record.id)
    return stored is not None and stored.outbox is not None


def publish(
    record: JobRecord,
    spool: Spool,
    ledger: Ledger,
    advance: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.time,
) -> JobRecord:
    """Publish a job whose requests all have their outcome; blocks, use a thread.

    Returns the finished record.  Repeating it after a crash, or an error, goes on where
    that was.  `advance` is called now and then, as proof of progress; `clock` tells the time
    from which the job counts as ended, in seconds since 1970.
    Raises LedgerError: a request lacks its outcome, which is a bug; DamagedJobError: its
    files lost data since, or cannot be read; OSError: the folder cannot be written.
    """
    shown = spool.published_as(record.id, record.name)
    if shown is None and not _is_built(record, ledger):
        record = _build(record, spool, ledger, advance, clock)
        record = record.model_copy(update={"outbox": record.name})
        ledger.update(record.model_copy(update={"finished_at": None}))
    if shown is None:
        shown = spool.publish(record.id, record.name)
    else:
        # It may have been moved by an attempt that failed before the move was on the disk.
        durable.sync_dir(spool.outbox)
    record = _finished(record, ledger, clock()).model_copy(update={"outbox": shown})
    ledger.finish(record, job_documents.ended_job(record))
    spool.discard(record.id)
    log.info(
        "job_published",
        extra={"job": record.name, "completed": record.completed, "failed": record.failed},
    )
    return record


def _finished(record: JobRecord, ledger: Ledger, now: float) -> JobRecord:
    progress = ledger.progress(record.id)
    tokens_in, tokens_out = progress.input_tokens, progress.output_tokens
    return record.model_copy(
        update={
            "status": _STATUS[record.ending],
            "finalizing_at": record.finalizing_at or now,
            "finished_at": now,
            "completed": progress.completed,
            "failed": progress.failed,
            "energy_j": progress.energy_j if record.energy_j is None else record.energy_j,
            "usage": Usage(
                input_tokens=tokens_in,
                output_tokens=tokens_out,
                total_tokens=tokens_in + tokens_out,
            ),
        }
    )


def _build(
    record: JobRecord,
    spool: Spool,
    ledger: Ledger,
    advance: Callable[[], None],
    clock: Callable[[], float],
) -> JobRecord:
    """Write the folder into running/<id>/outbox, with everything in it on the disk."""
    record = record.model_copy(update={"finalizing_at": clock()})
    folder = spool.build_path(record.id)
    durable.remove_tree(folder)
    durable.make_dir(folder)
    with _Writer(folder) as files:
        # Walk input and ledger side by side: each request must meet its own outcome.
        entries = ledger.all_entries(record.id)
        path = spool.results_path(record.id)
        results = tried(path, lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        try:
            with InputFile(spool.input_path(record.id), record.requests) as source:
                for ordinal, line in enumerate(source.lines):
                    if ordinal % _ADVANCE_LINES == 0:
                        advance()
                    found, entry = next(entries, (0, None))
                    if entry is None or found != line:
                        msg = f"line {line} of job {record.name} has no outcome; this is a bug"
                        raise LedgerError("outcome_missing", msg)
                    try:
                        output = os.pread(results, entry.length, entry.offset)
                    except OSError as error:
                        raise as_damage(path, error) from None
                    whole = output[:1] == b"{" and output[-2:] == b"}\n"
                    if len(output) != entry.length or not whole:
                        msg = f"results.part lost the outcome of line {line}"
                        raise DamagedJobError("results_short", msg)
                    if entry.outcome is Outcome.RESULT:
                        files.add(OUTPUT, output)
                        continue
                    files.add(ERRORS, output)
                    if entry.retryable:
                        files.add(RETRY, _retry_line(source.read(ordinal), record))
        finally:
            os.close(results)
        record = _finished(record, ledger, clock())
        made = files.counts[OUTPUT], files.counts[ERRORS]
        if made != (record.completed, record.failed) or sum(made) != record.requests:
            msg = (
                f"job {record.name} has {record.requests} requests, {record.completed} results "
                f"and {record.failed} dead letters, but {made} lines were written; this is a bug"
            )
            raise LedgerError("count_mismatch", msg)
        files.close()
        record = record.model_copy(update={"checksums": files.checksums()})
        status = job_documents.job_status(record, errors=ERRORS in files, retry=RETRY in files)
    durable.write_file(folder / STATUS, job_documents.pretty(status))
    spool.share(folder)
    return record


def _retry_line(raw: bytes, record: JobRecord) -> bytes:
    """The line that runs a request again, with the model that the job is bound to by now."""
    if not record.earlier_models or record.model is None:
        return raw + b"\n"
    return orjson.dumps(
        with_model(orjson.loads(raw), record.model), option=orjson.OPT_APPEND_NEWLINE
    )


class _Writer:
    """The files of a folder, made when their first line comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self.counts = {OUTPUT: 0, ERRORS: 0, RETRY: 0}
        self._digests = {name: hashlib.sha256() for name in self.counts}
        self._open(OUTPUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def __contains__(self, name: str) -> bool:
        return self.counts[name] > 0

    def _open(self, name: str) -> BinaryIO:
        self._files[name] = (self._folder / name).open("xb", buffering=_BUFFER_BYTES)
        return self._files[name]

    def add(self, name: str, line: bytes) -> None:
        (self._files.get(name) or self._open(name)).write(line)
        self.counts[name] += 1
        self._digests[name].update(line)

    def checksums(self) -> dict[str, str]:
        """The sha256 of each file."""
        return {name: self._digests[name].hexdigest() for name in self._files}

    def close(self) -> None:
        """Close every file with its content on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()

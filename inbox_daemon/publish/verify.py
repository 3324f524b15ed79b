"""`verify`: prove line by line that each request has exactly one outcome.

Purpose: check a published or a running job against what was recorded at acceptance.
Invariants: nothing is written; the proof of a published job needs only its folder and
the ledger's record, because the record holds a checksum of which line has which
custom_id, in order.
Known limit: of a published job whose record was forgotten (after dedup_days), only the
counts and the checksums in its own status.json are left to check.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import orjson

from inbox_daemon.contract.documents import JobStatus
from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.contract.names import ERRORS, OUTPUT
from inbox_daemon.contract.records import JobRecord, OutcomeAt
from inbox_daemon.contract.states import Outcome
from inbox_daemon.jobs.files import InputFile
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.line import LinesDigest, custom_id_of
from inbox_daemon.spool import Spool

_MAX_FAULTS = 100
# What a line that is no output line may raise; a JSON error is a ValueError.
_UNREADABLE = (KeyError, ValueError, AttributeError, TypeError)


@dataclass(slots=True)
class Proof:
    """What was found: `summary` when nothing is wrong, else `faults`."""

    summary: str = ""
    faults: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """List a fault, up to 100 of them."""
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(fault)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- published ----------------------------------------------------------------------


def verify_published(  # noqa: C901, PLR0912 - one check after the other
    folder: Path, status: JobStatus, record: JobRecord | None
) -> Proof:
    """Check a folder of outbox/."""
    proof = Proof()
    for name, checksum in (status.checksums or {}).items():
        path = folder / name
        if not path.exists():
            proof.add(f"{name} is missing")
        elif file_sha256(path) != checksum:
            proof.add(f"{name} is not what was published: its sha256 differs")
    outputs = list(_read_lines(folder / OUTPUT, proof))
    errors = list(_read_lines(folder / ERRORS, proof)) if status.error_file_id else []
    counts = status.request_counts
    for found, promised, what in (
        (len(outputs), counts.completed, "results"),
        (len(errors), counts.failed, "dead letters"),
        (len(outputs) + len(errors), counts.total, "requests"),
    ):
        if found != promised:
            proof.add(f"status.json counts {promised} {what} and there are {found}")
    for lines, name in ((outputs, OUTPUT), (errors, ERRORS)):
        for (before, _), (line, _) in pairwise(lines):
            if line == before:
                proof.add(f"{name} has the outcome of input line {line} twice")
            elif line < before:
                proof.add(f"{name} is not in input order: line {line} comes after line {before}")
    if record is not None:
        digest = LinesDigest()
        for line, custom_id in sorted(outputs + errors, key=_line):
            digest.add(line, custom_id)
        if digest.hexdigest() != record.lines_sha256:
            proof.add("the lines and custom_ids are not those that were accepted")
    if not proof.faults:
        proof.summary = (
            f"{status.name}: all {counts.total} requests have exactly one outcome, in input "
            f"order: {counts.completed} results, {counts.failed} dead letters"
        )
    return proof


def _line(outcome: tuple[int, str | None]) -> int:
    return outcome[0]


def _read_lines(path: Path, proof: Proof) -> Iterator[tuple[int, str | None]]:
    """The line numbers and custom_ids of an output file."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = orjson.loads(line)
                    yield int(value["id"].rpartition("_")[2]), value["custom_id"]
                except _UNREADABLE:
                    proof.add(f"{path.name} line {number} is no output line")
    except OSError as error:
        proof.add(f"{path.name} cannot be read: {error.strerror}")


# -- running ------------------------------------------------------------------------


def verify_running(record: JobRecord, spool: Spool, ledger: Ledger) -> Proof:
    """Check a job in running/: its input, and each outcome that is committed so far."""
    proof = Proof()
    path = spool.input_path(record.id)
    if file_sha256(path) != record.sha256:
        proof.add("input.jsonl is not what was accepted: its sha256 differs")
    while True:  # until both are of one moment, although they are read in several pages
        progress, entries = ledger.progress(record.id), dict(ledger.all_entries(record.id))
        if ledger.progress(record.id) == progress:
            break
    counted = [e.outcome for e in entries.values()]
    found = counted.count(Outcome.RESULT), counted.count(Outcome.DEAD)
    if found != (progress.completed, progress.failed):
        proof.add(f"{progress.completed} + {progress.failed} outcomes count, there are {found}")
    if any(e.offset + e.length > progress.committed for e in entries.values()):
        proof.add("an outcome lies past the committed length of results.part")
    _check_outcomes(record, spool, entries, proof)
    if not proof.faults:
        proof.summary = (
            f"{record.name}: {sum(found)} of {record.requests} requests have exactly one "
            "outcome so far, and each is sound"
        )
    return proof


def _check_outcomes(
    record: JobRecord, spool: Spool, entries: dict[int, OutcomeAt], proof: Proof
) -> None:
    """Walk the input: each outcome must be that of its own line and custom_id."""
    results = spool.results_path(record.id)
    try:
        source = InputFile(spool.input_path(record.id), record.requests)
    except DamagedJobError as error:
        proof.add(error.message)
        return
    with source, results.open("rb") if results.exists() else Path(os.devnull).open("rb") as file:
        for ordinal, line in enumerate(source.lines):
            entry = entries.pop(line, None)
            if entry is None:
                continue
            written = os.pread(file.fileno(), entry.length, entry.offset)
            asked = source.read(ordinal)
            try:
                value = orjson.loads(written)
                number, custom_id = int(value["id"].rpartition("_")[2]), value["custom_id"]
            except _UNREADABLE:
                proof.add(f"the outcome of line {line} cannot be read")
                continue
            if number != line:
                proof.add(f"line {line} has the outcome of line {number}")
            elif custom_id is not None and custom_id != custom_id_of(asked):
                proof.add(f"line {line} has the outcome of another custom_id")
    for line in entries:
        proof.add(f"line {line} has an outcome and is no request")

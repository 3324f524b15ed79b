"""Redrive: dead letters become a new job, or are purged.

Purpose: build the file of a redrive from the letters themselves and admit it like any
other job.
Invariants: a letter stays until the job that runs it again is published; a letter that
is being run again is not run a third time beside it; requests that never were valid
are left alone.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import orjson
from ulid import ULID

from inbox_daemon.contract.names import ALL
from inbox_daemon.contract.records import DeadLetter, DeadReason
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake.admission import Admission, Answer, Claim
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.line import with_model
from inbox_daemon.spool import Spool, durable

_MAX_BASE = 100


@dataclass(slots=True)
class Redriver:
    """Works on the ledger's dead letters; every method blocks, use a thread."""

    spool: Spool
    ledger: Ledger
    admission: Admission

    def groups(self, job: str, reason: DeadReason | None) -> list[str]:
        """The ids of the jobs that have letters to run again."""
        return list(dict.fromkeys(letter.job_id for letter in self._chosen(job, reason)))

    def redrove(self, job: str, since: float) -> bool:
        """Return whether letters of that job, or of any, were made a new job since that time.

        `since` is in seconds since 1970.
        """
        records = self.ledger.jobs()
        origins = {record.redrive_of for record in records if record.created_at >= since} - {None}
        named = {record.id for record in records if job in {ALL, record.name, record.id}}
        return bool(origins & (named | {job})) or (job == ALL and bool(origins))

    def redrive(self, job_id: str, reason: DeadReason | None) -> Answer:
        """Make one new job of one job's dead letters and admit or refuse it."""
        new_id, name = str(ULID()), ""
        origin = self.ledger.job(job_id)
        # A job that was bound to another model names the old one in its lines.
        model = origin.model if origin and origin.earlier_models else None
        redriven = array("I")  # no letter is kept: there may be very many, and large ones

        def lines() -> Iterator[bytes]:
            nonlocal name
            for letter in self._chosen(ALL, reason, job_id):
                name = name or self._new_name(letter.job)
                redriven.append(letter.line)
                request = with_model(letter.request, model) if model else letter.request
                yield orjson.dumps(request, option=orjson.OPT_APPEND_NEWLINE)

        sha256, size = self.spool.claim_lines(new_id, lines())
        claim = Claim(
            new_id,
            f"{name}.jsonl",
            Priority.NORMAL,
            sha256,
            size,
            None,
            redrive_of=job_id,
            redriven=redriven,
        )
        return self.admission.answer_claim(claim)

    def purge(self, job: str, reason: DeadReason | None) -> int:
        """Remove letters for good; those that are being run again stay.  Returns how many."""
        running = self.ledger.being_redriven()
        found = [
            (letter.job_id, letter.line)
            for letter in self.ledger.dead_letters()
            if _matches(letter, job, reason) and (letter.job_id, letter.line) not in running
        ]
        self.ledger.purge(found)
        return len(found)

    def _chosen(
        self, job: str, reason: DeadReason | None, job_id: str = ""
    ) -> Iterator[DeadLetter]:
        running = self.ledger.being_redriven()
        for letter in self.ledger.dead_letters(job_id):
            if not letter.redrivable or not _matches(letter, job, reason):
                continue
            if (letter.job_id, letter.line) not in running:
                yield letter

    def _new_name(self, job: str) -> str:
        """A name for the new job that no job and no folder has."""
        base = job.split(".redrive-", maxsplit=1)[0][:_MAX_BASE]
        taken = {record.name for record in self.ledger.jobs()}
        number = 1
        while f"{base}.redrive-{number}" in taken or (
            durable.exists(self.spool.outbox / f"{base}.redrive-{number}")
        ):
            number += 1
        return f"{base}.redrive-{number}"


def _matches(letter: DeadLetter, job: str, reason: DeadReason | None) -> bool:
    return job in {ALL, letter.job, letter.job_id} and reason in {None, letter.reason}

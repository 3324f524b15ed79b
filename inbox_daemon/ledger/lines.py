"""The ledger's lines: which request has its outcome, and where.

Purpose: the checkpoint, and what recovery reads back.
Invariants: a line gets one outcome, a second is an error and not an overwriting;
outcomes are read in pages, so that no transaction is held open for long.
"""

from collections.abc import Iterator
from itertools import islice

import lmdb
import orjson

from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.errors import LedgerError
from inbox_daemon.contract.records import Checkpoint, OutcomeAt, Progress, RetryRecord
from inbox_daemon.ledger.store import Store, line_key, line_of

_PAGE_OF_ENTRIES = 2000


class Lines(Store):
    """Outcomes, progress and failed attempts of active jobs."""

    def checkpoint(
        self, checkpoints: list[Checkpoint], state: dict[str, bytes | None] | None = None
    ) -> None:
        """Make finished lines count: their journals must be on the disk already.

        `state` sets small values of the runner in the same transaction; None removes.
        """
        # Dead letters hold their requests, so they are what can be large.
        dead_rows = [
            [
                (line_key(letter.job_id, letter.line), orjson.dumps(letter.model_dump(mode="json")))
                for letter in checkpoint.dead
            ]
            for checkpoint in checkpoints
        ]
        with self._write(sum(len(row[1]) for part in dead_rows for row in part)) as txn:
            for checkpoint, dead in zip(checkpoints, dead_rows, strict=True):
                job_id = checkpoint.job_id
                self._put(txn, "progress", job_id.encode(), checkpoint.progress)
                for line, retry in checkpoint.retries.items():
                    self._put(txn, "retries", line_key(job_id, line), retry)
                for dead_key, letter in dead:
                    self._put_raw(txn, "dead", dead_key, letter)
                rows = sorted(
                    (line_key(job_id, line), entry.pack()) for line, entry in checkpoint.entries
                )
                with txn.cursor(db=self._db["lines"]) as cursor:
                    _, added = cursor.putmulti(rows, overwrite=False)
                if added != len(rows):
                    txn.abort()
                    msg = f"{len(rows) - added} lines of job {job_id} ended twice; this is a bug"
                    raise LedgerError("outcome_twice", msg)
            for key, value in (state or {}).items():
                self._put_state(txn, key, value)

    def progress(self, job_id: str) -> Progress:
        """How far a job is; all zero when it never ran."""
        with self._read() as txn:
            found = self._get(txn, "progress", job_id.encode(), Progress)
        return found or Progress()

    def entries(self, job_id: str, after: int = 0) -> list[tuple[int, OutcomeAt]]:
        """A page of the lines after line `after` that have their outcome, in order.

        Pages keep the transaction short; an empty list is the end.
        """
        page: list[tuple[int, OutcomeAt]] = []
        prefix = job_id.encode()
        with self._read() as txn, txn.cursor(db=self._db["lines"]) as cursor:
            # A cursor that finds nothing would start over at the first line of all.
            if not cursor.set_range(line_key(job_id, after + 1)):
                return page
            for row in islice(cursor.iternext(), _PAGE_OF_ENTRIES):
                key, value = map(bytes, row)
                if not key.startswith(prefix):
                    break
                page.append((line_of(key), OutcomeAt.unpack(value)))
        return page

    def all_entries(self, job_id: str) -> Iterator[tuple[int, OutcomeAt]]:
        """Every line with an outcome, in input order, page by page."""
        page = self.entries(job_id)
        while page:
            yield from page
            page = self.entries(job_id, page[-1][0])

    def retries(self, job_id: str) -> dict[int, RetryRecord]:
        """The failed attempts of lines that were open when last written."""
        return dict(self._per_line("retries", job_id, RetryRecord))

    def invalid(self, job_id: str) -> dict[int, Fault]:
        """The lines that were accepted as dead letters."""
        with self._read() as txn:
            rows = list(self._rows(txn, "invalid", job_id))
        return {line_of(key): Fault.model_validate_json(value) for key, value in rows}

    def get_state(self, key: str) -> bytes | None:
        """A small value that must survive a crash, such as the bisection."""
        with self._read() as txn:
            found = txn.get(key.encode(), db=self._db["meta"])
            return None if found is None else bytes(found)

    def put_state(self, key: str, value: bytes | None) -> None:
        """Set such a value or, with None, remove it."""
        with self._write() as txn:
            self._put_state(txn, key, value)

    def _put_state(self, txn: lmdb.Transaction, key: str, value: bytes | None) -> None:
        if value is None:
            txn.delete(key.encode(), db=self._db["meta"])
        else:
            txn.put(key.encode(), value, db=self._db["meta"])

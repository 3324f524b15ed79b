"""The ledger's jobs: what was accepted, and which delivery it was.

Purpose: a job's record from its admission until its re-delivery counts as new.
Invariant: a job's lines go when it is finished; its record and dead letters stay.
"""

from collections.abc import Sequence
from itertools import islice

import lmdb

from inbox_daemon.contract.records import Ended, InvalidLine, JobRecord
from inbox_daemon.ledger.ended import Endings
from inbox_daemon.ledger.store import line_key, load

_PER_LINE = ("lines", "retries", "invalid", "redrives")
_ROW_BYTES = 1024
_AT_ONCE = 1000


class JobRows(Endings):
    """Accepted jobs, by id and by delivery."""

    def accept(
        self,
        job: JobRecord,
        invalid: list[InvalidLine],
        redriven: Sequence[int] = (),
    ) -> None:
        """Know a job before its file is moved to queued/.

        Its first line runs the dead letter of line `redriven[0]` of the job `redrive_of` again,
        its second one that of the next, and so on.
        """
        with self._write(_ROW_BYTES * (len(invalid) + len(redriven))) as txn:
            self._put(txn, "jobs", job.id.encode(), job)
            txn.put(_delivery(job.name, job.sha256), job.id.encode(), db=self._db["deliveries"])
            for line in invalid:
                key = line_key(job.id, line.line)
                self._put_raw(txn, "invalid", key, line.fault.model_dump_json().encode())
            for number, letter in enumerate(redriven, 1):
                origin = line_key(job.redrive_of or "", letter)
                self._put_raw(txn, "redrives", line_key(job.id, number), origin)

    def update(self, job: JobRecord) -> None:
        """Replace a job's record, as when it starts."""
        with self._write() as txn:
            self._put(txn, "jobs", job.id.encode(), job)

    def finish(self, job: JobRecord, ended: Ended) -> None:
        """Close a published job: its record stays for re-deliveries, its lines go.

        Its dead letters stay until they are redriven or purged; those of another job
        that it has run again are answered and go.  Those go first, some at a time, as a
        transaction holds in memory what it changes; a crash in between goes on here, because
        the job is in outbox/ by then.
        """
        while self._forget_answered(job.id):
            pass
        with self._write() as txn:
            self._put(txn, "jobs", job.id.encode(), job)
            self._forget_lines(txn, job.id)
            self._record_ended(txn, ended)

    def _forget_answered(self, job_id: str) -> bool:
        """Remove some dead letters that a job has run again; False if there were none left."""
        with self._write() as txn:
            rows = list(islice(self._rows(txn, "redrives", job_id), _AT_ONCE))
            for key, origin in rows:
                txn.delete(origin, db=self._db["dead"])
                txn.delete(key, db=self._db["redrives"])
        return bool(rows)

    def forget(self, job_id: str, ended: Ended | None = None) -> None:
        """Remove a job that never reached queued/, is damaged, or whose time is over.

        `ended` is its ended event, if this is its end.
        """
        with self._write() as txn:
            job = self._get(txn, "jobs", job_id.encode(), JobRecord)
            if job is not None:
                key = _delivery(job.name, job.sha256)
                if txn.get(key, db=self._db["deliveries"]) == job_id.encode():
                    txn.delete(key, db=self._db["deliveries"])
                txn.delete(job_id.encode(), db=self._db["jobs"])
            self._forget_lines(txn, job_id)
            if ended is not None:
                self._record_ended(txn, ended)

    def _forget_lines(self, txn: lmdb.Transaction, job_id: str) -> None:
        txn.delete(job_id.encode(), db=self._db["progress"])
        for table in _PER_LINE:
            with txn.cursor(db=self._db[table]) as cursor:
                found = cursor.set_range(job_id.encode())
                while found and bytes(cursor.key()).startswith(job_id.encode()):
                    found = cursor.delete()

    def job(self, job_id: str) -> JobRecord | None:
        """One job's record."""
        with self._read() as txn:
            return self._get(txn, "jobs", job_id.encode(), JobRecord)

    def jobs(self) -> list[JobRecord]:
        """All records, oldest first."""
        with self._read() as txn:
            return [load(JobRecord, bytes(value)) for _, value in txn.cursor(db=self._db["jobs"])]

    def delivered(self, name: str, sha256: str) -> JobRecord | None:
        """The job that this name with these bytes was, if it is still known."""
        with self._read() as txn:
            job_id = txn.get(_delivery(name, sha256), db=self._db["deliveries"])
            return self._get(txn, "jobs", bytes(job_id), JobRecord) if job_id else None


def _delivery(name: str, sha256: str) -> bytes:
    return name.encode() + b"\0" + bytes.fromhex(sha256)

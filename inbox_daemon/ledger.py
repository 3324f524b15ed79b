"""The ledger: how far each job is inside its state, in LMDB.

Purpose: the only import of lmdb.  Each public method is one transaction.
Invariants: `sync=True, metasync=True, writemap=False`, so what a method has
returned survives a power cut; a failed write raises LedgerError, after which the
process must end, because LMDB's later commits would succeed over the hole; a marker
file beside the data tells an empty ledger from one whose data was lost; the map
grows before it is full, because at a full map deletes fail too; no transaction
stays open between calls, since one held open makes the file grow for ever.
Known limits: one process writes; job ids are 26 bytes; a key is at most 511 bytes.

Tables: `meta`, `jobs` (id), `deliveries` (name NUL sha256 -> id), `progress` (id),
and by id and line: `lines`, `retries`, `dead`, `invalid`, `redrives` (the key in
`dead` of the letter that this line runs again).
"""

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import lmdb
import orjson

from inbox_daemon import durable
from inbox_daemon.errors import LedgerError
from inbox_daemon.model import Fault
from inbox_daemon.records import (
    LEDGER_VERSION,
    Checkpoint,
    DeadLetter,
    Entry,
    InvalidLine,
    JobRecord,
    Progress,
    Record,
    RetryRecord,
)

MARKER = "ledger.json"
_TABLES = (
    "meta",
    "jobs",
    "deliveries",
    "progress",
    "lines",
    "retries",
    "dead",
    "invalid",
    "redrives",
)
_PER_LINE = ("lines", "retries", "invalid", "redrives")
_LINE = struct.Struct(">I")
_FIRST_MAP_BYTES = 256 << 20
_SPARE_BYTES = 16 << 20
_ROW_BYTES = 1024
_PAGE_OF_ENTRIES = 2000
_PAGE_OF_LETTERS = 200
_R = TypeVar("_R", bound=Record)


class Ledger:
    """The open ledger of one spool."""

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        """Open the ledger in `folder`; a writer makes it when it was never there.

        Raises LedgerError: it cannot be read, its data is gone, or a newer release
        wrote it.
        """
        self._lock = threading.RLock()
        self._folder = folder
        known = (folder / MARKER).exists()
        if known and _size(folder / "data.mdb") == 0:
            msg = (
                f"{folder}/data.mdb is missing or empty although {MARKER} says it was made: "
                "restore it from a backup, or move the ledger folder away to start anew"
            )
            raise LedgerError("ledger_lost", msg)
        if readonly and not known:
            msg = f"there is no ledger in {folder} yet; `inbox-daemon run` makes it"
            raise LedgerError("ledger_missing", msg)
        self._open(readonly=readonly)
        if not readonly and not known:
            self._mark()
        self._check_version()

    def _open(self, *, readonly: bool) -> None:
        try:
            self._env = lmdb.open(
                str(self._folder),
                map_size=max(_FIRST_MAP_BYTES, 2 * _size(self._folder / "data.mdb")),
                max_dbs=len(_TABLES),
                readonly=readonly,
                create=not readonly,
                sync=True,
                metasync=True,
                writemap=False,
                mode=0o640,
            )
            self._db = {
                name: self._env.open_db(name.encode(), create=not readonly) for name in _TABLES
            }
        except lmdb.Error as error:
            msg = f"the ledger in {self._folder} cannot be opened: {error}"
            raise LedgerError("ledger_unreadable", msg) from None

    def _mark(self) -> None:
        with self._write() as txn:
            txn.put(b"version", b"%d" % LEDGER_VERSION, db=self._db["meta"], overwrite=False)
        durable.write_file(self._folder / MARKER, orjson.dumps({"version": LEDGER_VERSION}))
        durable.sync_dir(self._folder)

    def _check_version(self) -> None:
        with self._read() as txn:
            found = txn.get(b"version", db=self._db["meta"])
        if found is None:
            msg = (
                f"the ledger in {self._folder} holds nothing although it was made: restore it "
                "from a backup, or move the ledger folder away to start anew"
            )
            raise LedgerError("ledger_lost", msg)
        if int(found) == LEDGER_VERSION:
            return
        msg = (
            f"the ledger in {self._folder} has version {int(found)} and this release reads "
            f"{LEDGER_VERSION}; install the release that wrote it, or a newer one"
        )
        raise LedgerError("ledger_version", msg)

    def compact_into(self, folder: Path) -> None:
        """Write a copy without the free pages into an empty folder.

        Raises LedgerError: the copy could not be written.
        """
        try:
            with self._lock:
                self._env.copy(str(folder), compact=True)
        except lmdb.Error as error:
            msg = f"the ledger cannot be copied: {error}; free some disk space"
            raise LedgerError("ledger_write_failed", msg) from None

    def close(self) -> None:
        """Close the environment."""
        with self._lock:
            self._env.close()

    # -- transactions ---------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[lmdb.Transaction]:
        with self._lock:
            try:
                with self._env.begin(buffers=False) as txn:
                    yield txn
            except lmdb.Error as error:
                msg = f"the ledger cannot be read: {error}"
                raise LedgerError("ledger_unreadable", msg) from None

    @contextmanager
    def _write(self, expected_bytes: int = 0) -> Iterator[lmdb.Transaction]:
        with self._lock:
            self._grow(expected_bytes)
            try:
                with self._env.begin(write=True) as txn:
                    yield txn
            except lmdb.Error as error:
                msg = f"the ledger cannot be written: {error}; free some disk space"
                raise LedgerError("ledger_write_failed", msg) from error

    def _grow(self, expected_bytes: int) -> None:
        """Keep twice the room that the next transaction may take."""
        info = self._env.info()
        used = (info["last_pgno"] + 1) * self._env.stat()["psize"]
        needed = 2 * (used + 2 * expected_bytes) + _SPARE_BYTES
        if needed > info["map_size"]:
            self._env.set_mapsize(max(2 * info["map_size"], 2 * needed))

    # -- jobs -----------------------------------------------------------------------

    def accept(
        self,
        job: JobRecord,
        invalid: list[InvalidLine],
        redriven: list[tuple[int, DeadLetter]] | None = None,
    ) -> None:
        """Know a job before its file is moved to queued/.

        `redriven` says which of its lines runs which dead letter again.
        """
        with self._write(_ROW_BYTES * (len(invalid) + len(redriven or []))) as txn:
            self._put(txn, "jobs", job.id.encode(), job)
            txn.put(_delivery(job.name, job.sha256), job.id.encode(), db=self._db["deliveries"])
            for line in invalid:
                key = _line_key(job.id, line.line)
                self._put_raw(txn, "invalid", key, line.fault.model_dump_json().encode())
            for number, letter in redriven or []:
                origin = _line_key(letter.job_id, letter.line)
                self._put_raw(txn, "redrives", _line_key(job.id, number), origin)

    def update(self, job: JobRecord) -> None:
        """Replace a job's record, as when it starts."""
        with self._write() as txn:
            self._put(txn, "jobs", job.id.encode(), job)

    def finish(self, job: JobRecord) -> None:
        """Close a published job: its record stays for re-deliveries, its lines go.

        Its dead letters stay until they are redriven or purged; those of another job
        that it has run again are answered and go.
        """
        with self._write() as txn:
            self._put(txn, "jobs", job.id.encode(), job)
            for _, origin in list(self._rows(txn, "redrives", job.id)):
                txn.delete(origin, db=self._db["dead"])
            self._forget_lines(txn, job.id)

    def forget(self, job_id: str) -> None:
        """Remove a job that never reached queued/, or whose time is over."""
        with self._write() as txn:
            job = self._get(txn, "jobs", job_id.encode(), JobRecord)
            if job is not None:
                key = _delivery(job.name, job.sha256)
                if txn.get(key, db=self._db["deliveries"]) == job_id.encode():
                    txn.delete(key, db=self._db["deliveries"])
                txn.delete(job_id.encode(), db=self._db["jobs"])
            self._forget_lines(txn, job_id)

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
            return [_load(JobRecord, bytes(value)) for _, value in txn.cursor(db=self._db["jobs"])]

    def delivered(self, name: str, sha256: str) -> JobRecord | None:
        """The job that this name with these bytes was, if it is still known."""
        with self._read() as txn:
            job_id = txn.get(_delivery(name, sha256), db=self._db["deliveries"])
            return self._get(txn, "jobs", bytes(job_id), JobRecord) if job_id else None

    # -- lines ----------------------------------------------------------------------

    def checkpoint(
        self, checkpoints: list[Checkpoint], state: dict[str, bytes | None] | None = None
    ) -> None:
        """Make finished lines count: their journals must be on the disk already.

        `state` sets small values of the runner in the same transaction; None removes.
        """
        # Dead letters hold their requests, so they are what can be large.
        rows = [[_row(letter) for letter in checkpoint.dead] for checkpoint in checkpoints]
        with self._write(sum(len(row[1]) for part in rows for row in part)) as txn:
            for checkpoint, dead in zip(checkpoints, rows, strict=True):
                self._apply(txn, checkpoint, dead)
            for key, value in (state or {}).items():
                self._put_state(txn, key, value)

    def _apply(
        self, txn: lmdb.Transaction, checkpoint: Checkpoint, dead: list[tuple[bytes, bytes]]
    ) -> None:
        job_id = checkpoint.job_id
        self._put(txn, "progress", job_id.encode(), checkpoint.progress)
        for line, retry in checkpoint.retries.items():
            self._put(txn, "retries", _line_key(job_id, line), retry)
        for key, value in dead:
            self._put_raw(txn, "dead", key, value)
        rows = sorted((_line_key(job_id, line), entry.pack()) for line, entry in checkpoint.entries)
        with txn.cursor(db=self._db["lines"]) as cursor:
            _, added = cursor.putmulti(rows, overwrite=False)
        if added != len(rows):
            txn.abort()
            msg = f"{len(rows) - added} lines of job {job_id} ended twice; this is a bug"
            raise LedgerError("outcome_twice", msg)

    def progress(self, job_id: str) -> Progress:
        """How far a job is; all zero when it never ran."""
        with self._read() as txn:
            found = self._get(txn, "progress", job_id.encode(), Progress)
        return found or Progress()

    def entries(self, job_id: str, after: int = 0) -> list[tuple[int, Entry]]:
        """A page of the lines after line `after` that have their outcome, in order.

        Pages keep the transaction short; an empty list is the end.
        """
        page: list[tuple[int, Entry]] = []
        with self._read() as txn, txn.cursor(db=self._db["lines"]) as cursor:
            found = cursor.set_range(_line_key(job_id, after + 1))
            while found and len(page) < _PAGE_OF_ENTRIES:
                key, value = map(bytes, cursor.item())
                if not key.startswith(job_id.encode()):
                    break
                page.append((_line_of(key), Entry.unpack(value)))
                found = cursor.next()
        return page

    def all_entries(self, job_id: str) -> Iterator[tuple[int, Entry]]:
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
        return {_line_of(key): Fault.model_validate_json(value) for key, value in rows}

    def dead_letters(self, job_id: str = "") -> Iterator[DeadLetter]:
        """The dead letters of one job, or of all, page by page."""
        after = b""
        while page := self._dead_page(job_id.encode(), after):
            for key, value in page:
                yield _load(DeadLetter, value)
                after = key

    def _dead_page(self, prefix: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
        page: list[tuple[bytes, bytes]] = []
        with self._read() as txn, txn.cursor(db=self._db["dead"]) as cursor:
            found = cursor.set_range(after + b"\0" if after else prefix)
            while found and len(page) < _PAGE_OF_LETTERS:
                key, value = map(bytes, cursor.item())
                if not key.startswith(prefix):
                    break
                page.append((key, value))
                found = cursor.next()
        return page

    def dead_sizes(self) -> Iterator[tuple[str, int, int]]:
        """Job id, line and stored bytes of each dead letter, page by page."""
        after = b""
        while page := self._dead_page(b"", after):
            for key, value in page:
                yield key[:-4].decode(), _line_of(key), len(value)
                after = key

    def dead_letter(self, job_id: str, line: int) -> DeadLetter | None:
        """One dead letter."""
        with self._read() as txn:
            return self._get(txn, "dead", _line_key(job_id, line), DeadLetter)

    def dead_count(self) -> int:
        """How many dead letters there are."""
        with self._read() as txn:
            return int(txn.stat(self._db["dead"])["entries"])

    def being_redriven(self) -> set[tuple[str, int]]:
        """The dead letters that an active job runs again, by job id and line."""
        with self._read() as txn:
            origins = [bytes(value) for _, value in txn.cursor(db=self._db["redrives"])]
        return {(origin[:-4].decode(), _line_of(origin)) for origin in origins}

    def purge(self, letters: list[tuple[str, int]]) -> None:
        """Remove dead letters, by job id and line."""
        with self._write() as txn:
            for job_id, line in letters:
                txn.delete(_line_key(job_id, line), db=self._db["dead"])

    # -- small state of the runner --------------------------------------------------

    def get_state(self, key: str) -> bytes | None:
        """A small value that must survive a crash, such as the hunt."""
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

    # -- rows -----------------------------------------------------------------------

    def _per_line(self, table: str, job_id: str, kind: type[_R]) -> list[tuple[int, _R]]:
        with self._read() as txn:
            return [
                (_line_of(key), _load(kind, value)) for key, value in self._rows(txn, table, job_id)
            ]

    def _rows(
        self, txn: lmdb.Transaction, table: str, prefix: str
    ) -> Iterator[tuple[bytes, bytes]]:
        with txn.cursor(db=self._db[table]) as cursor:
            found = cursor.set_range(prefix.encode()) if prefix else cursor.first()
            while found and bytes(cursor.key()).startswith(prefix.encode()):
                yield bytes(cursor.key()), bytes(cursor.value())
                found = cursor.next()

    def _get(self, txn: lmdb.Transaction, table: str, key: bytes, kind: type[_R]) -> _R | None:
        value = txn.get(key, db=self._db[table])
        return None if value is None else _load(kind, bytes(value))

    def _put(self, txn: lmdb.Transaction, table: str, key: bytes, record: Record) -> None:
        self._put_raw(txn, table, key, orjson.dumps(record.model_dump(mode="json")))

    def _put_raw(self, txn: lmdb.Transaction, table: str, key: bytes, value: bytes) -> None:
        txn.put(key, value, db=self._db[table])


def _row(letter: DeadLetter) -> tuple[bytes, bytes]:
    return _line_key(letter.job_id, letter.line), orjson.dumps(letter.model_dump(mode="json"))


def _load(kind: type[_R], value: bytes) -> _R:
    return kind.model_validate(orjson.loads(value))


def _delivery(name: str, sha256: str) -> bytes:
    return name.encode() + b"\0" + bytes.fromhex(sha256)


def _line_key(job_id: str, line: int) -> bytes:
    return job_id.encode() + _LINE.pack(line)


def _line_of(key: bytes) -> int:
    number: int = _LINE.unpack(key[-4:])[0]
    return number


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

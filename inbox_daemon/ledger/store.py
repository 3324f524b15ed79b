"""The ledger's store: one LMDB environment, its transactions and its rows.

Purpose: the only import of lmdb.
Invariants: `sync=True, metasync=True, writemap=False`, so what was written survives a
power cut; a failed write raises LedgerError, after which the process must end, because
LMDB's later commits would succeed over the hole; a marker file beside the data tells an
empty ledger from one whose data was lost; the map grows before it is full, because at
a full map deletes fail too; no transaction stays open between calls, since one held
open makes the file grow without end.
Known limits: one process writes; a key is at most 511 bytes.
"""

import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import orjson

from inbox_daemon.contract.errors import LedgerError
from inbox_daemon.contract.records import LEDGER_VERSION, Record
from inbox_daemon.spool import durable

log = logging.getLogger(__name__)

MARKER = "ledger.json"
# LMDB's own names.
DATA, LOCK = "data.mdb", "lock.mdb"
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
    "ended",
    "ended_ids",
)
_LINE = struct.Struct(">I")
_FIRST_MAP_BYTES = 256 << 20
_SPARE_BYTES = 16 << 20
Upgrade = Callable[[lmdb.Transaction, dict[str, Any]], None]


def _with_energy(_txn: lmdb.Transaction, _db: dict[str, Any]) -> None:
    """From 1 to 2: jobs have an energy and the time of an early end, unknown where they lack it."""


def _with_endings(_txn: lmdb.Transaction, _db: dict[str, Any]) -> None:
    """From 2 to 3: what ends from now on leaves an event; earlier ends have none."""


def _with_models(_txn: lmdb.Transaction, _db: dict[str, Any]) -> None:
    """From 3 to 4: jobs list the models they were bound to before; earlier ones had one."""


# How a ledger of version n becomes one of version n + 1, by n.  A change of a record's
# shape raises records.LEDGER_VERSION and adds its step here, for good.
UPGRADES: dict[int, Upgrade] = {1: _with_energy, 2: _with_endings, 3: _with_models}
_R = TypeVar("_R", bound=Record)


class Store:
    """The open environment of one spool's ledger."""

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        """Open the ledger in `folder`; a writer makes it when it was never there.

        Raises LedgerError: it cannot be read, its data is gone, or a newer release
        wrote it.
        """
        self._lock = threading.RLock()
        self._folder = folder
        known = (folder / MARKER).exists()
        if known and _size(folder / DATA) == 0:
            msg = (
                f"{folder}/{DATA} is missing or empty although {MARKER} says it was made: "
                "restore it from a backup, or move the ledger folder away to start afresh"
            )
            raise LedgerError("ledger_lost", msg)
        if readonly and not known:
            msg = f"there is no ledger in {folder} yet; `inbox-daemon run` makes it"
            raise LedgerError("ledger_missing", msg)
        self._open(readonly=readonly)
        try:
            if not readonly and not known:
                with self._write() as txn:
                    txn.put(
                        b"version", b"%d" % LEDGER_VERSION, db=self._db["meta"], overwrite=False
                    )
                durable.write_file(self._folder / MARKER, orjson.dumps({"version": LEDGER_VERSION}))
                durable.sync_dir(self._folder)
            self._upgrade(readonly=readonly)
        except LedgerError:
            self._env.close()
            raise

    def _open(self, *, readonly: bool) -> None:
        data = self._folder / DATA
        try:
            while True:
                inode = _inode(data)
                self._env = lmdb.open(
                    str(self._folder),
                    map_size=max(_FIRST_MAP_BYTES, 2 * _size(data)),
                    max_dbs=len(_TABLES),
                    readonly=readonly,
                    create=not readonly,
                    sync=True,
                    metasync=True,
                    writemap=False,
                    mode=0o640,
                )
                if readonly and _inode(data) == inode:
                    break
                if not readonly and not self._is_misled():
                    break
                # Its data was exchanged, by a compaction: for a reader while LMDB opened its
                # two files; for the daemon beside a process that has kept the lock file.  The
                # first table that is made would go over the ledger then, so the lock file is
                # made again, and the old one left to that process with the old data.
                self._env.close()
                if not readonly:
                    log.warning("ledger_lock_stale", extra={"file": str(self._folder / LOCK)})
                    durable.remove_file(self._folder / LOCK)
            self._db = {
                name: self._env.open_db(name.encode(), create=not readonly) for name in _TABLES
            }
        except lmdb.NotFoundError:  # read-only, before the daemon has upgraded it
            msg = f"{self._folder} is an older release's ledger; `inbox-daemon run` upgrades it"
            raise LedgerError("ledger_version", msg) from None
        except lmdb.Error as error:
            msg = f"the ledger in {self._folder} cannot be opened: {error}"
            raise LedgerError("ledger_unreadable", msg) from None

    def _is_misled(self) -> bool:
        """Return whether the lock file counts transactions that the data does not know."""
        with self._env.begin(write=True) as txn:
            misled = txn.id() != int(self._env.info()["last_txnid"]) + 1
            txn.abort()
        return misled

    def _upgrade(self, *, readonly: bool) -> None:
        """Bring an older ledger up to date, a version at a time, each in one transaction."""
        with self._read() as txn:
            written = txn.get(b"version", db=self._db["meta"])
        if written is None:
            msg = (
                f"the ledger in {self._folder} holds nothing although it was made: restore it "
                "from a backup, or move the ledger folder away to start afresh"
            )
            raise LedgerError("ledger_lost", msg)
        found = int(written)
        if found > LEDGER_VERSION:
            msg = (
                f"the ledger in {self._folder} has version {found} and this release reads "
                f"{LEDGER_VERSION}; install the release that wrote it, or a newer one"
            )
            raise LedgerError("ledger_version", msg)
        if found < LEDGER_VERSION and readonly:
            msg = f"{self._folder} is an older release's ledger; `inbox-daemon run` upgrades it"
            raise LedgerError("ledger_version", msg)
        for version in range(found, LEDGER_VERSION):
            with self._write() as txn:
                UPGRADES[version](txn, self._db)
                txn.put(b"version", b"%d" % (version + 1), db=self._db["meta"])

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

    def clear_dead_readers(self) -> int:
        """Forget the readers that were killed in a transaction; return how many there were.

        LMDB keeps every page that they could see, so the file would grow with each commit.
        """
        with self._lock:
            return int(self._env.reader_check())

    def readers(self) -> list[int]:
        """Return the process ids of others that have a transaction open; dead ones not."""
        self.clear_dead_readers()
        with self._lock:
            rows = self._env.readers().splitlines()[1:]
        return sorted({int(row.split()[0]) for row in rows if row.strip()} - {os.getpid()})

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
            # Keep twice the room that the next transaction may take.
            info = self._env.info()
            used = (info["last_pgno"] + 1) * self._env.stat()["psize"]
            needed = 2 * (used + 2 * expected_bytes) + _SPARE_BYTES
            if needed > info["map_size"]:
                self._env.set_mapsize(max(2 * info["map_size"], 2 * needed))
            try:
                with self._env.begin(write=True) as txn:
                    yield txn
            except lmdb.Error as error:
                msg = f"the ledger cannot be written: {error}; free some disk space"
                raise LedgerError("ledger_write_failed", msg) from error

    # -- rows -----------------------------------------------------------------------

    def _per_line(self, table: str, job_id: str, kind: type[_R]) -> list[tuple[int, _R]]:
        with self._read() as txn:
            return [
                (line_of(key), load(kind, value)) for key, value in self._rows(txn, table, job_id)
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
        return None if value is None else load(kind, bytes(value))

    def _put(self, txn: lmdb.Transaction, table: str, key: bytes, record: Record) -> None:
        self._put_raw(txn, table, key, orjson.dumps(record.model_dump(mode="json")))

    def _put_raw(self, txn: lmdb.Transaction, table: str, key: bytes, value: bytes) -> None:
        txn.put(key, value, db=self._db[table])


def load(kind: type[_R], value: bytes) -> _R:
    """Read a stored record."""
    return kind.model_validate(orjson.loads(value))


def line_key(job_id: str, line: int) -> bytes:
    """The key of a line: lines of a job lie together, in order."""
    return job_id.encode() + _LINE.pack(line)


def line_of(key: bytes) -> int:
    """The line number in such a key."""
    number: int = _LINE.unpack(key[-4:])[0]
    return number


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None

"""The ledger's ended events: which job is over, how, and who knows.

Purpose: a durable list of ends, so that what tells the outside (a message, a metric) goes
on after a crash without losing or repeating one.
Invariants: an event is written in the transaction that ends its job; a job has at most
one; numbers grow by one and are never used again; a consumer's mark is its own.
Known limit: the newest 10,000 are kept; a consumer that is further behind misses the rest.
"""

import struct

import lmdb
import orjson

from inbox_daemon.contract.records import Ended
from inbox_daemon.ledger.store import Store, load

KEPT = 10_000
_NUMBER = struct.Struct(">Q")


class Endings(Store):
    """Ended events, by number."""

    def record_ended(self, ended: Ended) -> None:
        """Write an event that ends no job of the ledger's, such as a refusal; once by its id."""
        with self._write() as txn:
            self._record_ended(txn, ended)

    def _record_ended(self, txn: lmdb.Transaction, ended: Ended) -> None:
        with txn.cursor(db=self._db["ended"]) as cursor:
            last = _NUMBER.unpack(cursor.key())[0] if cursor.last() else 0
        key = _NUMBER.pack(last + 1)
        if not txn.put(ended.id.encode(), key, db=self._db["ended_ids"], overwrite=False):
            return
        self._put(txn, "ended", key, ended)
        old = _NUMBER.pack(last + 1 - KEPT) if last >= KEPT else None
        value = None if old is None else txn.pop(old, db=self._db["ended"])
        if value is not None:
            txn.delete(orjson.loads(value)["id"].encode(), db=self._db["ended_ids"])

    def endings(self, after: int = 0, most: int = 500) -> list[tuple[int, Ended]]:
        """Return the events after number `after`, oldest first, at most `most` of them."""
        found: list[tuple[int, Ended]] = []
        with self._read() as txn, txn.cursor(db=self._db["ended"]) as cursor:
            more = cursor.set_range(_NUMBER.pack(after + 1))
            while more and len(found) < most:
                key, value = map(bytes, cursor.item())
                found.append((_NUMBER.unpack(key)[0], load(Ended, value)))
                more = cursor.next()
        return found

    def last_endings(self, most: int) -> list[Ended]:
        """Return the newest events, oldest first."""
        found: list[Ended] = []
        with self._read() as txn, txn.cursor(db=self._db["ended"]) as cursor:
            more = cursor.last()
            while more and len(found) < most:
                found.append(load(Ended, bytes(cursor.value())))
                more = cursor.prev()
        return found[::-1]

    def unseen(self, consumer: str) -> list[tuple[int, Ended]]:
        """Return what a consumer has not seen yet, oldest first, a page of it."""
        with self._read() as txn:
            mark = txn.get(_mark_key(consumer), default=b"0", db=self._db["meta"])
        return self.endings(int(mark))

    def mark_seen(self, consumer: str, number: int) -> None:
        """Note that a consumer has seen everything up to `number`."""
        with self._write() as txn:
            txn.put(_mark_key(consumer), b"%d" % number, db=self._db["meta"])


def _mark_key(consumer: str) -> bytes:
    return f"seen {consumer}".encode()

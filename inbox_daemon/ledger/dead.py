"""The ledger's dead letters.

Purpose: keep each request that was set aside until it is redriven or purged.
Invariant: read in pages, since each letter holds its whole request.
"""

from collections.abc import Iterator

from inbox_daemon.contract.records import DeadLetter
from inbox_daemon.ledger.store import Store, line_key, line_of, load

_PAGE_OF_LETTERS, _PAGE_BYTES = 200, 1 << 20


class DeadLetters(Store):
    """Dead letters, by job and line."""

    def dead_letters(self, job_id: str = "") -> Iterator[DeadLetter]:
        """The dead letters of one job, or of all, page by page."""
        after = b""
        while page := self._dead_page(job_id.encode(), after):
            for key, value in page:
                yield load(DeadLetter, value)
                after = key

    def _dead_page(self, prefix: bytes, after: bytes) -> list[tuple[bytes, bytes]]:
        page: list[tuple[bytes, bytes]] = []
        with self._read() as txn, txn.cursor(db=self._db["dead"]) as cursor:
            found, size = cursor.set_range(after + b"\0" if after else prefix), 0
            while found and len(page) < _PAGE_OF_LETTERS and size < _PAGE_BYTES:
                key, value = map(bytes, cursor.item())
                if not key.startswith(prefix):
                    break
                page.append((key, value))
                size += len(value)
                found = cursor.next()
        return page

    def dead_sizes(self) -> Iterator[tuple[str, int, int]]:
        """Job id, line and stored bytes of each dead letter, page by page."""
        after = b""
        while page := self._dead_page(b"", after):
            for key, value in page:
                yield key[:-4].decode(), line_of(key), len(value)
                after = key

    def dead_letter(self, job_id: str, line: int) -> DeadLetter | None:
        """One dead letter."""
        with self._read() as txn:
            return self._get(txn, "dead", line_key(job_id, line), DeadLetter)

    def dead_count(self) -> int:
        """How many dead letters there are."""
        with self._read() as txn:
            return int(txn.stat(self._db["dead"])["entries"])

    def being_redriven(self) -> set[tuple[str, int]]:
        """The dead letters that an active job runs again, by job id and line."""
        with self._read() as txn:
            origins = [bytes(value) for _, value in txn.cursor(db=self._db["redrives"])]
        return {(origin[:-4].decode(), line_of(origin)) for origin in origins}

    def purge(self, letters: list[tuple[str, int]]) -> None:
        """Remove dead letters, by job id and line."""
        with self._write() as txn:
            for job_id, line in letters:
                txn.delete(line_key(job_id, line), db=self._db["dead"])

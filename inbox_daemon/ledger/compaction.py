"""Compaction: the ledger's file without its free pages, in the place of the old one.

Purpose: `inbox-daemon compact`.
Invariants: no process has the ledger open while its file is exchanged, and the next one
that opens it finds a lock file that fits the new one.
Why: the number of the last transaction is kept in lock.mdb and taken from the data by
the first process that opens the ledger; while any process has it open, the others trust
that number, which tells them which of the two meta pages is the newer one.  After an
exchange of the data beside a reader it is the old file's, and may lead to the new file's
empty meta page (mdb_env_setup_locks and mdb_env_excl_lock in LMDB's mdb.c).
"""

import os
from pathlib import Path

from inbox_daemon.contract.errors import LedgerError
from inbox_daemon.ledger.store import DATA, LOCK, Store
from inbox_daemon.spool import durable


def compact(folder: Path, workplace: Path) -> tuple[int, int]:
    """Rewrite the ledger in `folder`; return its size in bytes before and after.

    `workplace` is a folder on the same filesystem that is made and removed.  The caller
    holds the spool's lock, so that no daemon writes.
    Raises LedgerError: a process reads the ledger, or it cannot be read or copied.
    """
    durable.remove_tree(workplace)
    durable.make_dir(workplace)
    try:
        store = Store(folder)
        try:
            _refuse(store.readers())
            store.compact_into(workplace)
        finally:
            store.close()
        data = folder / DATA
        before = data.stat().st_size
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            # From here on no other process can open the ledger, until `lock` is closed.
            holder = durable.lock_first_byte(lock)
            _refuse([] if holder is None else [holder])
            durable.put_in_place(workplace / DATA, data)
            # Sets the lock file up for the new data, while others still wait to open it.
            Store(folder).close()
        finally:
            os.close(lock)
    finally:
        durable.remove_tree(workplace)
    return before, data.stat().st_size


def _refuse(pids: list[int]) -> None:
    """Raise LedgerError if there are processes that read the ledger."""
    if pids:
        who = (
            f"process {pids[0]}" if len(pids) == 1 else f"the processes {', '.join(map(str, pids))}"
        )
        verb = "reads" if len(pids) == 1 else "read"
        msg = (
            f"{who} {verb} the ledger, as `inbox-daemon dead list` does: "
            "end that, or wait for its end, then compact again"
        )
        raise LedgerError("ledger_in_use", msg)

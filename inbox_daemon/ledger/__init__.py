"""LMDB: which results count, which requests are dead letters, which job is which.

Touches ledger/ alone; the only room that imports lmdb.
May import: contract, spool.

    store.py       the environment, its transactions and rows
    jobs.py        what was accepted, and which delivery it was
    lines.py       which request has its outcome, and where
    dead.py        dead letters
    ended.py       which job is over, how, and who knows
    compaction.py  the file without its free pages, in place of the old one
"""

from inbox_daemon.ledger.dead import DeadLetters
from inbox_daemon.ledger.jobs import JobRows
from inbox_daemon.ledger.lines import Lines
from inbox_daemon.ledger.store import MARKER

__all__ = ["MARKER", "Ledger"]


class Ledger(JobRows, Lines, DeadLetters):
    """The open ledger of one spool; its parts are in the modules of this package."""

"""The ledger: how far each job is inside its state, in LMDB.

Purpose: everything persistent that is no file of the spool.  Each public method is one
transaction; lines.Lines.checkpoint is the one that makes results count.
Invariant: no state is stored twice: which folder a job lies in is the spool's to say.

Tables: `meta`, `jobs` (id), `deliveries` (name NUL sha256 -> id), `progress` (id),
and by id and line: `lines`, `retries`, `dead`, `invalid`, `redrives` (the key in
`dead` of the letter that this line runs again).
"""

from inbox_daemon.ledger.dead import DeadLetters
from inbox_daemon.ledger.jobs import Jobs
from inbox_daemon.ledger.lines import Lines
from inbox_daemon.ledger.store import MARKER

__all__ = ["MARKER", "Ledger"]


class Ledger(Jobs, Lines, DeadLetters):
    """The open ledger of one spool; its parts are in the modules of this package."""

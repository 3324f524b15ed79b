"""The spool: which folders there are, and every move of a job between them.

Purpose: the only package that knows what is moved where; durable.py makes a move last.
Invariants: the folder in which a job lies is its state; nothing in outbox/ or
rejected/ is ever overwritten, except a `status.json` by its newer self; what cannot be
understood goes to quarantine/, never away.

    inbox/            what senders drop; never trusted; high/ and low/ in it are the
                      other two priorities
    claimed/          <id>.jsonl               our copy, while it is validated
                      <id>.reason.json         a rejection that is being carried out
                      <id>.drop.NAME           a drop that is being taken away
    queued/           <id>.jsonl
    running/<id>/     input.jsonl  results.part  outbox/ (the folder being built)
    outbox/NAME/      output.jsonl  errors.jsonl  retry.jsonl  status.json
    outbox/status.json
    rejected/         NAME.jsonl  NAME.reason.json
    quarantine/       what could not be read
    ledger/           LMDB (ledger.py)
"""

from inbox_daemon.spool.inbox import STUCK, Inbox
from inbox_daemon.spool.jobs import Jobs
from inbox_daemon.spool.layout import FOLDERS, OUTPUT, STATUS, holder_of
from inbox_daemon.spool.rejected import Rejections

__all__ = ["FOLDERS", "OUTPUT", "STATUS", "STUCK", "Spool", "holder_of"]


class Spool(Inbox, Jobs, Rejections):
    """One spool, by its root folder; its parts are in the modules of this package."""

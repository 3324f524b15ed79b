"""The folders, and every move between them.

Touches the spool's filesystem; durable.py makes a move last.
May import: contract.

    durable.py   the system calls that make something last, each in its safe order
    entries.py   what one look at a folder saw
    layout.py    where everything lies; creation, checks, the lock
    inbox.py     opening, claiming and taking away drops; dropping
    jobs.py      queued/ and running/
    outbox.py    what senders fetch: publication, notices, the health
    rejected.py  refusals
    troubles.py  what could not be dealt with, and why

Invariants: the folder in which a job lies is its state; nothing in outbox/ or rejected/ is
ever overwritten, except a `status.json` by its newer self; what cannot be understood goes
to quarantine/ and is never removed.

    inbox/            what senders drop; never trusted; high/ and low/ in it are the
                      other two priorities
    claimed/          <id>.jsonl               our copy, while it is validated
                      <id>.reason.json         a rejection that is being carried out
                      <id>.LANE.drop/          a drop that is being taken away
                      retained.…/              what retention is removing
    queued/           <id>.jsonl
    running/<id>/     input.jsonl  results.part  outbox/ (the folder being built)
    outbox/NAME/      output.jsonl  errors.jsonl  retry.jsonl  status.json
    outbox/status.json
    rejected/         NAME.jsonl  NAME.reason.json
    quarantine/       what could not be read
    ledger/           LMDB (the room ledger)
"""

from inbox_daemon.spool.durable import DISK_FULL
from inbox_daemon.spool.inbox import Inbox
from inbox_daemon.spool.jobs import JobFolders
from inbox_daemon.spool.layout import FOLDERS, claim_of, holder_of
from inbox_daemon.spool.rejected import Rejections
from inbox_daemon.spool.troubles import OWN_ERRORS, STUCK

__all__ = ["DISK_FULL", "FOLDERS", "OWN_ERRORS", "STUCK", "Spool", "claim_of", "holder_of"]


class Spool(Inbox, JobFolders, Rejections):
    """One spool, by its root folder; its parts are in the modules of this package."""

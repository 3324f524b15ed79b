"""The soak: everything that may happen to a daemon, all at once, for hours, with a witness.

    make soak HOURS=2 SEED=7      PYTHONPATH=tests/crash:tests/support python -m soak --help

One real daemon, restarted as systemd would, on a small filesystem of its own.  Senders, orders,
fetchers and readers use it while it is killed and stopped, its disk fills and empties, its
clock jumps and its server flaps.  The witness looks from outside only: it knows what was sent,
what was ordered and what the server answered, and holds everything that it sees to that.  At
the end all trouble ends, the queue drains, and every truth that was violated is listed.

    __main__.py        the command line
    campaign.py        one run: its parts, its phases, its quiet end
    desk.py            what all actors share: folders, random numbers, the record of actions
    history.py         what happened, as the witness knows it; the server's journal
    jobs.py            the files that senders make, and what must become of each
    truths.py          what must be true of a job and of its requests
    service_truths.py  what must be true of the service: its health, memory, log and folders
    senders.py         files, dropped in every way
    clients.py         orders, fetchers and readers
    troubles.py        kills, a full disk, a jumping clock, bad weather at the server
    supervisor.py      the daemon's process, as systemd treats it
    ground.py          the small filesystem below the spool
    server.py          the engine: the stand-in with weather and a journal
    watching.py        the witness's own threads: the health, the figures, the journal
    report.py          the figures and the violations, printed and written

Invariant: each actor decides by random numbers of its own, seeded with SEED and its name, so
a seed repeats the plan; what the processes were doing at that moment varies.
"""

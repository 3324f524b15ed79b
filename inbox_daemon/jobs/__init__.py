"""The active jobs, in memory and on the disk: queue, running job, its two files, the group commit.

Touches running/<id>/, the ledger and the clocks; knows neither the engine nor inbox/.
May import: contract, request, spool, ledger.

    active.py    what is queued and running, and who is next
    running.py   one running job: its lines, marks and files
    marks.py     which of its requests are open, in flight, due again or over
    files.py     input.jsonl and results.part
    commit.py    many outcomes, one fdatasync a job, one transaction
    ordering.py  in which order the requests of a chunk are sent
    recovery.py  repairs at start what a crash left in the middle
    clock.py     what time it is, for decisions that cannot be undone
    system_time.py  the machine's clocks, and the note of the newest trusted time
"""

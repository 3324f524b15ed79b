"""inbox/ to queued/ or rejected/; control files.

Touches inbox/, claimed/, queued/ and rejected/ by way of the spool; knows nothing of the engine.
May import: contract, request, spool, ledger, jobs.

    loop.py       scans the folders and has each drop answered
    watch.py      hints that wake the scan
    settling.py   which drops have stopped changing
    gate.py       whether a drop is complete, regular and ours to take
    admission.py  one drop: claimed, validated, accepted or refused
    control.py    cancel, pause, resume, redrive and purge
    redrive.py    dead letters become a new job
"""

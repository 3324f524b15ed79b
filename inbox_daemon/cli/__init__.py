"""What a person types.

Reads the spool and the ledger; changes them only by dropping files, as a sender does.
`init` makes folders and `compact` rewrites the ledger, without a daemon.
May import: contract, request, spool, ledger, publish, intake, report, service.

    main.py     the commands, and the console script
    options.py  what the commands share
    dead.py     `inbox-daemon dead ...`
    setup.py    what `init`, `schema` and `compact` do
    views.py    what the spool and the ledger show, without a daemon
    display.py  the words and tables of a terminal
    progress.py the progress of submitted jobs, to their end
    submit.py   drops a file, validates one, sends an order, and waits
"""

"""One process: its parts, its start, its loops, its end.

Touches the process: signals, limits, memory, systemd's socket.
May import: every room but cli.

    start.py   process-wide effects in their order, from start to stop
    parts.py   the parts put together, for the daemon and for tests
    daemon.py  the loops, the status, the heartbeat and the drain
    worker.py  the engine and its card, read at intervals
    stalls.py  an engine or a daemon that makes no progress
"""

"""`python -m inbox_daemon` is `inbox-daemon`."""

from inbox_daemon.cli import main

main()

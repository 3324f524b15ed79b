"""`python -m inbox_daemon` is `inbox-daemon`."""

from inbox_daemon.cli.main import main

main()

"""What the commands share: their options, their errors, an order to the daemon.

Purpose: one spelling of each option, one way from an error to an exit status.
Invariant: nothing here is a command.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inbox_daemon.contract.errors import Blame, InboxDaemonError

if TYPE_CHECKING:  # pydantic comes with it: help and version do without
    from inbox_daemon.contract.config import Config

REFUSED, USAGE, DEAD_LETTERS = 1, 2, 3
# sysexits.h: systemd need not start again what cannot be configured.
CONFIG = 78

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration, instead of $INBOX_DAEMON_CONFIG, DIR/config.toml or "
        "/etc/inbox-daemon/config.toml.",
    ),
]
SpoolOption = Annotated[
    Path | None,
    typer.Option("--spool", metavar="DIR", help="The spool, instead of the configuration's."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON for a program.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A job's name.")]
NameOrAll = Annotated[str, typer.Argument(metavar="NAME", help="A job's name, or ALL.")]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="REASON", help="Only those of this reason.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Those of every job.")]
FilesArgument = Annotated[list[Path], typer.Argument(metavar="FILE", help="Jobs, NAME.jsonl.")]


@contextmanager
def errors(misconfigured: int = USAGE) -> Iterator[None]:
    """Turn an error made on purpose into one sentence and an exit status.

    `misconfigured` is the status for an error that is not the sender's to mend.
    """
    try:
        yield
    except InboxDaemonError as error:
        typer.echo(f"inbox-daemon: {error.message}", err=True)
        raise typer.Exit(REFUSED if error.blame is Blame.SENDER else misconfigured) from None


@dataclass(frozen=True, slots=True)
class Place:
    """Which configuration and which spool the options name; None where they name none."""

    config: Path | None = None
    spool: Path | None = None


# What the options before the command name; set by the callbacks that run before it.
_before = Place()


def remember(config: Path | None, spool: Path | None) -> None:
    """Take the options that stand before the command: they count where it has none."""
    global _before  # noqa: PLW0603 - typer hands its context to none of the other functions
    _before = Place(config, spool)


def place(config: Path | None, spool: Path | None) -> Place:
    """Return what counts for a command: its own options, else those before it."""
    return Place(config or _before.config, spool or _before.spool)


def load(config: Path | None, spool: Path | None) -> "Config":
    """Return the configuration that a command works with; raises ConfigError."""
    from inbox_daemon.contract import config as configuration

    chosen = place(config, spool)
    return configuration.load(chosen.config, spool=chosen.spool)


def order(
    name: str, order: str, config: Path | None, spool: Path | None, **content: str | None
) -> None:
    """Drop a control file with that content; the daemon obeys it within two scans."""
    from inbox_daemon.cli import submit as submitting
    from inbox_daemon.spool import Spool

    with errors():
        settings = load(config, spool)
        there = Spool(settings.spool)
        earlier = submitting.order(there, name, order, **content)
        wait_s = settings.intake.settle_s + 2 * settings.intake.scan_interval_s
        refusal = submitting.wait_obeyed(there, f"{name}.{order}", wait_s + 2, earlier)
    typer.echo(refusal or f"{order} {name}: done", err=refusal is not None)
    if refusal:
        raise typer.Exit(REFUSED)


def write(data: bytes) -> None:
    """Write a document to stdout as it is."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

"""`inbox-daemon dead …`: list, show, redrive and purge dead letters.

Purpose: the commands on requests that were set aside.
Invariant: listing reads only; redrive and purge are orders that the daemon carries out.
"""

from typing import Annotated

import typer

from inbox_daemon.cli.options import (
    REFUSED,
    USAGE,
    AllOption,
    ConfigOption,
    JsonOption,
    ReasonOption,
    SpoolOption,
    errors,
    load,
    order,
    place,
    remember,
    write,
)

app = typer.Typer(
    help="Requests that were set aside, with the reason.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _dead(config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Requests that were set aside, with the reason."""
    chosen = place(config, spool)
    remember(chosen.config, chosen.spool)


@app.command("list")
def dead_list(
    *,
    job: Annotated[
        str | None, typer.Option("--job", metavar="NAME", help="Only those of this job.")
    ] = None,
    reason: ReasonOption = None,
    json: JsonOption = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """List dead letters."""
    from inbox_daemon.cli import display, views
    from inbox_daemon.spool import Spool

    with errors():
        letters = views.dead_letters(Spool(load(config, spool).spool), job, reason)
        if json:
            for letter in letters:
                write(letter.model_dump_json().encode() + b"\n")
        else:
            display.print_letters(letters)


@app.command("show")
def dead_show(
    name: Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")],
    custom_id: Annotated[str, typer.Argument(metavar="CUSTOM_ID", help="The request's.")],
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Show one with its request, as JSON."""
    from inbox_daemon.cli import views
    from inbox_daemon.spool import Spool

    with errors():
        for letter in views.dead_letters(Spool(load(config, spool).spool), name, None):
            if letter.custom_id == custom_id:
                write(letter.model_dump_json(indent=2).encode() + b"\n")
                return
    typer.echo(
        f"there is no dead letter {custom_id!a} of {name!a}; see `inbox-daemon dead list`", err=True
    )
    raise typer.Exit(REFUSED)


@app.command("redrive")
def dead_redrive(
    name: Annotated[str | None, typer.Argument(metavar="JOB", help="The job's name.")] = None,
    *,
    reason: ReasonOption = None,
    every: AllOption = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Run dead letters again.

    Those of a job make one new job, JOB.redrive-1; what is answered is no dead letter any more.
    """
    order(_chosen(name, reason, every=every), "redrive", config, spool, reason=reason)


@app.command("purge")
def dead_purge(
    name: Annotated[str | None, typer.Argument(metavar="JOB", help="The job's name.")] = None,
    *,
    reason: ReasonOption = None,
    every: AllOption = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Remove dead letters for good."""
    order(_chosen(name, reason, every=every), "purge", config, spool, reason=reason)


def _chosen(name: str | None, reason: str | None, *, every: bool) -> str:
    if name is None and reason is None and not every:
        typer.echo("name a JOB, or give --reason REASON or --all", err=True)
        raise typer.Exit(USAGE)
    return name or "ALL"

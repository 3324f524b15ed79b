"""The command line.

Purpose: arguments in, documents and words out, an exit status that a script can use.
Invariants: reading commands change nothing and need no daemon; `--json` writes one
JSON document to stdout and nothing else; errors go to stderr as one sentence.
Exit status: 0 done · 1 refused, unhealthy or not found · 2 wrong usage, configuration
or environment · 3 finished, but some requests ended as dead letters.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from inbox_daemon import __version__
from inbox_daemon import config as configuration
from inbox_daemon.config import Config
from inbox_daemon.errors import Blame, InboxDaemonError

REFUSED, USAGE, DEAD_LETTERS = 1, 2, 3

app = typer.Typer(
    name="inbox-daemon",
    help="A durable batch queue for one desktop GPU, driven by nothing but files.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

dead = typer.Typer(
    help="Requests that were set aside, with the reason.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(dead, name="dead")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The configuration file (TOML)."),
]
SpoolOption = Annotated[
    Path | None, typer.Option("--spool", metavar="DIR", help="The spool; overrides the key.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON for a program.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A job's name.")]
NameOrAll = Annotated[str, typer.Argument(metavar="NAME", help="A job's name, or ALL.")]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="REASON", help="Only those of this reason.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Those of every job.")]
FilesArgument = Annotated[list[Path], typer.Argument(metavar="FILE…", help="JSONL files.")]


@contextmanager
def _errors() -> Iterator[None]:
    """Turn an error made on purpose into one sentence and an exit status."""
    try:
        yield
    except InboxDaemonError as error:
        typer.echo(f"inbox-daemon: {error.message}", err=True)
        raise typer.Exit(REFUSED if error.blame is Blame.SENDER else USAGE) from None


def _load(config: Path | None, spool: Path | None) -> Config:
    return configuration.load(config, spool=spool)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"inbox-daemon {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def init(config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Make the spool's folders and a commented configuration file."""
    from inbox_daemon import setup

    with _errors():
        for line in setup.init(config, spool):
            typer.echo(line)


@app.command()
def run(
    config: ConfigOption = None,
    spool: SpoolOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log details too.")] = False,
) -> None:
    """Run the daemon in the foreground."""
    from inbox_daemon import daemon, logs

    logs.set_up(verbose=verbose)
    with _errors():
        daemon.serve(_load(config, spool))


@app.command()
def submit(
    files: FilesArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answers.")] = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Drop files into inbox/, each whole; with --wait, show the progress to the end."""
    from inbox_daemon import display
    from inbox_daemon import submit as submitting
    from inbox_daemon.spool import Spool

    with _errors():
        place = Spool(_load(config, spool).spool)
        dropped = [submitting.drop(place, path) for path in files]
    for drop in dropped:
        typer.echo(f"dropped {drop.name}.jsonl into {place.inbox}", err=True)
    if wait:
        outcomes = display.follow(place, dropped)
        raise typer.Exit(max(display.print_outcome(place, o) for o in outcomes))


@app.command()
def validate(files: FilesArgument, config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Check files with the daemon's own checks; nothing is dropped."""
    from inbox_daemon import checking

    with _errors():
        settings = _load(config, spool)
        failed = [path for path in files if not checking.check(path, settings, typer.echo)]
    if failed:
        raise typer.Exit(REFUSED)


@app.command()
def status(
    *, json: JsonOption = False, config: ConfigOption = None, spool: SpoolOption = None
) -> None:
    """Show the service's health; exit 1 when it is unhealthy or no daemon runs."""
    from inbox_daemon import display, documents, views
    from inbox_daemon.spool import Spool

    with _errors():
        place = Spool(_load(config, spool).spool)
    found = views.service_status(place)
    if found is None:
        typer.echo(f"no daemon has run on {place.root}; `inbox-daemon run` starts one", err=True)
        raise typer.Exit(REFUSED)
    if json:
        _write(documents.pretty(found))
    else:
        display.print_status(found)
    if not views.is_fresh(found) or found.status == "unhealthy":
        raise typer.Exit(REFUSED)


@app.command()
def jobs(
    *, json: JsonOption = False, config: ConfigOption = None, spool: SpoolOption = None
) -> None:
    """List all jobs: active, finished and refused."""
    from inbox_daemon import display, views
    from inbox_daemon.spool import Spool

    with _errors():
        found = views.list_jobs(Spool(_load(config, spool).spool))
    if json:
        _write(display.jobs_json(found))
    else:
        display.print_jobs(found)


@app.command()
def job(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A job's name or id.")],
    *,
    json: JsonOption = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Show one job, the newest of that name."""
    from inbox_daemon import display, documents, views
    from inbox_daemon.spool import Spool

    with _errors():
        place = Spool(_load(config, spool).spool)
    found = views.find_jobs(place, name)
    if not found:
        typer.echo(f"no job named {name!a} left a trace; `inbox-daemon jobs` lists all", err=True)
        raise typer.Exit(REFUSED)
    if json:
        _write(documents.pretty(found[-1].status))
    else:
        display.print_job(found[-1], place)


@app.command()
def schema(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A document's name.")] = None,
    every: Annotated[
        Path | None, typer.Option("--all", metavar="DIR", help="Write all schemas into DIR.")
    ] = None,
) -> None:
    """Print the JSON Schema of a document, or write all of them."""
    from inbox_daemon import setup

    with _errors():
        if every is not None:
            setup.write_schemas(every)
        else:
            _write(setup.schema_text(name))


@app.command()
def cancel(name: NameArgument, config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """End a job: what is finished is published, the rest is listed as cancelled."""
    _order(name, "cancel", config, spool)


@app.command()
def pause(name: NameOrAll = "ALL", config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Start no further request of a job, or of any; what is in flight finishes."""
    _order(name, "pause", config, spool)


@app.command()
def resume(name: NameOrAll = "ALL", config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Undo a pause of the same NAME."""
    _order(name, "resume", config, spool)


@app.command()
def verify(name: NameArgument, config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Prove that each request of a job has exactly one outcome, or list what is wrong."""
    from inbox_daemon import views
    from inbox_daemon.spool import Spool

    with _errors():
        proof = views.verify(Spool(_load(config, spool).spool), name)
    for line in proof.faults or [proof.summary]:
        typer.echo(line)
    if proof.faults:
        raise typer.Exit(REFUSED)


@app.command()
def compact(config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Shrink the ledger's file; the daemon must not be running."""
    from inbox_daemon import setup
    from inbox_daemon.spool import Spool

    with _errors():
        typer.echo(setup.compact(Spool(_load(config, spool).spool)))


# -- dead letters -------------------------------------------------------------------


@dead.command("list")
def dead_list(
    *,
    job: Annotated[str | None, typer.Option("--job", metavar="NAME")] = None,
    reason: ReasonOption = None,
    json: JsonOption = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """List dead letters, one a line with --json."""
    from inbox_daemon import display, views
    from inbox_daemon.spool import Spool

    with _errors():
        letters = views.dead_letters(Spool(_load(config, spool).spool), job, reason)
        if json:
            for letter in letters:
                _write(letter.model_dump_json().encode() + b"\n")
        else:
            display.print_letters(letters)


@dead.command("show")
def dead_show(
    name: Annotated[str, typer.Argument(metavar="JOB")],
    custom_id: Annotated[str, typer.Argument(metavar="CUSTOM_ID")],
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Show one dead letter in full, its request included, as JSON."""
    from inbox_daemon import views
    from inbox_daemon.spool import Spool

    with _errors():
        for letter in views.dead_letters(Spool(_load(config, spool).spool), name, None):
            if letter.custom_id == custom_id:
                _write(letter.model_dump_json(indent=2).encode() + b"\n")
                return
    typer.echo(f"there is no dead letter {custom_id!a} of {name!a}; see `dead list`", err=True)
    raise typer.Exit(REFUSED)


@dead.command("redrive")
def dead_redrive(
    name: Annotated[str | None, typer.Argument(metavar="JOB")] = None,
    *,
    reason: ReasonOption = None,
    every: AllOption = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Run dead letters again, as a new job for each job that they are of."""
    _order(_chosen(name, reason, every=every), "redrive", config, spool, reason)


@dead.command("purge")
def dead_purge(
    name: Annotated[str | None, typer.Argument(metavar="JOB")] = None,
    *,
    reason: ReasonOption = None,
    every: AllOption = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Remove dead letters for good."""
    _order(_chosen(name, reason, every=every), "purge", config, spool, reason)


def _chosen(name: str | None, reason: str | None, *, every: bool) -> str:
    if name is None and reason is None and not every:
        typer.echo("name a JOB, or give --reason REASON or --all", err=True)
        raise typer.Exit(USAGE)
    return name or "ALL"


def _order(
    name: str, order: str, config: Path | None, spool: Path | None, reason: str | None = None
) -> None:
    """Drop a control file; the daemon obeys it within two scans."""
    from inbox_daemon import submit as submitting
    from inbox_daemon.spool import Spool

    with _errors():
        settings = _load(config, spool)
        place = Spool(settings.spool)
        submitting.order(place, name, order, reason)
        wait_s = settings.intake.settle_s + 2 * settings.intake.scan_interval_s
        refusal = submitting.wait_obeyed(place, f"{name}.{order}", wait_s + 2)
    typer.echo(refusal or f"{order} {name}: done", err=refusal is not None)
    if refusal:
        raise typer.Exit(REFUSED)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def main() -> None:
    """The console script."""
    app()

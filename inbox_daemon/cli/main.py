"""The command line.

Purpose: arguments in, documents and words out, an exit status that a script can use.
Invariants: reading commands change nothing and need no daemon; `--json` writes one
JSON document to stdout and nothing else; errors go to stderr as one sentence.
Exit status: 0 done · 1 refused, unhealthy or not found · 2 wrong usage, configuration
or environment · 3 finished, but some requests ended as dead letters.
"""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from inbox_daemon import __version__
from inbox_daemon.cli import dead
from inbox_daemon.cli.options import (
    CONFIG,
    REFUSED,
    ConfigOption,
    FilesArgument,
    JsonOption,
    NameArgument,
    NameOrAll,
    SpoolOption,
    errors,
    load,
    order,
    place,
    remember,
    write,
)

app = typer.Typer(
    name="inbox-daemon",
    help="A durable batch queue for one desktop GPU, driven by nothing but files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"inbox-daemon {__version__}")
        raise typer.Exit


app.add_typer(dead.app, name="dead")


@app.callback()
def _main(
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """A durable batch queue for one desktop GPU, driven by nothing but files."""
    remember(config, spool)


@app.command()
def init(config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Make the spool's folders and a configuration.

    The configuration goes to --config, else into the spool, and has every key with its
    default in comments.  What exists is left as it is.
    """
    from inbox_daemon.cli import setup

    with errors():
        chosen = place(config, spool)
        for line in setup.init(chosen.config, chosen.spool):
            typer.echo(line)


@app.command()
def run(
    config: ConfigOption = None,
    spool: SpoolOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log details too.")] = False,
) -> None:
    """Run the daemon in the foreground."""
    from inbox_daemon.report import logs
    from inbox_daemon.service import start

    logs.set_up(verbose=verbose)
    with errors(misconfigured=CONFIG):
        settings = load(config, spool)
    with errors():
        start.serve(settings)


@app.command()
def submit(
    files: FilesArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answers.")] = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Drop files into inbox/, each whole.

    With --wait, shows the progress to the end; 3 when some requests are dead letters then.
    """
    from inbox_daemon.cli import display, progress, views
    from inbox_daemon.cli import submit as submitting
    from inbox_daemon.spool import Spool

    with errors():
        here = Spool(load(config, spool).spool)
        dropped = [submitting.drop(here, path) for path in files]
    for drop in dropped:
        typer.echo(f"dropped {drop.name}.jsonl into {here.inbox}", err=True)
    if not views.daemon_runs(here):
        words = f"no daemon runs on {here.root}, so the files wait; {views.how_to_start(here)}"
        typer.echo(words, err=True)
    if wait:
        outcomes = progress.follow(here, dropped)
        raise typer.Exit(max(display.print_outcome(here, o) for o in outcomes))


@app.command()
def validate(files: FilesArgument, config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Check files as the daemon would; send nothing."""
    from inbox_daemon.cli import submit

    with errors():
        settings = load(config, spool)
        failed = [path for path in files if not submit.check(path, settings, typer.echo)]
    if failed:
        raise typer.Exit(REFUSED)


@app.command()
def status(
    *, json: JsonOption = False, config: ConfigOption = None, spool: SpoolOption = None
) -> None:
    """Show the service's health.

    The exit status is 1 when it is unhealthy, or no daemon runs.
    """
    from inbox_daemon.cli import display, views
    from inbox_daemon.contract import job_documents
    from inbox_daemon.spool import Spool

    with errors():
        here = Spool(load(config, spool).spool)
    found = views.service_status(here)
    if found is None:
        typer.echo(f"no daemon has run on {here.root}; {views.how_to_start(here)}", err=True)
        raise typer.Exit(REFUSED)
    if json:
        write(job_documents.pretty(found))
    else:
        display.print_status(found)
    if not views.is_fresh(found) or found.status == "unhealthy":
        raise typer.Exit(REFUSED)


@app.command()
def jobs(
    *, json: JsonOption = False, config: ConfigOption = None, spool: SpoolOption = None
) -> None:
    """List all jobs: active, finished and refused."""
    from inbox_daemon.cli import display, views
    from inbox_daemon.spool import Spool

    with errors():
        found = views.list_jobs(Spool(load(config, spool).spool))
    if json:
        write(display.jobs_json(found))
    else:
        display.print_jobs(found)


@app.command()
def job(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A job's name or id.")],
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Bind an active job to this model."),
    ] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
    spool: SpoolOption = None,
) -> None:
    """Show one job, the newest of that name.

    With --model, binds it to a model that is served: what is not answered yet asks for that.
    """
    if model is not None:
        order(name, "rebind", config, spool, model=model)
        return
    from inbox_daemon.cli import display, views
    from inbox_daemon.contract import job_documents
    from inbox_daemon.spool import Spool

    with errors():
        here = Spool(load(config, spool).spool)
    found = views.find_jobs(here, name)
    if not found:
        typer.echo(f"no job named {name!a} left a trace; `inbox-daemon jobs` lists all", err=True)
        raise typer.Exit(REFUSED)
    if json:
        write(job_documents.pretty(found[-1].status))
    else:
        display.print_job(found[-1], here)


@app.command()
def schema(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A document's name.")] = None,
    every: Annotated[
        Path | None, typer.Option("--all", metavar="DIR", help="Write all schemas into DIR.")
    ] = None,
) -> None:
    """Print the JSON Schema of a document, or all."""
    from inbox_daemon.cli import setup

    with errors():
        if every is not None:
            setup.write_schemas(every)
        else:
            write(setup.schema_text(name))


@app.command()
def cancel(name: NameArgument, config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """End a job.

    What is finished is published, the rest is listed as cancelled.
    """
    order(name, "cancel", config, spool)


@app.command()
def pause(name: NameOrAll = "ALL", config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Send no further request of a job, or any.

    What is in flight finishes.
    """
    order(name, "pause", config, spool)


@app.command()
def resume(name: NameOrAll = "ALL", config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Undo a pause of the same NAME."""
    order(name, "resume", config, spool)


@app.command()
def verify(name: NameArgument, config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Prove a job, line by line.

    Each request has exactly one outcome, in order, with the recorded checksums; or what is
    wrong is listed, and the exit status is 1.
    """
    from inbox_daemon.cli import views
    from inbox_daemon.spool import Spool

    with errors():
        proof = views.verify(Spool(load(config, spool).spool), name)
    for line in proof.faults or [proof.summary]:
        typer.echo(line)
    if proof.faults:
        raise typer.Exit(REFUSED)


@app.command()
def compact(config: ConfigOption = None, spool: SpoolOption = None) -> None:
    """Shrink the ledger's file, without a daemon."""
    from inbox_daemon.cli import setup
    from inbox_daemon.spool import Spool

    with errors():
        typer.echo(setup.compact(Spool(load(config, spool).spool)))


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()

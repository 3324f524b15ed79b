"""The progress of submitted jobs on a terminal, to their end.

Purpose: what `submit --wait` shows.
Invariants: the wait only reads.
"""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from inbox_daemon.cli import submit, views
from inbox_daemon.cli.display import detail_of
from inbox_daemon.cli.submit import Dropped
from inbox_daemon.contract.documents import JobStatus, Refusal
from inbox_daemon.contract.health_documents import ServiceStatus
from inbox_daemon.spool import Spool

POLL_S = 0.25


def follow(spool: Spool, dropped: list[Dropped]) -> list[JobStatus | Refusal]:
    """Show a bar for each job until all have ended; return how they did."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
    )
    # By the whole drop: two files of one name may have been taken one after the other.
    ended: dict[Dropped, JobStatus | Refusal] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {d: bars.add_task(d.name, total=d.lines or None, detail="") for d in dropped}
        while len(ended) < len(tasks):
            status = views.service_status(spool)
            for drop, task in tasks.items():
                if drop in ended:
                    continue
                outcome = submit.outcome(spool, drop)
                if outcome is None:
                    _show_progress(drop, status, bars, task)
                    continue
                ended[drop] = outcome
                if isinstance(outcome, JobStatus):
                    total, failed = outcome.request_counts.total, outcome.request_counts.failed
                    detail = outcome.status + (f", {failed:,} not answered" if failed else "")
                    bars.update(task, completed=total, total=total, detail=detail)
                else:
                    bars.update(task, detail="refused")
            if len(ended) < len(tasks):
                time.sleep(POLL_S)
    return [ended[drop] for drop in dropped]


def _show_progress(
    drop: Dropped, status: ServiceStatus | None, bars: Progress, task: TaskID
) -> None:
    if status is None or not views.is_fresh(status):
        bars.update(task, detail="no daemon runs here; start `inbox-daemon run`")
        return
    job = next((job for job in status.jobs if job.name == drop.name), None)
    if job is None:
        bars.update(task, detail="waiting to be taken")
        return
    done = job.completed + job.failed
    bars.update(task, completed=done, total=job.requests, detail=detail_of(job, status))

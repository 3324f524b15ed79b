"""What people see on a terminal.

Purpose: tables, the progress bar, and the words around them.
Invariants: nothing here decides; a text from outside is printed without markup and
without control characters.
"""

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inbox_daemon.cli import views
from inbox_daemon.cli.views import JobView
from inbox_daemon.contract.documents import JobStatus, Refusal
from inbox_daemon.contract.health_documents import ActiveJob, GpuStatus, ServiceStatus
from inbox_daemon.contract.job_documents import counted
from inbox_daemon.contract.records import DeadLetter
from inbox_daemon.spool import Spool

_COLOURS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}


def plain(text: object) -> Text:
    """Text from outside, safe to print: no markup, no control characters."""
    return Text(printable(text))


def printable(text: object) -> str:
    """Return text from outside without control characters."""
    return "".join(c if c.isprintable() else "�" for c in str(text))


# -- submit --wait ------------------------------------------------------------------


def print_outcome(spool: Spool, outcome: JobStatus | Refusal) -> int:
    """Say how a job ended and where its files lie; return the exit status."""
    console = Console(stderr=True, highlight=False)
    if isinstance(outcome, Refusal):
        faults = counted(outcome.fault_count, "fault")
        console.print(plain(f"{outcome.name}: the file was refused for {faults}"))
        for fault in outcome.faults[:10]:
            where = f"line {fault.line}: " if fault.line else ""
            console.print(plain(f"  {where}{fault.code}: {fault.message}"))
        console.print(plain(f"the file lies in {spool.rejected / str(outcome.file)}"))
        return 1
    console.print(plain(f"{outcome.name}: {outcome.message}"))
    console.print(plain(f"the answers lie in {_folder(spool, outcome)}"))
    return 3 if outcome.request_counts.failed else 0


def _folder(spool: Spool, status: JobStatus) -> Path:
    return spool.outbox / (spool.published_as(status.id, status.name) or status.name)


# -- status -------------------------------------------------------------------------


def print_status(status: ServiceStatus) -> None:
    """The health document as a short report."""
    console = Console(highlight=False)
    fresh = views.is_fresh(status)
    word = status.status if fresh else "down"
    head = Text.assemble((word, _COLOURS.get(word, "red")), f"  pid {status.pid}")
    age_s = time.time() - status.written_at
    head.append(f", written {abs(age_s):.0f} s {'ago' if age_s >= 0 else 'in the future'}")
    console.print(head)
    if not fresh:
        console.print(plain("  the document is stale: the daemon is not running"))
    for reason in status.reasons:
        console.print(plain(f"  {reason}"))
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(status):
        table.add_row(name, plain(value))
    console.print(table)


def _rows(status: ServiceStatus) -> list[tuple[str, str]]:
    engine, worker, queue = status.engine, status.worker, status.queue
    jobs = counted(queue.active_jobs, "job")
    requests = counted(queue.total_queued_requests, "request")
    rows = [
        ("worker", f"{worker.state}, {worker.in_flight} in flight of {worker.window}"),
        ("engine", _engine_words(status)),
        ("gpu", _gpu_words(status.gpu)),
        ("queue", f"{jobs}, {requests} open, room for {counted(queue.queue_available, 'job')}"),
    ]
    for job in status.jobs:
        done = f"{job.completed + job.failed:,} of {counted(job.requests, 'request')}"
        words = f"{job.name}: {done}; {detail_of(job, status)}"
        energy = f"; {_energy_words(job)}" if job.energy_j is not None else ""
        rows.append(("job", words + energy))
    rows += [("waiting", f"{drop.name}: {drop.why}") for drop in status.waiting]
    if status.last_finished:
        rows.append(("finished", f"{status.last_finished.name}: {status.last_finished.message}"))
    if status.last_rejected:
        rows.append(("rejected", f"{status.last_rejected.name}: {status.last_rejected.message}"))
    if engine.last_error:
        rows.append(("error", engine.last_error))
        rows += [("", line) for line in engine.last_lines[-5:]]
    return rows


def _engine_words(status: ServiceStatus) -> str:
    engine = status.engine
    words = [engine.state, ", ".join(engine.models), engine.version or ""]
    if engine.running is not None:
        words.append(f"{engine.running} running, {engine.waiting} waiting")
    if engine.kv_cache_percent is not None:
        words.append(f"KV cache {engine.kv_cache_percent:.0f} %")
    if engine.restarts:
        words.append(counted(engine.restarts, "restart"))
    return ", ".join(word for word in words if word)


def _gpu_words(gpu: GpuStatus | None) -> str:
    if gpu is None:
        return "none"
    words = [gpu.name]
    if gpu.memory_percent is not None:
        words.append(f"memory {gpu.memory_percent:.0f} %")
    if gpu.temperature_c is not None:
        words.append(f"{gpu.temperature_c} °C")
    if gpu.power_w is not None:
        limit = f" of {gpu.power_limit_w:.0f} W" if gpu.power_limit_w else " W"
        words.append(f"{gpu.power_w:.0f}{limit}")
    words += [f"slowed by {reason}" for reason in gpu.throttle_reasons]
    return ", ".join(words)


def detail_of(job: ActiveJob, status: ServiceStatus) -> str:
    """Return what an active job does now, in a few words."""
    if job.reason:
        words = printable(job.reason)
    elif job.state == "queued":
        words = f"queued; engine {status.engine.state}"
    elif job.requests_per_s:
        words = f"{job.requests_per_s:.1f}/s, {_span(job.seconds_left)} left"
    else:
        words = printable(status.worker.reason or "running")
    return f"{words}, {job.failed} dead" if job.failed else words


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _energy_words(job: ActiveJob | JobStatus) -> str:
    words, each = f"{job.energy_j:,.0f} J", job.energy_j_per_1000_output_tokens
    return words if each is None else f"{words}, {each:,.1f} J for 1,000 output tokens"


# -- jobs ---------------------------------------------------------------------------


def jobs_json(jobs: list[JobView]) -> bytes:
    """A JSON list of `{"state", "status"}`, the status as in schemas/job-status."""
    rows = [
        {"state": view.state.value, "status": view.status.model_dump(mode="json")} for view in jobs
    ]
    return orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def print_jobs(jobs: list[JobView]) -> None:
    """One row a job."""
    if not jobs:
        Console().print("no jobs yet; drop a file into inbox/ or use `inbox-daemon submit`")
        return
    table = Table("name", "status", "requests", "answered", "dead", "created", "where")
    for view in jobs:
        status, counts = view.status, view.status.request_counts
        figures = [str(n or "") for n in (counts.total, counts.completed, counts.failed)]
        created = _moment(status.created_at)
        table.add_row(plain(status.name), status.status, *figures, created, f"{view.state}/")
    Console().print(table)


def print_job(view: JobView, spool: Spool) -> None:
    """One job in full."""
    status, console = view.status, Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    counts = status.request_counts
    rows = [
        ("name", status.name),
        ("id", status.id),
        ("status", f"{status.status}: {status.message}"),
        ("requests", f"{counts.total}, {counts.completed} answered, {counts.failed} dead"),
        ("created", _moment(status.created_at)),
        ("where", f"{view.state}/"),
    ]
    if status.model:
        rows.append(("model", ", then ".join([*status.earlier_models, status.model])))
    if waits := views.why_waits(spool, status.id):
        rows.append(("waits", waits))
    if status.energy_j is not None:
        rows.append(("energy", _energy_words(status)))
    if status.output_file_id:
        rows.append(("folder", str(_folder(spool, status))))
    faults = status.errors.data if status.errors else []
    rows += [("fault", f"line {f.line or '-'}: {f.code}: {f.message}") for f in faults]
    for name, value in rows:
        table.add_row(name, plain(value))
    console.print(table)


def print_letters(letters: Iterable[DeadLetter]) -> None:
    """One row a dead letter."""
    table = Table("job", "line", "custom_id", "reason", "status", "retries", "message")
    for letter in letters:
        table.add_row(
            plain(letter.job),
            str(letter.line),
            plain(letter.custom_id or ""),
            letter.reason.value,
            str(letter.http_status or ""),
            str(letter.retry_count),
            plain(letter.message[:200]),
        )
    if table.row_count:
        Console().print(table)
    else:
        Console().print("no dead letters")


def _moment(seconds: int | None) -> str:
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")

"""The service's health document, outbox/status.json, for operators and the web app.

Purpose: one definition of what the daemon says of itself.
Invariants: as in documents.py; every figure that may be unknown may be null.
Units: as in documents.py.
"""

from typing import Literal

from pydantic import Field

from inbox_daemon.contract.documents import Document, Joules, Percent, Tally
from inbox_daemon.contract.hindrances import HindranceCode

Health = Literal["healthy", "degraded", "unhealthy"]


GovernorState = Literal["open", "warn", "shrink", "closed"]


WorkerState = Literal["idle", "processing", "paused", "error"]


class GpuStatus(Document):
    """The card, as NVML sees it; a sensor that the card lacks is null."""

    name: str
    memory_used_bytes: Tally | None = None
    memory_total_bytes: Tally | None = None
    memory_percent: Percent | None = None
    others_percent: Percent | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    utilization_percent: Percent | None = None
    throttle_reasons: list[str] = Field(default=[])
    energy_j: float | None = None
    healthy: bool
    problem: str | None = None


class WorkerStatus(Document):
    """What the runner does; `age_seconds` is the time since its last result.

    `governor` says what the card allows: all (`open`), all but with a reason to tell
    (`warn`), part of the window (`shrink`), nothing (`closed`); `reasons` has the words.
    """

    state: WorkerState
    code: HindranceCode | None = None
    reason: str | None = None
    current_job: str | None = None
    age_seconds: float | None = None
    in_flight: Tally = 0
    in_flight_bytes: Tally = 0
    window: Tally = 0
    chunk_size: Tally = 0
    governor: GovernorState = "open"
    open_retries: Tally = 0


class EngineStatus(Document):
    """The engine's life and its own figures."""

    state: Literal["stopped", "starting", "ready", "backoff"]
    models: list[str] = Field(default=[])
    version: str | None = None
    restarts: Tally = 0
    deaths: Tally = 0
    running: Tally | None = None
    waiting: Tally | None = None
    kv_cache_percent: Percent | None = None
    state_seconds: float
    retry_in_s: float | None = None
    last_error: str | None = None
    last_lines: list[str] = Field(default=[])


class QueueStatus(Document):
    """How full the queue is; `queue_available` is how many jobs it would still take."""

    active_jobs: Tally
    queue_available: Tally
    total_queued_requests: Tally


class LimitsStatus(Document):
    """The limits in force, so that a sender can size its files."""

    max_file_bytes: int
    max_line_bytes: int
    max_json_depth: int
    max_requests_per_job: int
    max_queue_depth: int
    max_total_queued_requests: int


class ActiveJob(Document):
    """A job that is queued or running.

    `code` and `reason` say why it waits for the disk or for its model, else they are null.
    """

    id: str
    name: str
    state: Literal["queued", "running"]
    priority: Literal["high", "normal", "low"] = "normal"
    model: str | None = None
    paused: bool = False
    code: HindranceCode | None = None
    reason: str | None = None
    requests: Tally
    completed: Tally
    failed: Tally
    retrying: Tally = 0
    input_tokens: Tally = 0
    output_tokens: Tally = 0
    requests_per_s: float | None = None
    output_tokens_per_s: float | None = None
    energy_j: Joules | None = None
    energy_j_per_1000_output_tokens: Joules | None = None
    seconds_left: float | None = None
    created_at: int
    in_progress_at: int | None = None


class RecentJob(Document):
    """A job that was finished, rejected or re-delivered not long ago."""

    id: str
    name: str
    status: str
    at: int
    requests: Tally | None = None
    completed: Tally | None = None
    failed: Tally | None = None
    message: str


class WaitingDrop(Document):
    """A file that lies in inbox/ and why it was not taken yet.

    `name` is escaped: it holds printable ASCII only.
    """

    name: str
    why: str
    since_s: float


class DiskStatus(Document):
    """The free space of the spool's filesystem."""

    free_bytes: Tally
    free_inodes: Tally
    min_free_bytes: Tally
    min_free_inodes: Tally


class Versions(Document):
    """What is running."""

    inbox_daemon: str
    python: str


class ServiceStatus(Document):
    """`outbox/status.json`: the service's health, for the web app.

    `seq` grows by one with each writing.  A reader that finds the document older
    than `stale_after_s` must take the service for down.
    """

    version: Literal[1] = 1
    seq: Tally
    written_at: float
    stale_after_s: float
    started_at: float
    pid: int
    status: Health
    reasons: list[str]
    gpu: GpuStatus | None
    worker: WorkerStatus
    engine: EngineStatus
    queue: QueueStatus
    disk: DiskStatus | None = None
    dead_letters: Tally = 0
    quarantined: list[str] = Field(default=[])
    limits: LimitsStatus
    jobs: list[ActiveJob]
    waiting: list[WaitingDrop]
    recent: list[RecentJob]
    last_finished: RecentJob | None
    last_rejected: RecentJob | None
    versions: Versions

"""Every document that crosses the border of the spool, as a pydantic model.

Purpose: one definition of each document, from which `schemas/` is generated and
against which the daemon's own output is built.
Invariants: pure data; a reader must accept fields that it does not know, because
later releases add some; no field changes its meaning without a new version number.
Units: times ending in `_at` are seconds since 1970 (UTC), `_s` seconds, `_bytes`
bytes, `_c` degrees Celsius, `_w` watts, `_j` joules, `_percent` 0 to 100.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from inbox_daemon.states import BatchStatus

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}\.jsonl$"
URLS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
)
MAX_CUSTOM_ID = 512
# Ten years: further off, the end of a job is no number that a calendar has.
MAX_EXPIRES_IN_S = 315_360_000

Url = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Percent = Annotated[float, Field(ge=0, le=100)]
Tally = Annotated[int, Field(ge=0)]
Joules = Annotated[float, Field(ge=0)]


class Document(BaseModel):
    """The base of all documents: frozen, and tolerant of fields it does not know."""

    model_config = ConfigDict(frozen=True, use_enum_values=True)


# -- what a sender writes -----------------------------------------------------------


class RequestLine(Document):
    """One line of a job: OpenAI's batch input line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    custom_id: Annotated[str, Field(min_length=1, max_length=MAX_CUSTOM_ID)]
    method: Literal["POST"] = "POST"
    url: Url
    body: dict[str, Any]


class ReadyMarker(Document):
    """`NAME.jsonl.ready`: the sender's own word on what the complete file is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: Tally
    sha256: Sha256


class JobOptions(Document):
    """`NAME.options.json`: how a job is to be run; dropped before NAME.jsonl.

    `metadata` is echoed in the job's status; its bounds are those of OpenAI's Batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    expires_in_s: Annotated[float, Field(gt=0, le=MAX_EXPIRES_IN_S)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None


class ControlOptions(Document):
    """The content of a control file, which may also be empty.

    `reason` narrows a redrive or a purge to the dead letters of one reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str | None = None


# -- what a sender reads about its job ----------------------------------------------


class Fault(Document):
    """One thing that is wrong with a job; the shape of OpenAI's batch error."""

    code: str
    message: str
    param: str | None = None
    line: Annotated[int, Field(ge=1)] | None = None


class FaultList(Document):
    """The faults of a job; the shape of OpenAI's batch error list."""

    object: Literal["list"] = "list"
    data: list[Fault]


class Reason(Document):
    """`rejected/NAME.reason.json`: why a job was refused, for its sender.

    `retryable` is true when the same bytes may be accepted later.  `fault_count`
    counts all faults found; `faults` lists the first 100.
    """

    version: Literal[1] = 1
    id: str
    name: str
    rejected_at: float
    retryable: bool
    code: str
    message: str
    fault_count: Annotated[int, Field(ge=1)]
    faults: list[Fault]
    sha256: Sha256 | None = None
    bytes: Tally | None = None
    file: str | None = None


class OutputResponse(Document):
    """The engine's answer inside an output line; `body` is passed on untouched."""

    status_code: int
    request_id: str
    body: Any


class OutputError(Document):
    """Why a request has no answer, or why its answer counts as none."""

    code: str
    message: str


class OutputLine(Document):
    """One line of output.jsonl or errors.jsonl: OpenAI's batch output line.

    `custom_id` is null only where the input line could not be read.
    """

    id: str
    custom_id: str | None
    response: OutputResponse | None
    error: OutputError | None


class RequestCounts(Document):
    """How many requests a job has and how they ended."""

    total: Tally
    completed: Tally
    failed: Tally


class Usage(Document):
    """Tokens, summed over the answers that reported them."""

    input_tokens: Tally = 0
    output_tokens: Tally = 0
    total_tokens: Tally = 0


class JobStatus(Document):
    """`outbox/NAME/status.json`: OpenAI's Batch object, and what we add to it.

    The file ids are names of files in the same folder.  `name` is the job's name,
    `retry_file` the file that runs the dead letters again when it is dropped,
    `message` a sentence for the sender, `redrive_of` the id of the job whose dead
    letters this one runs again, `checksums` the sha256 of each other file beside it.
    `energy_j` is what the card used while it ran, null where no sensor tells.
    """

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str | None = None
    model: str | None = None
    errors: FaultList | None = None
    input_file_id: str
    completion_window: str = "none"
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: Usage | None = None
    metadata: dict[str, str] | None = None

    version: Literal[1] = 1
    name: str
    sha256: Sha256 | None = None
    bytes: Tally | None = None
    retry_file: str | None = None
    retryable: bool | None = None
    redelivered_at: int | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    redrive_of: str | None = None
    checksums: dict[str, Sha256] | None = None
    energy_j: Joules | None = None
    energy_j_per_1000_output_tokens: Joules | None = None
    message: str


# -- what an operator, or the web app's health check, reads -------------------------


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
    throttle_reasons: list[str] = []
    energy_j: float | None = None
    healthy: bool
    problem: str | None = None


class WorkerStatus(Document):
    """What the runner does; `age_seconds` is the time since its last result.

    `governor` says what the card allows: all (`open`), all but with a reason to tell
    (`warn`), part of the window (`shrink`), nothing (`closed`); `reasons` has the words.
    """

    state: WorkerState
    reason: str | None = None
    current_job: str | None = None
    age_seconds: float | None = None
    in_flight: Tally = 0
    window: Tally = 0
    chunk_size: Tally = 0
    governor: GovernorState = "open"
    open_retries: Tally = 0


class EngineStatus(Document):
    """The engine's life and its own figures."""

    state: Literal["stopped", "starting", "ready", "backoff"]
    models: list[str] = []
    version: str | None = None
    restarts: Tally = 0
    deaths: Tally = 0
    running: Tally | None = None
    waiting: Tally | None = None
    kv_cache_percent: Percent | None = None
    state_seconds: float
    retry_in_s: float | None = None
    last_error: str | None = None
    last_lines: list[str] = []


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
    """A job that is queued or running."""

    id: str
    name: str
    state: Literal["queued", "running"]
    priority: Literal["high", "normal", "low"] = "normal"
    paused: bool = False
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
    quarantined: list[str] = []
    limits: LimitsStatus
    jobs: list[ActiveJob]
    waiting: list[WaitingDrop]
    recent: list[RecentJob]
    last_finished: RecentJob | None
    last_rejected: RecentJob | None
    versions: Versions


DOCUMENTS: dict[str, type[Document]] = {
    "request": RequestLine,
    "ready": ReadyMarker,
    "options": JobOptions,
    "control": ControlOptions,
    "output": OutputLine,
    "job-status": JobStatus,
    "reason": Reason,
    "status": ServiceStatus,
}


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one document, by its name in DOCUMENTS.

    Raises KeyError: there is no document of that name.
    """
    schema = DOCUMENTS[name].model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

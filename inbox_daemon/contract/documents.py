"""Every document that crosses the border of the spool, as a pydantic model.

Purpose: one definition of each document, from which `schemas/` is generated and
against which the daemon's own output is built.
Invariants: pure data; a reader must accept fields that it does not know, because
later releases add some; no field changes its meaning without a new version number.
Units: times ending in `_at` are seconds since 1970 (UTC), `_s` seconds, `_bytes`
bytes, `_c` degrees Celsius, `_w` watts, `_j` joules, `_percent` 0 to 100.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from inbox_daemon.contract.states import BatchStatus

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
URLS: tuple[str, ...] = get_args(Url)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Percent = Annotated[float, Field(ge=0, le=100)]
Tally = Annotated[int, Field(ge=0)]
Joules = Annotated[float, Field(ge=0)]


class Document(BaseModel):
    """The base of all documents: frozen, and tolerant of fields it does not know."""

    # Built when first used: a command uses few of all documents, and building takes its time.
    model_config = ConfigDict(frozen=True, use_enum_values=True, defer_build=True)


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

    `reason` narrows a redrive or a purge to the dead letters of one reason; `model` is the
    one that a rebind binds the job to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str | None = None
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None


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


class Refusal(Document):
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
    `model` is the one that its requests ask for, `earlier_models` those that some of them
    may have been answered by before the owner bound the job to another.
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
    earlier_models: list[str] = Field(default=[])
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

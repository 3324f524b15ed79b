"""What the ledger keeps, as pure records.

Purpose: the persisted shape of jobs, progress, retries and dead letters, apart from
anything that lives in memory only.
Invariants: pure data; a persisted record carries the ledger's version through the
ledger's `version` key, so a change of shape needs a new one and an upgrade step.
Units: `_at` seconds since 1970, `offset` and `length` bytes of results.part, `line`
the 1-based number of a line in the input file.
"""

import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from inbox_daemon.contract.documents import Fault, Usage
from inbox_daemon.contract.states import BatchStatus, Outcome, Priority

LEDGER_VERSION = 4
_ENTRY = struct.Struct(">QIBB")


class DeadReason(StrEnum):
    """Why a request became a dead letter."""

    INVALID_REQUEST = "invalid_request"
    MAX_ATTEMPTS = "max_attempts"
    TIMEOUT = "timeout"
    POISON = "poison"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Record(BaseModel):
    """The base of all persisted records."""

    # Built when first used: a command uses few of all records, and building takes its time.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class JobRecord(Record):
    """One accepted job; the fields from `in_progress_at` on fill in as it goes.

    `name` is the job's name, the dropped file's without `.jsonl`; `status` is None
    until the job is finished; `ending` is set once the rest of it is not to run any
    more; `outbox` names the folder that holds its results; `lines_sha256` proves
    which line has which custom_id (request/line.py: LinesDigest).  `model` is the one that
    it is bound to, whatever its lines name, None while none is known; `earlier_models` are
    those that it was bound to before its owner bound it to another.  `arrived_at` is when its
    file came into inbox/, where it may have waited for room.
    """

    id: str
    name: str
    sha256: str
    bytes: int
    requests: int
    endpoint: str | None
    model: str | None
    earlier_models: list[str] = []
    created_at: float
    arrived_at: float | None = None
    lines_sha256: str = ""
    invalid: int = 0
    priority: Priority = Priority.NORMAL
    expires_at: float | None = None
    max_attempts: int | None = None
    redrive_of: str | None = None
    ending: DeadReason | None = None
    ending_at: float | None = None
    metadata: dict[str, str] | None = None
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    finished_at: float | None = None
    status: BatchStatus | None = None
    completed: int = 0
    failed: int = 0
    usage: Usage = Usage()
    energy_j: float | None = None
    outbox: str | None = None
    checksums: dict[str, str] | None = None


class EndedKind(StrEnum):
    """How a job ended; the status shows the same words."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    DAMAGED = "damaged"


class Ended(Record):
    """The durable fact that a job is over.

    `at` is in seconds since 1970; the counts are None where nothing is known of them, as
    of a file that was refused; `message` is a sentence for its sender.
    """

    id: str
    name: str
    kind: EndedKind
    at: float
    requests: int | None = None
    completed: int | None = None
    failed: int | None = None
    message: str


class Progress(Record):
    """How far a running job is: committed together with the lines it counts.

    `committed` is the length of results.part that counts, `admitted` the highest
    line number that may have been started, `recoveries` how often the daemon
    restarted while the job ran, `energy_j` what the card used for it, None where
    no sensor tells.
    """

    committed: int = 0
    admitted: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    recoveries: int = 0
    energy_j: float | None = None

    @property
    def ended(self) -> int:
        """How many requests have their outcome."""
        return self.completed + self.failed


class RetryRecord(Record):
    """The failed attempts of a request that is still open."""

    failures: int
    reason: DeadReason
    code: str
    message: str
    http_status: int | None
    first_at: float
    last_at: float


class DeadLetter(Record):
    """A request that was set aside: why, what was tried, and the request itself.

    `retry_count` counts the attempts after the first; `request` is the input line
    parsed, or its text where it is no JSON; `redrivable` is False for a line that never
    was a valid request.
    """

    job_id: str
    job: str
    custom_id: str | None
    line: int
    reason: DeadReason
    code: str
    message: str
    http_status: int | None
    retry_count: int
    first_at: float
    last_at: float
    redrivable: bool = True
    request: Any


class Tokens(NamedTuple):
    """What one answer says it took: tokens read and tokens generated."""

    input: int
    output: int


class OutcomeAt(NamedTuple):
    """Where a line's outcome lies in results.part."""

    offset: int
    length: int
    outcome: Outcome
    retryable: bool

    def pack(self) -> bytes:
        """The stored form: 14 bytes."""
        dead = self.outcome is Outcome.DEAD
        packed: bytes = _ENTRY.pack(self.offset, self.length, dead, self.retryable)
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> "OutcomeAt":
        """Read the stored form."""
        offset, length, dead, retryable = _ENTRY.unpack(data)
        return cls(offset, length, Outcome.DEAD if dead else Outcome.RESULT, bool(retryable))


@dataclass(slots=True)
class Checkpoint:
    """What one transaction makes count for one job.

    `entries` are the lines that got their outcome; `retries` holds the newest record
    of each open line that failed; `progress` is the state after all of it.
    """

    job_id: str
    progress: Progress
    entries: list[tuple[int, OutcomeAt]] = field(default_factory=list)
    retries: dict[int, RetryRecord] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A line that was accepted as a dead letter, under on_invalid_line."""

    line: int
    fault: Fault

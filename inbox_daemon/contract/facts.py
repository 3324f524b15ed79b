"""What each part says of itself, for the status.

Purpose: the values that the loops hand to the status document, so that no part knows the
one that writes it, and that one knows no loop.
Invariants: pure data; a moment's figures, never changed afterwards.
Units: as in documents.py; moments ending in `_at` are seconds of the monotonic clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from inbox_daemon.contract.health_documents import GovernorState, RecentJob, WaitingDrop
from inbox_daemon.contract.hindrances import Hindrance
from inbox_daemon.contract.records import JobRecord, Progress


@dataclass(frozen=True, slots=True)
class JobFacts:
    """One active job; `progress` is what is committed, empty while it is queued."""

    record: JobRecord
    paused: bool
    progress: Progress
    running: bool
    retrying: int


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """The active jobs, oldest first, and the recent ones, newest first."""

    active: int = 0
    open_requests: int = 0
    jobs: tuple[JobFacts, ...] = ()
    recent: tuple[RecentJob, ...] = ()
    last_finished: RecentJob | None = None
    last_rejected: RecentJob | None = None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The runner: why it sends nothing, if so, and what it has seen.

    `problem` is a trouble with the server that lasts beyond the pauses it causes; `waiting`
    says of each job that waits for the disk or its model why it does; `bisecting` is true while the
    suspects of an engine's death run in groups; `deaths` counts the engine's deaths with
    requests in flight.
    """

    hindrance: Hindrance | None = None
    problem: str | None = None
    waiting: Mapping[str, Hindrance] = field(default_factory=dict)
    bisecting: bool = False
    in_flight: int = 0
    in_flight_bytes: int = 0
    deaths: int = 0
    last_outcome_at: float = 0.0


@dataclass(frozen=True, slots=True)
class IntakeFacts:
    """The intake: what waits in inbox/ and what is wrong with the folders."""

    waiting: tuple[WaitingDrop, ...] = ()
    problem: str | None = None
    hints_missing: str | None = None


@dataclass(frozen=True, slots=True)
class GovernorFacts:
    """What the card allows: requests in flight, requests a chunk, and why not more."""

    window: int = 0
    chunk_size: int = 0
    state: GovernorState = "open"
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """The spool's filesystem: what is free, and what lies in quarantine/, by name.

    `troubles` says of each entry of the spool that cannot be dealt with why, in words.
    """

    free_bytes: int
    free_inodes: int
    quarantined: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()

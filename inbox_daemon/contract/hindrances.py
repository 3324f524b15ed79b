"""Why nothing is sent: the one list of reasons to stand still.

Purpose: the value that the runner acts on and the status shows, so that the two cannot
differ.
Invariants: pure; each reason has a code that never changes and a sentence for the
operator; a full window is no hindrance, because requests are running.
"""

from dataclasses import dataclass
from enum import StrEnum


class HindranceCode(StrEnum):
    """The reasons; docs/OPERATING.md lists each with what to do."""

    DRAINING = "draining"
    DISK_SHORT = "disk_short"
    ENGINE_BACKOFF = "engine_backoff"
    ENGINE_STOPPED = "engine_stopped"
    ENGINE_STARTING = "engine_starting"
    ENGINE_LOST = "engine_lost"
    ENGINE_UNPROVEN = "engine_unproven"
    SERVER_REFUSES = "server_refuses"
    ENGINE_DOUBTED = "engine_doubted"
    GOVERNOR_CLOSED = "governor_closed"
    ALL_PAUSED = "all_paused"
    JOBS_PAUSED = "jobs_paused"
    JOBS_HELD = "jobs_held"
    MODEL_NOT_SERVED = "model_not_served"
    BISECTION = "bisection"


@dataclass(frozen=True, slots=True)
class Hindrance:
    """One reason, with its sentence."""

    code: HindranceCode
    words: str

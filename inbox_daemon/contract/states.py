"""The life of a job: its states, and the one table of the moves between them.

Purpose: a pure state machine that spool, runner and status consult.
Invariants: a state is a directory of the spool, so it survives any crash; a move
that is not in the table raises and changes nothing.  The status words on the wire
are those of OpenAI's Batch object.
Source: https://platform.openai.com/docs/api-reference/batch/object
"""

from enum import StrEnum

from inbox_daemon.contract.errors import IllegalTransitionError


class JobState(StrEnum):
    """The directory of the spool in which a job lies."""

    CLAIMED = "claimed"
    QUEUED = "queued"
    RUNNING = "running"
    PUBLISHED = "outbox"
    REJECTED = "rejected"
    QUARANTINED = "quarantine"


class Priority(StrEnum):
    """A job's priority: the folder of inbox/ into which it was dropped."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def level(self) -> int:
        """0 is first."""
        return list(Priority).index(self)


class Event(StrEnum):
    """What moves a job."""

    ADMIT = "admit"
    REJECT = "reject"
    START = "start"
    PUBLISH = "publish"
    QUARANTINE = "quarantine"


class BatchStatus(StrEnum):
    """The status words of OpenAI's Batch object."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How a request ended: exactly one of these for each input line."""

    RESULT = "result"
    DEAD = "dead"


TRANSITIONS: dict[tuple[JobState, Event], JobState] = {
    (JobState.CLAIMED, Event.ADMIT): JobState.QUEUED,
    (JobState.CLAIMED, Event.REJECT): JobState.REJECTED,
    (JobState.QUEUED, Event.START): JobState.RUNNING,
    (JobState.RUNNING, Event.PUBLISH): JobState.PUBLISHED,
    (JobState.CLAIMED, Event.QUARANTINE): JobState.QUARANTINED,
    (JobState.QUEUED, Event.QUARANTINE): JobState.QUARANTINED,
    (JobState.RUNNING, Event.QUARANTINE): JobState.QUARANTINED,
}


def after(state: JobState, event: Event) -> JobState:
    """Return the state that `event` leads to.

    Raises IllegalTransitionError: the table does not join them.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        msg = f"a job in {state}/ cannot {event}; this is a bug, please report it"
        raise IllegalTransitionError("illegal_transition", msg) from None

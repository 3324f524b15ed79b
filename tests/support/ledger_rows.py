"""What the tests of the ledger share."""

from collections.abc import Callable

from builders import JOB_ID
from inbox_daemon.contract.records import (
    DeadReason,
    OutcomeAt,
    RetryRecord,
)
from inbox_daemon.contract.states import Outcome
from inbox_daemon.ledger import Ledger

Open = Callable[[], Ledger]


def entry(line: int) -> tuple[int, OutcomeAt]:
    """The outcome of a line, at a place of its own."""
    return line, OutcomeAt(line * 10, 10, Outcome.RESULT, retryable=False)


OTHER = JOB_ID[:-1] + "1"


RETRY = RetryRecord(
    failures=1,
    reason=DeadReason.MAX_ATTEMPTS,
    code="http_500",
    message="no",
    http_status=500,
    first_at=1.0,
    last_at=2.0,
)

"""Records: what the ledger keeps is read back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import dead_letter, job_record
from inbox_daemon.contract.records import DeadReason, JobRecord, OutcomeAt, Progress, RetryRecord
from inbox_daemon.contract.states import Outcome


@given(
    st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.sampled_from(Outcome), st.booleans()
)
def test_an_entry_is_fourteen_bytes(
    offset: int,
    length: int,
    outcome: Outcome,
    retryable: bool,  # noqa: FBT001 - either way
) -> None:
    """Position, length and outcome of a line survive being packed, in as many bytes as promised."""
    entry = OutcomeAt(offset, length, outcome, retryable)
    assert len(entry.pack()) == 14
    assert OutcomeAt.unpack(entry.pack()) == entry


def test_records_are_read_back_from_json() -> None:
    """Each kind of record survives the form in which it is stored."""
    records = [
        job_record(metadata={"k": "v"}, priority="low", ending=DeadReason.CANCELLED),
        Progress(committed=2**40, completed=3),
        dead_letter(request={"a": [1, None, "я"]}),
        RetryRecord(
            failures=1,
            reason=DeadReason.TIMEOUT,
            code="timeout",
            message="m",
            http_status=None,
            first_at=1.5,
            last_at=2.5,
        ),
    ]
    for record in records:
        assert type(record).model_validate_json(record.model_dump_json()) == record


def test_a_record_of_another_release_is_not_misread() -> None:
    """A field that this release does not know is an error, not a silent loss."""
    with pytest.raises(ValueError, match="extra"):
        JobRecord.model_validate(job_record().model_dump() | {"later": 1})


def test_progress_counts_results_and_dead_letters() -> None:
    """A request has ended whichever way it did."""
    assert Progress(completed=2, failed=3).ended == 5

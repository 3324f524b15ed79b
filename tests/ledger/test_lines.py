"""The ledger's lines: a checkpoint counts as a whole, and no line ends twice."""

import pytest

from builders import JOB_ID, dead_letter
from inbox_daemon.contract.errors import LedgerError
from inbox_daemon.contract.records import (
    Checkpoint,
    Progress,
)
from ledger_rows import OTHER, RETRY, Open, entry

# -- checkpoints --------------------------------------------------------------------


def test_a_checkpoint_counts_as_a_whole(reopen: Open) -> None:
    """Progress, outcomes, retries, dead letters and state come back together."""
    progress = Progress(committed=20, admitted=9, completed=1, failed=1)
    checkpoint = Checkpoint(JOB_ID, progress, [entry(5), entry(1)], {3: RETRY}, [dead_letter(5)])
    reopen().checkpoint([checkpoint, Checkpoint(OTHER, Progress(admitted=3))], {"hunt": b"h"})
    ledger = reopen()
    assert ledger.progress(JOB_ID) == progress
    assert ledger.progress(OTHER).admitted == 3
    assert ledger.entries(JOB_ID) == [entry(1), entry(5)]
    assert ledger.retries(JOB_ID) == {3: RETRY}
    assert ledger.get_state("hunt") == b"h"
    ledger.checkpoint([], {"hunt": None})
    assert reopen().get_state("hunt") is None


def test_no_line_ends_twice(reopen: Open) -> None:
    """A second outcome for a line is a bug that changes nothing."""
    ledger = reopen()
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(completed=1), [entry(1)])])
    with pytest.raises(LedgerError) as caught:
        ledger.checkpoint([Checkpoint(JOB_ID, Progress(completed=3), [entry(1), entry(2)])])
    assert caught.value.code == "outcome_twice"
    ledger = reopen()
    assert ledger.entries(JOB_ID) == [entry(1)]
    assert ledger.progress(JOB_ID).completed == 1


@pytest.mark.parametrize("count", [0, 1, 1999, 2000, 2001, 6000])
def test_entries_are_paged_without_a_gap(reopen: Open, count: int) -> None:
    """Every outcome is walked once and in order, however many pages that takes."""
    ledger = reopen()
    lines = [entry(line) for line in range(1, 2 * count, 2)]
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(), lines)])
    ledger.checkpoint([Checkpoint(OTHER, Progress(), [entry(1)])])
    assert list(ledger.all_entries(JOB_ID)) == lines

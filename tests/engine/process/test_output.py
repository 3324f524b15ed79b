"""However much an engine prints, the log grows by a bounded rate, and the rest is counted."""

import itertools

import pytest

from inbox_daemon.engine.process.output import (
    BURST_BYTES,
    BYTES_PER_S,
    EVENT_BYTES,
    LeftOut,
    LineBudget,
)

DAY_S = 86400


@pytest.mark.parametrize("size", [1, 80, 2000])
@pytest.mark.parametrize("gap_s", [0.001, 0.1])
def test_a_flood_is_bounded_whatever_its_lines_are(size: int, gap_s: float) -> None:
    """In any time no more goes through than the burst and the rate, the events counted in."""
    budget, written, seconds = LineBudget(), 0, 1000
    for turn in range(int(seconds / gap_s)):
        written += (size + EVENT_BYTES) * budget.take(size, turn * gap_s)
    assert written <= BURST_BYTES + BYTES_PER_S * seconds
    assert written > 0


def test_the_usual_output_goes_through_whole() -> None:
    """A long start and a line each ten seconds for a day leave nothing out."""
    budget = LineBudget()
    assert all(budget.take(150, 0) for _ in range(400))
    assert all(budget.take(300, 10.0 * turn) for turn in range(1, DAY_S // 10))
    assert budget.told() is None


def test_what_is_left_out_is_counted_once() -> None:
    """Each line is in the log or in a count, and a count is given once."""
    budget = LineBudget()
    through = sum(budget.take(10, 0) for _ in range(5000))
    assert budget.told() == LeftOut(5000 - through, 10 * (5000 - through))
    assert budget.told() is None


def test_a_flood_goes_through_in_bursts() -> None:
    """After a flood many lines go through in a row again, not one here and there."""
    budget = LineBudget()
    seen = []
    for turn in range(2000):
        seen.append(budget.take(10, 0.1 * turn))
        if seen[-1]:
            budget.told()
    changes = sum(a != b for a, b in itertools.pairwise(seen))
    assert changes <= 6

"""Chunk size and heat: what the card allows, also where its figures are absent or wrong."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.gpu.governor import ChunkSizer
from inbox_daemon.gpu.heat import CALM_READINGS, PATIENCE_READINGS, GovernorState, ThermalGovernor

# Chunk size


@pytest.mark.parametrize(
    ("percent", "size"),
    [
        (0, 5000),
        (69.99, 5000),
        (70, 3000),
        (79.99, 3000),
        (80, 1000),
        (89.99, 1000),
        (90, 500),
        (100, 500),
        (None, 5000),
        (math.nan, 5000),
    ],
)
def test_chunks_shrink_with_the_memory_that_others_use(percent: float | None, size: int) -> None:
    """Each border of the design holds, and no figure means the largest chunk."""
    assert ChunkSizer(500, 5000).update(percent) == size


@pytest.mark.parametrize(("percent", "size"), [(0, 2000), (75, 2000), (85, 1000), (95, 700)])
def test_configured_bounds_hold(percent: float, size: int) -> None:
    """The configured bounds cut what the memory would allow or ask for."""
    assert ChunkSizer(700, 2000).update(percent) == size


def test_reading_around_a_border_does_not_swing() -> None:
    """Chunks shrink at once and grow again only with a margin below the border."""
    sizer = ChunkSizer(500, 5000)
    sizes = [sizer.update(percent) for percent in (69.5, 70.5, 69.5, 70.5, 67.5, 66.9)]
    assert sizes == [5000, 3000, 3000, 3000, 3000, 5000]


def test_memory_given_back_is_used_at_once() -> None:
    """A fall far below the borders goes the whole way in one reading."""
    sizer = ChunkSizer(500, 5000)
    assert [sizer.update(percent) for percent in (95.0, 88.0, 10.0)] == [500, 500, 5000]


def test_figure_that_is_missing_for_a_while_changes_nothing() -> None:
    """While an engine starts, its memory is not distinguished from others', and chunks stay."""
    sizer = ChunkSizer(500, 5000)
    sizes = [sizer.update(percent) for percent in (85.0, *[None, math.nan] * 10, 85.0)]
    assert set(sizes) == {1000}
    sizes = [sizer.update(None) for _ in range(PATIENCE_READINGS + 1)]
    assert sizes == [1000] * PATIENCE_READINGS + [5000]


@given(st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True)), st.integers(1, 9000))
def test_chunk_size_stays_in_bounds(readings: list[float | None], low: int) -> None:
    """Whatever is read, the size is a whole number within the bounds."""
    sizer = ChunkSizer(low, low + 1000)
    for reading in readings:
        size = sizer.update(reading)
        assert isinstance(size, int)
        assert low <= size <= low + 1000


# Heat


def thermal() -> ThermalGovernor:
    """Return a governor with the default temperatures."""
    return ThermalGovernor(warn_c=80, stop_c=87, resume_c=75)


def test_cool_card_is_not_held_back() -> None:
    """Up to the warning temperature everything is allowed, without a reason."""
    allowance = thermal().update(80)
    assert (allowance.gate, allowance.factor, allowance.reason) == (GovernorState.OPEN, 1.0, "")
    assert allowance.apply(128) == 128


def test_warm_card_shrinks_the_window_step_by_step() -> None:
    """Between warning and stop the hotter card gets less, and never nothing."""
    governor = thermal()
    allowances = [governor.update(celsius) for celsius in range(81, 88)]
    factors = [allowance.factor for allowance in allowances]
    assert {allowance.gate for allowance in allowances} == {GovernorState.SHRINK}
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < factors[0] < 1
    assert "81 °C" in allowances[0].reason
    assert allowances[-1].apply(1) == 1


def test_hot_card_closes_and_opens_again_only_when_cool() -> None:
    """Above stop nothing is sent until the card is below resume."""
    governor = thermal()
    gates = [governor.update(celsius).gate for celsius in (88, 87, 80, 75, 74, 79)]
    assert gates == [GovernorState.CLOSED] * 4 + [GovernorState.OPEN] * 2
    closed = governor.update(90)
    assert closed.apply(1000) == 0
    assert "90 °C" in closed.reason
    assert "75 °C" in closed.reason


def test_card_without_a_sensor_is_open() -> None:
    """No temperature at all is normal."""
    assert thermal().update(None).gate is GovernorState.OPEN
    assert thermal().update(math.nan).gate is GovernorState.OPEN


def test_lost_sensor_does_not_open_a_hot_card_at_once() -> None:
    """A closed governor that loses its sensor waits for a while, not without end."""
    governor = thermal()
    governor.update(90)
    gates = [governor.update(None).gate for _ in range(PATIENCE_READINGS + 1)]
    assert gates == [GovernorState.CLOSED] * PATIENCE_READINGS + [GovernorState.OPEN]
    assert governor.update(None).gate is GovernorState.OPEN


@pytest.mark.parametrize("celsius", [60, None, 81])
def test_throttling_card_gets_less(celsius: int | None) -> None:
    """A card that slows itself down for heat is spared, whatever its sensor says."""
    allowance = thermal().update(celsius, throttled="heat")
    assert allowance.gate is GovernorState.SHRINK
    assert allowance.factor <= 0.5
    assert allowance.reason


def test_warm_card_at_the_border_does_not_swing() -> None:
    """Once above the warning it is spared until it is some degrees below."""
    governor = thermal()
    gates = [governor.update(celsius).gate for celsius in (80, 81, 80, 81, 78, 77, 76, 80)]
    assert gates == [GovernorState.OPEN] + [GovernorState.SHRINK] * 5 + [GovernorState.OPEN] * 2
    narrow = ThermalGovernor(warn_c=80, stop_c=87, resume_c=79)
    gates = [narrow.update(celsius).gate for celsius in (81, 79, 80, 78, 80)]
    assert gates == [GovernorState.SHRINK] * 3 + [GovernorState.OPEN] * 2


def test_lost_sensor_leaves_a_warm_card_as_it_was() -> None:
    """A sensor that answers every other time does not swing the window."""
    governor = thermal()
    factors = {governor.update(celsius).factor for celsius in (84, None, 84, None, 84)}
    assert len(factors) == 1


def test_throttling_ends_after_a_calm_while() -> None:
    """Throttling on and off is throttling, until it has been off for many readings."""
    governor = thermal()
    on_and_off = [governor.update(60, throttled=what).gate for what in ("heat", "") * 20]
    assert set(on_and_off) == {GovernorState.SHRINK}
    calm = [governor.update(60).gate for _ in range(CALM_READINGS - 1)]
    assert calm[-2:] == [GovernorState.SHRINK, GovernorState.OPEN]


@given(st.lists(st.integers(70, 95), max_size=200))
def test_gate_changes_only_over_its_margin(course: list[int]) -> None:
    """A state is entered above its border and left only below a lower one."""
    governor = thermal()
    gate = GovernorState.OPEN
    for celsius in course:
        found = governor.update(celsius).gate
        if found is not gate:
            # Leaving is only ever for open, below both borders; entering is above its own.
            border = {
                GovernorState.OPEN: celsius < 77,
                GovernorState.SHRINK: celsius > 80,
                GovernorState.CLOSED: celsius > 87,
            }
            assert border[found]
            assert (gate, found) != (GovernorState.CLOSED, GovernorState.SHRINK)
            assert gate is not GovernorState.CLOSED or celsius < 75
            gate = found


@given(st.lists(st.none() | st.floats(), max_size=50))
def test_closed_needs_a_reading_above_stop(readings: list[float | None]) -> None:
    """Whatever is read, it is closed only since a reading above stop, none below resume since."""
    governor = thermal()
    hot = False
    for reading in readings:
        allowance = governor.update(reading)
        if reading is not None and math.isfinite(reading):
            hot = reading > 87 or (hot and reading >= 75)
        assert hot or allowance.gate is not GovernorState.CLOSED
        assert 0.0 <= allowance.factor <= 1.0

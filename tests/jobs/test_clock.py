"""The checked clock: a jump is noticed, nothing is lost by it, and in the end a time is trusted."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_time import BOOT, DAY, NOW, FakeTime
from inbox_daemon.jobs.clock import (
    REBOOT_S,
    SYNCHRONISED_S,
    TOLERANCE_S,
    Anchor,
    CheckedClock,
    Correction,
    span,
)

HOLD_S = 600.0
BEFORE = Anchor(NOW - 10.0, BOOT - 10.0, "this")


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged."""
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


# -- while all is well --------------------------------------------------------------


@pytest.mark.parametrize("anchor", [None, BEFORE])
def test_a_clock_that_runs_is_trusted(
    anchor: Anchor | None, caplog: pytest.LogCaptureFixture
) -> None:
    """All three readings are the wall clock's, through suspends and small steps too."""
    fake = FakeTime()
    clock = CheckedClock(fake, HOLD_S, anchor)
    for passed, step in ((1.0, 0.0), (8 * 3600.0, 0.0), (1.0, 4.0), (1.0, 4.0), (1.0, -4.5)):
        fake.go_on(passed)
        fake.wall += step
        assert clock.read() == (fake.wall, fake.wall, fake.wall)
        assert clock.check() is None
        assert clock.anchor() == (fake.wall, fake.boot, "this")
    assert clock.doubt is None
    assert events(caplog) == []


# -- jumps --------------------------------------------------------------------------


@pytest.mark.parametrize("by_s", [2 * DAY, -3600.0, TOLERANCE_S + 1, -TOLERANCE_S - 1])
def test_a_jump_counts_at_once(by_s: float) -> None:
    """Before anything has noticed it, the earliest time is that of both which is earlier."""
    fake = FakeTime()
    clock = CheckedClock(fake, HOLD_S)
    fake.go_on(1.0)
    fake.wall += by_s
    assert clock.read() == (min(NOW + 1, fake.wall), NOW + 1, max(NOW + 1, fake.wall))
    assert clock.anchor() is None


def test_a_jump_that_is_undone_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Two days ahead for two seconds, and the time is what it would be without that."""
    fake = FakeTime()
    clock = CheckedClock(fake, HOLD_S)
    fake.wall += 2 * DAY
    for _ in range(2):
        assert clock.check() is None
        assert clock.doubt is not None
        assert "set 2 days ahead; until that has held for 10 minutes" in clock.doubt
        fake.go_on(1.0)
        assert (clock.read().earliest, clock.read().reckoned) == (fake.wall - 2 * DAY,) * 2
    fake.wall -= 2 * DAY
    assert clock.check() is None
    assert clock.doubt is None
    assert clock.read().latest == fake.wall
    assert events(caplog) == ["clock_jumped", "clock_trusted"]


@pytest.mark.parametrize("by_s", [2 * DAY, -3600.0])
def test_a_time_that_has_held_is_trusted(by_s: float, caplog: pytest.LogCaptureFixture) -> None:
    """Once it has held, the correction is for the times of all jobs."""
    fake = FakeTime()
    clock = CheckedClock(fake, HOLD_S)
    fake.wall += by_s
    assert clock.check() is None
    fake.go_on(HOLD_S - 1)
    assert clock.check() is None
    fake.go_on(1.0)
    correction = clock.check()
    assert correction == Correction(by_s, None)
    assert clock.read().reckoned == fake.wall - by_s  # until it is trusted
    clock.trust(correction)
    assert clock.check() is None
    assert clock.read() == (fake.wall,) * 3
    assert clock.anchor() is not None
    assert events(caplog) == ["clock_jumped", "clock_trusted"]


def test_yet_another_time_has_to_hold_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A clock that is set again and again is not trusted meanwhile."""
    fake = FakeTime()
    clock = CheckedClock(fake, HOLD_S)
    for _ in range(5):
        fake.wall += DAY
        assert clock.check() is None
        fake.go_on(HOLD_S - 1)
        assert clock.check() is None
    fake.go_on(1.0)
    assert clock.check() == Correction(5 * DAY, None)
    assert events(caplog) == ["clock_jumped"] * 5


def test_a_synchronised_time_is_trusted_sooner() -> None:
    """One that synchronisation has set is to hold for a minute, not for the whole while."""
    fake = FakeTime(synchronised=1.0)
    clock = CheckedClock(fake, HOLD_S)
    assert clock.check() is None
    fake.wall += 2 * DAY
    fake.synchronised = 2.0  # in the same moment, before the jump is noticed
    assert clock.check() is None
    fake.go_on(SYNCHRONISED_S)
    assert clock.check() == Correction(2 * DAY, None)


def test_a_synchronisation_of_before_confirms_nothing() -> None:
    """A clock that was right this morning and is set by hand now has to hold."""
    fake = FakeTime(synchronised=1.0)
    clock = CheckedClock(fake, HOLD_S)
    fake.wall += 2 * DAY
    assert clock.check() is None
    fake.go_on(HOLD_S - 1)
    assert clock.check() is None


def test_a_jump_at_the_moment_of_trust_is_a_jump(caplog: pytest.LogCaptureFixture) -> None:
    """What is trusted is what has held, and not what the clock says by then."""
    fake = FakeTime()
    clock = CheckedClock(fake, HOLD_S)
    fake.wall += DAY
    clock.check()
    fake.go_on(HOLD_S)
    correction = clock.check()
    assert correction is not None
    fake.wall -= DAY
    clock.trust(correction)
    assert clock.read().earliest == fake.wall
    assert clock.check() is None
    assert clock.doubt is not None
    assert events(caplog) == ["clock_jumped", "clock_trusted", "clock_jumped"]


# -- starts -------------------------------------------------------------------------


def start(fake: FakeTime, off_s: float) -> CheckedClock:
    """A start on another boot, so long after the last trusted time by the clock."""
    return CheckedClock(fake, HOLD_S, Anchor(fake.wall - off_s, 77_777.0, "earlier"))


@pytest.mark.parametrize("off_s", [0.0, 5.0, 120.0, REBOOT_S, -TOLERANCE_S])
def test_a_restart_of_the_machine_is_no_doubt(off_s: float) -> None:
    """It takes some minutes."""
    assert start(FakeTime(), off_s).doubt is None


def test_a_start_far_ahead_waits(caplog: pytest.LogCaptureFixture) -> None:
    """Whether the machine was off or its clock is wrong shows once the time has held."""
    fake = FakeTime()
    clock = start(fake, 100 * DAY)
    assert clock.doubt is not None
    assert "100 days later than when the daemon last ran" in clock.doubt
    assert clock.read() == (NOW - 100 * DAY, NOW - 100 * DAY, NOW)
    fake.go_on(HOLD_S - 1)
    assert clock.check() is None
    fake.go_on(1.0)
    # For a job that was waiting, the time has passed; for one that came since, it has not.
    assert clock.check() == Correction(100 * DAY, NOW - 100 * DAY)
    assert events(caplog) == ["clock_unconfirmed"]


def test_a_start_far_ahead_that_is_synchronised_is_trusted() -> None:
    """A machine that was off for a week, and has asked for the time, waits for nothing."""
    fake = FakeTime(synchronised=1.0)
    assert start(fake, 7 * DAY).doubt is None
    late = FakeTime()
    clock = start(late, 7 * DAY)
    assert clock.check() is None
    late.go_on(30.0)
    late.synchronised = 1.0
    assert clock.check() == Correction(7 * DAY, late.wall - 30.0 - 7 * DAY)


def test_a_start_far_ahead_that_is_corrected_is_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    """The clock said 100 days, and it was two minutes."""
    fake = FakeTime()
    clock = start(fake, 100 * DAY)
    fake.wall -= 100 * DAY - 120.0
    assert clock.check() is None
    assert clock.doubt is None
    assert events(caplog) == ["clock_unconfirmed", "clock_trusted"]


@pytest.mark.parametrize("synchronised", [None, 1.0])
def test_a_start_behind_is_in_doubt(synchronised: float | None) -> None:
    """One of the two times is wrong, so the right one has to hold; all jobs keep their time."""
    fake = FakeTime(synchronised=synchronised)
    clock = start(fake, -DAY)
    assert clock.doubt is not None
    assert "24 hours earlier than when" in clock.doubt
    assert clock.read() == (NOW, NOW + DAY, NOW + DAY)
    assert clock.check() is None
    fake.go_on(SYNCHRONISED_S if synchronised else HOLD_S)
    assert clock.check() == Correction(-DAY, None)


def test_a_clock_that_lost_its_time_is_set_right() -> None:
    """From 1970 to today: a job that came meanwhile keeps the time it has left."""
    fake = FakeTime(wall=100.0)
    clock = CheckedClock(fake, HOLD_S, Anchor(NOW, 9.0, "earlier"))
    fake.go_on(60.0)
    came = clock.read().reckoned
    assert came == NOW + 60
    fake.wall, fake.synchronised = NOW + 8 * 3600, 1.0
    correction = clock.check()
    assert correction is not None
    assert (correction.by_s, correction.since) == (8 * 3600 - 60.0, NOW)
    assert came >= NOW


@pytest.mark.parametrize("by_s", [30.0, 100 * DAY, -3600.0])
def test_a_start_on_the_same_boot_knows_the_time(by_s: float) -> None:
    """A clock that was set while no daemon ran is a jump like any other."""
    fake = FakeTime(wall=NOW + by_s, synchronised=1.0)
    clock = CheckedClock(fake, HOLD_S, BEFORE)
    assert clock.doubt is not None
    assert "the clock was set" in clock.doubt
    assert clock.read().reckoned == NOW
    fake.go_on(HOLD_S)
    assert clock.check() == Correction(by_s, None)


def test_a_boot_without_a_name_is_another() -> None:
    """Where the kernel does not say which boot it is, none is taken for the same."""
    fake = FakeTime(boot_id="")
    assert CheckedClock(fake, HOLD_S, Anchor(NOW - 60.0, 90_000.0, "")).doubt is None


# -- any course ---------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0.0, 3000.0), st.floats(-1e7, 1e7)), max_size=12))
def test_the_reckoned_time_goes_on_like_the_boot_until_a_time_is_trusted(
    steps: list[tuple[float, float]],
) -> None:
    """Whatever the clock does, what was reckoned grows by what has passed, or a correction."""
    fake = FakeTime()
    clock = CheckedClock(fake, HOLD_S)
    told, small = NOW, 0.0
    for passed, step in steps:
        fake.go_on(passed)
        fake.wall += step
        told += passed
        small += min(abs(step), TOLERANCE_S)
        correction = clock.check()
        if correction is not None:
            told += correction.by_s
            clock.trust(correction)
        moment = clock.read()
        assert moment.earliest <= moment.reckoned <= moment.latest
        assert abs(moment.reckoned - told) <= small + 0.01
        assert fake.wall in {moment.earliest, moment.latest}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1.0, "1 s"),
        (59.4, "59.4 s"),
        (600.0, "10 minutes"),
        (3600.0, "60 minutes"),
        (2 * DAY, "2 days"),
        (DAY, "24 hours"),
    ],
)
def test_a_span_is_in_a_unit_of_which_there_are_two(seconds: float, words: str) -> None:
    """The largest unit of which there are two at least."""
    assert span(seconds) == words

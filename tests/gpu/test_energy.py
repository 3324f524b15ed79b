"""Energy: joules between readings that may lie, and their fair shares."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.gpu.energy import (
    COUNTER_LAG_S,
    MAX_GAP_S,
    MAX_POWER_W,
    EnergyAccounts,
    EnergyMeter,
)

Reading = tuple[float, float | None, float | None]


def used(*readings: Reading) -> list[float | None]:
    """What a meter says after each reading of (time, counter, power) but the first."""
    meter = EnergyMeter()
    return [meter.update(*reading) for reading in readings][1:]


@dataclass
class Job:
    """A running job, as far as its energy goes."""

    tokens_made: int = 0
    in_flight: int = 0
    shares: list[float] = field(default_factory=list)

    def use_energy(self, joules: float) -> None:
        """Note a share."""
        self.shares.append(joules)


# The meter


def test_first_reading_says_nothing() -> None:
    """What the counter has counted before the first reading is charged to no job."""
    assert EnergyMeter().update(100.0, 10**9, 300.0) is None


def test_counter_is_believed_before_power() -> None:
    """A card that counts its energy tells more than two samples of its power."""
    assert used((0, 1000.0, 100.0), (2, 1500.0, 100.0)) == [500.0]


def test_power_is_integrated_where_nothing_counts() -> None:
    """A card without the counter is charged the mean of two readings over their time."""
    assert used((0, None, 100.0), (2, None, 300.0), (3, None, 300.0)) == [400.0, 300.0]


@pytest.mark.parametrize(
    ("first", "second"),
    [((None, None), (None, None)), ((5.0, None), (None, 100.0)), ((None, 100.0), (None, None))],
)
def test_without_a_sensor_the_energy_is_unknown(
    first: tuple[float | None, float | None], second: tuple[float | None, float | None]
) -> None:
    """No pair of readings of one sensor is no energy at all, which is not the same as none used."""
    assert used((0, *first), (2, *second)) == [None]


def test_counter_set_back_by_a_reloaded_driver_falls_back_on_power() -> None:
    """A counter that falls says nothing of the time before; the next difference counts again."""
    readings = (0, 9000.0, 200.0), (2, 10.0, 200.0), (4, 410.0, 200.0)
    assert used(*readings) == [400.0, 400.0]
    assert used(*((now, energy, None) for now, energy, _ in readings)) == [None, 400.0]


def test_counter_that_leaps_is_not_believed() -> None:
    """The counter of another card, or of a night's sleep, is no work of two seconds."""
    assert used((0, 1000.0, None), (2, 10**7, None), (4, 10**7 + 600.0, None)) == [None, 600.0]


@pytest.mark.parametrize("sensor", [(1000.0, None), (None, 100.0)])
def test_gap_is_charged_to_no_job(sensor: tuple[float | None, float | None]) -> None:
    """Over a gap neither sensor is believed, and after it both are again."""
    late = MAX_GAP_S + 1
    found = used((0, *sensor), (late, *sensor), (late + 2, *sensor))
    assert found[0] is None
    assert found[1] == (0.0 if sensor[0] else 200.0)


def test_clock_that_goes_back_gives_nothing() -> None:
    """Two readings out of order are no interval."""
    assert used((10, 500.0, 100.0), (9, 600.0, 100.0), (11, 700.0, 100.0)) == [None, 100.0]


@pytest.mark.parametrize("power", [math.nan, math.inf, -5.0, 10**9])
def test_power_that_no_card_uses_is_no_reading(power: float) -> None:
    """A sensor that says nonsense is a missing sensor."""
    assert used((0, None, 100.0), (2, None, power), (4, None, 100.0)) == [None, None]


figures = st.none() | st.floats() | st.floats(0, 10**5)


@given(st.lists(st.tuples(st.floats(0, 10**6) | st.floats(), figures, figures), max_size=50))
def test_energy_is_what_a_card_can_use_or_unknown(readings: list[Reading]) -> None:
    """Whatever is read, no interval has a negative energy or one that no card could use."""
    meter, before = EnergyMeter(), math.nan
    for now, energy, power in readings:
        joules = meter.update(now, energy, power)
        if joules is not None:
            assert 0 <= now - before <= MAX_GAP_S
            assert 0 <= joules <= MAX_POWER_W * (now - before + COUNTER_LAG_S)
        before = now


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 1000)), min_size=1, max_size=50))
def test_a_sound_counter_is_followed_to_the_joule(steps: list[tuple[int, int]]) -> None:
    """The sum over all intervals is the counter's end less its beginning."""
    meter, now, counter = EnergyMeter(), 0, 5_000_000
    meter.update(now, counter, None)
    total = 0.0
    for seconds, watts in steps:
        now += seconds
        counter += watts * seconds
        total += meter.update(now, counter, None) or 0.0
    assert total == counter - 5_000_000


# The shares


def charge(accounts: EnergyAccounts, now: float, joules: float, **jobs: Job) -> None:
    """Let the card's counter read `joules` at a time while these jobs run."""
    accounts.charge(now, joules, None, jobs.items())


def test_jobs_share_by_the_tokens_that_they_finished() -> None:
    """Of what was used, each gets its part of the output tokens of that interval."""
    accounts, one, two = EnergyAccounts(), Job(100), Job(0, in_flight=9)
    charge(accounts, 0, 0.0, one=one, two=two)
    one.tokens_made, two.tokens_made = 400, 100
    charge(accounts, 2, 800.0, one=one, two=two)
    assert (one.shares, two.shares) == ([600.0], [200.0])


def test_where_nothing_finished_those_in_flight_share() -> None:
    """Long answers and embeddings cost energy too: by the requests in flight."""
    accounts, one, two = EnergyAccounts(), Job(in_flight=30), Job(in_flight=10)
    charge(accounts, 0, 0.0, one=one, two=two)
    charge(accounts, 2, 400.0, one=one, two=two)
    assert (one.shares, two.shares) == ([300.0], [100.0])


def test_idleness_is_charged_to_no_job() -> None:
    """A job that waits, paused or for the engine, is charged with nothing, nor is it later."""
    accounts, job = EnergyAccounts(), Job(500)
    charge(accounts, 0, 0.0, job=job)
    charge(accounts, 2, 400.0, job=job)
    charge(accounts, 4, 500.0)
    job.in_flight = 1
    charge(accounts, 6, 600.0, job=job)
    assert job.shares == [100.0]


def test_job_that_came_and_finished_between_two_readings_is_charged() -> None:
    """A job seen for the first time has finished all of its tokens since the last reading."""
    accounts, job = EnergyAccounts(), Job(50)
    charge(accounts, 0, 0.0)
    charge(accounts, 2, 300.0, job=job)
    assert job.shares == [300.0]


def test_unknown_interval_is_not_charged_later() -> None:
    """Tokens that were finished while the sensor was away have had their share: none."""
    accounts, one, two = EnergyAccounts(), Job(), Job()
    charge(accounts, 0, 0.0, one=one, two=two)
    one.tokens_made = 1000
    accounts.charge(2, None, None, {"one": one, "two": two}.items())
    two.tokens_made = 10
    charge(accounts, 4, 100.0, one=one, two=two)
    two.tokens_made = 20
    charge(accounts, 6, 150.0, one=one, two=two)
    assert (one.shares, two.shares) == ([], [50.0])


@given(
    st.lists(
        st.tuples(
            st.floats(0, 5000),
            st.dictionaries(
                st.sampled_from("abc"), st.tuples(st.integers(0, 10**5), st.integers(0, 999))
            ),
        ),
        max_size=30,
    )
)
def test_shares_add_up_to_what_was_used(
    course: list[tuple[float, dict[str, tuple[int, int]]]],
) -> None:
    """In each interval no job is charged less than zero, and all together exactly what was used."""
    accounts, jobs, counter = EnergyAccounts(), {name: Job() for name in "abc"}, 0.0
    accounts.charge(0, counter, None, ())
    for number, (joules, active) in enumerate(course, 1):
        counter += joules
        for name, job in jobs.items():
            tokens, job.in_flight = active.get(name, (0, 0))
            job.tokens_made += tokens
        before = sum(sum(job.shares) for job in jobs.values())
        accounts.charge(2.0 * number, counter, None, jobs.items())
        charged = sum(sum(job.shares) for job in jobs.values()) - before
        assert all(share >= 0 for job in jobs.values() for share in job.shares)
        works = any(tokens or flying for tokens, flying in active.values())
        assert charged == pytest.approx(joules if works else 0.0, abs=1e-6)

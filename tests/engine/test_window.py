"""The window: it follows the engine's figures, and settles."""

import heapq
import json
import math
import random
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.engine.base import Load
from inbox_daemon.engine.window import DEFAULT_WINDOW, RESERVE_FLOOR, WindowController

MINIMUM, MAXIMUM = 8, 4096

# The window: a simulated engine


class Work(NamedTuple):
    """One request: how long it runs and how much of the KV cache it takes."""

    seconds: float
    memory: float = 1.0
    ours: bool = True


def lognormal(mean_s: float, sigma: float = 0.8) -> Callable[[random.Random], Work]:
    """Return a source of requests whose lengths vary as those of answers do."""
    return lambda rng: Work(rng.lognormvariate(math.log(mean_s) - sigma**2 / 2, sigma))


@dataclass
class Engine:
    """An engine with slots, a KV cache, prompts to read, and figures that may be late.

    `prompts_per_s` is how fast waiting requests are taken in, `comfortable` how many run
    without preemptions, `late` by how many readings the figures lag, `journey_s` how long
    request and answer travel together, `others` how many requests another client keeps here.
    """

    slots: int
    work: Callable[[random.Random], Work]
    memory: float = math.inf
    prompts_per_s: float = math.inf
    comfortable: int = 10**9
    late: int = 0
    journey_s: float = 0.01
    others: int = 0
    now: float = 0.0
    in_flight: int = 0
    running: int = 0
    used: float = 0.0
    idle_s: float = 0.0  # the time in which capacity was free and nothing waited, in engines
    preemptions: float = 0.0
    _of_others: int = 0
    _next_prompt: float = 0.0
    _reading: bool = False
    _serial: int = 0
    _waiting: deque[Work] = field(default_factory=deque)
    _events: list[tuple[float, int, str, Work | None]] = field(default_factory=list)
    _figures: deque[Load] = field(default_factory=deque)
    _rng: random.Random = field(default_factory=lambda: random.Random(7))

    def run(self, until: float, window: int, supply: int) -> int:
        """Let time pass with every free place refilled at once; return how many finished."""
        finished = 0
        self._fill(min(window, supply))
        while self._events and self._events[0][0] <= until:
            at, _, what, work = heapq.heappop(self._events)
            self._pass_time(at)
            if what == "arrive" and work:
                self._waiting.append(work)
            elif what == "done" and work:
                self.running -= 1
                self.used -= work.memory
                self._at(self.now + self.journey_s / 2, "reply", work)
            elif what == "reply" and work:
                self.in_flight -= work.ours
                self._of_others -= not work.ours
                finished += work.ours
                self._fill(min(window, supply))
            self._reading = self._reading and what != "admit"
            self._admit()
        self._pass_time(until)
        return finished

    def load(self) -> Load:
        """Return the figures, late if so configured."""
        kv = None if self.memory == math.inf else self.used / self.memory
        self._figures.append(Load(self.running, len(self._waiting), kv, int(self.preemptions)))
        while len(self._figures) > self.late + 1:
            self._figures.popleft()
        return self._figures[0]

    def _fill(self, places: int) -> None:
        while self.in_flight < places:
            self.in_flight += 1
            self._at(self.now + self.journey_s / 2, "arrive", self.work(self._rng))
        while self._of_others < self.others:
            self._of_others += 1
            work = self.work(self._rng)._replace(ours=False)
            self._at(self.now + self.journey_s / 2, "arrive", work)

    def _admit(self) -> None:
        while self._waiting and self.running < self.slots:
            if self.running and self.used + self._waiting[0].memory > self.memory:
                return
            if self.now < self._next_prompt:
                if not self._reading:
                    self._at(self._next_prompt, "admit")
                self._reading = True
                return
            work = self._waiting.popleft()
            self.running += 1
            self.used += work.memory
            self._next_prompt = self.now + 1 / self.prompts_per_s
            self._at(self.now + work.seconds, "done", work)

    def _pass_time(self, to: float) -> None:
        took, self.now = to - self.now, to
        if not self._waiting:
            free = min(1 - self.running / self.slots, 1 - self.used / self.memory)
            self.idle_s += took * max(0.0, free)
        self.preemptions += took * max(0, self.running - self.comfortable)

    def _at(self, when: float, what: str, work: Work | None = None) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, what, work))


class Step(NamedTuple):
    """One reading and what followed from it."""

    window: int
    load: Load
    in_flight: int
    finished: int
    idle_s: float


def drive(
    engine: Engine,
    seconds: float,
    *,
    every_s: float = 0.5,
    window: WindowController | None = None,
    supply: int = 10**9,
    told: bool = False,
    missed: int = 0,
) -> list[Step]:
    """Run an engine under a window controller and return the course of it.

    `told`: the controller knows whether it was the limit.  `missed`: each sample of what is
    in flight comes so early that this many places were not refilled yet.
    """
    window = window or WindowController(MINIMUM, MAXIMUM)
    course = []
    for _ in range(round(seconds / every_s)):
        idle_before = engine.idle_s
        finished = engine.run(engine.now + every_s, window.window, supply)
        load = engine.load()
        limited = supply > window.window if told else None
        sample = max(0, engine.in_flight - missed)
        size = window.update(load, sample, finished, engine.now, limited=limited)
        idle = engine.idle_s - idle_before
        course.append(Step(size, load, engine.in_flight, finished, idle))
    return course


def jumps(course: list[Step]) -> list[float]:
    """Return the relative changes of the window from one reading to the next."""
    return [abs(after.window / before.window - 1) for before, after in pairwise(course)]


ENGINES: dict[str, tuple[Callable[[], Engine], float, float]] = {
    "16 slots": (lambda: Engine(16, lognormal(4)), 60, 0.5),
    "16 slots, late": (lambda: Engine(16, lognormal(4), late=1), 60, 0.5),
    "16 slots, half a request a second": (lambda: Engine(16, lognormal(32)), 900, 1.0),
    "64 slots, minutes each": (lambda: Engine(64, lognormal(120)), 900, 1.0),
    "100 slots": (lambda: Engine(100, lognormal(4)), 60, 0.5),
    "512 slots, slow journey": (lambda: Engine(512, lognormal(4), journey_s=0.3), 60, 0.5),
    "1024 slots": (lambda: Engine(1024, lognormal(8)), 60, 0.5),
    "1024 slots, late": (lambda: Engine(1024, lognormal(8), late=1), 60, 0.5),
    "1024 slots, read once a second": (lambda: Engine(1024, lognormal(8), late=1), 60, 1.0),
    "1024 slots, slow prompts": (lambda: Engine(1024, lognormal(8), prompts_per_s=300), 60, 0.5),
    "256 slots, all of one length": (lambda: Engine(256, lambda _: Work(5.0)), 60, 0.5),
}


@pytest.mark.parametrize("name", ENGINES)
def test_window_settles_where_the_engine_is_full_and_little_waits(name: str) -> None:
    """For few slots and many: the engine is full, the overshoot bounded, and nothing swings."""
    make, seconds, every_s = ENGINES[name]
    engine = make()
    course = drive(engine, seconds, every_s=every_s)
    warm = course[len(course) // 3 :]
    # Full and never drained, while there is a backlog.
    assert all(step.load.waiting for step in warm)
    assert min(step.load.running or 0 for step in warm) >= 0.99 * engine.slots
    assert sum(step.idle_s for step in warm) == pytest.approx(0, abs=1e-6)
    # The next requests wait, and not many more.
    assert engine.slots + RESERVE_FLOOR <= course[-1].window <= 1.6 * engine.slots
    assert max(step.window for step in course) <= max(DEFAULT_WINDOW, 2.7 * engine.slots)
    # No swinging.
    assert max(jumps(warm)) <= 0.02


@pytest.mark.parametrize("late", [0, 1])
def test_cold_start_fills_a_large_engine_in_few_readings(late: int) -> None:
    """From the default window to 1,024 running requests takes some readings, not minutes."""
    course = drive(Engine(1024, lognormal(8), late=late), 10)
    full = next(index for index, step in enumerate(course) if step.window >= 1024)
    assert full <= 3 * (1 + late)


def test_cold_engine_that_reads_prompts_is_not_left_to_run_out() -> None:
    """While the first prompts are read they count as waiting, and the window grows in time."""
    engine = Engine(512, lognormal(5), prompts_per_s=200)
    course = drive(engine, 10)
    assert min(step.window for step in course) >= DEFAULT_WINDOW
    # At 200 prompts a second nothing could fill it before 2.5 s; idle are gaps beyond that.
    assert sum(step.idle_s for step in course) <= 0.3


@pytest.mark.parametrize(
    "engine",
    [
        Engine(1, lambda _: Work(0.0005), journey_s=0.004),
        Engine(64, lambda _: Work(0.03), journey_s=0.001),
        Engine(10**6, lambda _: Work(0.01), journey_s=0.05, prompts_per_s=2000),
    ],
    ids=["stand-in", "fast slots", "limited by rate"],
)
def test_window_is_not_the_limit_of_a_very_fast_engine(engine: Engine) -> None:
    """About 2,000 requests a second go through, as many as with a window without end."""
    course = drive(engine, 5)
    rate = sum(step.finished for step in course[4:]) / (len(course[4:]) * 0.5)
    assert rate >= 1900
    assert course[-1].window <= 1.2 * (DEFAULT_WINDOW + rate / 2)


def test_engine_that_shows_nothing_running_is_fed_by_its_rate() -> None:
    """Where running and waiting read 0 because all is over so soon, what finishes decides."""
    window = WindowController(MINIMUM, MAXIMUM)
    for reading in range(20):
        window.update(Load(0, 0), window.window, 5000, reading * 0.5)
    assert 160 <= window.window <= 240


def test_kv_cache_as_the_limit_is_followed_without_swinging() -> None:
    """Where memory limits what runs, the window follows it slowly, and something waits."""

    def work(rng: random.Random) -> Work:
        seconds = rng.lognormvariate(1.5, 0.8)
        return Work(seconds, memory=seconds)

    course = drive(Engine(512, work, memory=900), 200)
    warm = course[len(course) // 4 :]
    assert all(step.load.waiting for step in warm)
    assert max(jumps(warm)) <= 0.25
    assert sum(jumps(warm)) / len(warm) <= 0.05
    running = [step.load.running or 0 for step in warm]
    assert max(step.window for step in warm) <= 1.7 * max(running)


@pytest.mark.parametrize("comfortable", [100, 600, 950])
def test_window_far_too_large_is_not_cut_below_what_can_run(comfortable: int) -> None:
    """Preemptions that go on while earlier requests end are no reason to cut again."""
    window = WindowController(MINIMUM, MAXIMUM, 1700)
    course = drive(Engine(1024, lognormal(15), comfortable=comfortable), 150, window=window)
    assert min(step.window for step in course) >= 0.9 * comfortable
    assert max(step.window for step in course[len(course) // 2 :]) <= 1.2 * comfortable


def test_workload_that_changes_is_followed_both_ways() -> None:
    """Long requests after short ones shrink the window, and short ones let it grow again."""
    window = WindowController(MINIMUM, MAXIMUM)
    engine = Engine(512, lambda _: Work(4.0, memory=1.0), memory=400)
    light = drive(engine, 60, window=window)
    engine.work = lambda _: Work(8.0, memory=8.0)
    heavy = drive(engine, 120, window=window)
    engine.work = lambda _: Work(4.0, memory=1.0)
    again = drive(engine, 60, window=window)
    assert 400 < light[-1].window < 700
    assert 50 < heavy[-1].window < 100
    assert 400 < again[-1].window < 700


def test_idle_time_changes_nothing() -> None:
    """A window that was found stays while there is too little work to fill it."""
    window = WindowController(MINIMUM, MAXIMUM)
    engine = Engine(1024, lognormal(4))
    found = drive(engine, 30, window=window)[-1].window
    assert {step.window for step in drive(engine, 30, window=window, supply=10)} == {found}
    assert {step.window for step in drive(engine, 30, window=window, supply=0)} == {found}
    busy = drive(engine, 30, window=window)
    assert sum(step.idle_s for step in busy[2:]) == pytest.approx(0, abs=0.01)
    assert max(jumps(busy)) <= 0.1


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("missed", [1, 2])
def test_small_window_grows_though_each_sample_misses_that_it_is_full(
    missed: int,
    told: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    """From 8 to a full engine of 512 slots in seconds, if a sample never shows all 8."""
    window = WindowController(MINIMUM, MAXIMUM, MINIMUM)
    course = drive(Engine(512, lognormal(0.7)), 20, window=window, told=told, missed=missed)
    full = next(index for index, step in enumerate(course) if step.window >= 512)
    assert full <= 10
    assert course[-1].window <= 1.6 * 512


def test_few_in_flight_count_as_known_though_half_of_them_travel() -> None:
    """Of 8 in flight with 4 seen running the rest is on its way, and no reason to wait."""
    window = WindowController(MINIMUM, MAXIMUM, MINIMUM)
    assert window.update(Load(4, 0), 8, 4, 0.5, limited=True) == 2 * MINIMUM


def test_window_that_is_the_limit_grows() -> None:
    """A window that was the limit grows, and one that was not stays."""
    window = WindowController(MINIMUM, MAXIMUM, 100)
    assert window.update(Load(40, 0), 50, 60, 0.5, limited=True) > 100
    window = WindowController(MINIMUM, MAXIMUM, 100)
    assert window.update(Load(40, 0), 50, 60, 0.5, limited=False) == 100


@pytest.mark.parametrize("late", [0, 1])
def test_cold_engine_of_slow_prompts_is_not_flooded(late: int) -> None:
    """It is filled as fast as by a window without end, and with half of the excess at most."""
    engine = Engine(512, lognormal(7.4), prompts_per_s=95, late=late)
    course = drive(engine, 60, told=True)
    assert max(step.window for step in course) - 512 <= 0.65 * 512
    flooded = Engine(512, lognormal(7.4), prompts_per_s=95)
    most = flooded.run(60, MAXIMUM, 10**9)
    assert sum(step.finished for step in course) >= 0.99 * most


# The window: a server that others use too


def test_load_of_others_while_we_are_idle_changes_nothing() -> None:
    """The next job begins with the last settled window, and fills the engine at once."""
    window = WindowController(MINIMUM, MAXIMUM)
    engine = Engine(512, lognormal(7.4), prompts_per_s=95)
    found = drive(engine, 60, window=window, told=True)[-1].window
    drive(engine, 60, window=window, supply=0, told=True)
    engine.others = 1000
    assert {s.window for s in drive(engine, 60, window=window, supply=0, told=True)} == {found}
    engine.others = 0
    drive(engine, 60, window=window, supply=0, told=True)
    flooded = deepcopy(engine)
    second = drive(engine, 60, window=window, told=True)
    assert min(step.window for step in second) >= 512 + RESERVE_FLOOR
    most = flooded.run(flooded.now + 60, MAXIMUM, 10**9)
    assert sum(step.finished for step in second) >= 0.99 * most


def test_few_requests_of_ours_among_many_of_others_change_nothing() -> None:
    """A few requests do not use the window, so waiting and preemptions are no reason to cut it."""
    window = WindowController(MINIMUM, MAXIMUM, 700)
    engine = Engine(512, lognormal(4), others=1000, comfortable=200)
    course = drive(engine, 60, window=window, supply=20, told=True)
    assert engine.preemptions > 1000
    assert {step.window for step in course} == {700}


@pytest.mark.parametrize("initial", [64, DEFAULT_WINDOW, 700])
def test_share_of_a_full_server_is_kept_and_not_raised(initial: int) -> None:
    """Beside other clients that fill the server the window hardly falls and never rises."""
    window = WindowController(MINIMUM, MAXIMUM, initial)
    engine = Engine(512, lognormal(4), others=1000)
    drive(engine, 10, window=window, supply=0, told=True)
    course = drive(engine, 120, window=window, told=True)
    assert 0.9 * initial <= min(step.window for step in course)
    assert max(step.window for step in course) <= initial
    engine.others = 0
    assert drive(engine, 30, window=window, told=True)[-1].window >= 512 + RESERVE_FLOOR


# The window: a recorded course


class Recorded(NamedTuple):
    """One reading of a recorded course; `finished` counts from its start."""

    seconds: float
    running: int
    waiting: int
    kv_cache_percent: float
    in_flight: int
    window: int
    finished: int


def recorded() -> list[Recorded]:
    """Return a course recorded on an H100 with 80 GB, vLLM 0.26.0 and 512 slots, 2026-11-23.

    8B-shaped dummy weights; two jobs of 3,000 requests, and after each 3,000 of another client.
    """
    path = Path(__file__).parent / "traces" / "h100-8b-512.json"
    return [Recorded(*reading) for reading in json.loads(path.read_text("utf-8"))["readings"]]


def follow(
    window: WindowController, course: list[Recorded], *, told: bool = True
) -> list[tuple[Recorded, int]]:
    """Return each reading with the window that the controller gives for it."""
    before, sizes = course[0].finished, []
    for one in course:
        load = Load(one.running, one.waiting, one.kv_cache_percent / 100, 0)
        limited = one.in_flight >= one.window - 1 if told else None
        finished, before = one.finished - before, one.finished
        sizes.append(window.update(load, one.in_flight, finished, one.seconds, limited=limited))
    return list(zip(course, sizes, strict=True))


def test_recorded_load_of_others_leaves_the_window() -> None:
    """All the while that only others' requests run and wait, the window stays what it was."""
    window = WindowController(MINIMUM, MAXIMUM, 699)
    followed = follow(window, recorded())
    idle = [
        (before[1], now[1])
        for before, now in pairwise(followed)
        if not now[0].in_flight and now[0].finished == before[0].finished
    ]
    assert len(idle) > 80
    assert all(before == now for before, now in idle)
    assert window.window >= 512 + RESERVE_FLOOR


@pytest.mark.parametrize(("begin", "end", "size"), [(14, 48, 699), (132, 162, 735)])
def test_recorded_steady_work_keeps_the_window(begin: int, end: int, size: int) -> None:
    """With a reserve waiting for 512 full slots, and while a job runs out, nothing changes."""
    steady = [one for one in recorded() if begin <= one.seconds < end]
    window = WindowController(MINIMUM, MAXIMUM, size)
    assert {now for _, now in follow(window, steady)} == {size}


def test_recorded_excess_is_taken_back() -> None:
    """Where 1,024 were in flight for 512 slots, some readings bring the window near them."""
    excess = [one for one in recorded() if 4 < one.seconds < 14]
    sizes = [now for _, now in follow(WindowController(MINIMUM, MAXIMUM, 1024), excess)]
    assert sizes == sorted(sizes, reverse=True)
    assert 512 + RESERVE_FLOOR <= sizes[-1] <= 1.6 * 512


def test_recorded_cold_start_is_not_given_more_than_it_takes_in() -> None:
    """While 300 run, 200 wait and 85 a second are taken in, 512 in flight are enough."""
    cold = [one for one in recorded() if one.seconds < 6]
    window = WindowController(MINIMUM, MAXIMUM, 512)
    assert {now for _, now in follow(window, cold)} == {512}


@pytest.mark.parametrize("told", [True, False])
def test_recorded_stall_at_the_minimum_is_left_at_once(told: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Where 7 of 8 in flight were read for 22 s, the first reading with some running grows."""
    stall = [one for one in recorded() if 100 <= one.seconds < 122 and one.in_flight]
    assert {one.in_flight for one in stall} == {7, 8}
    sizes = [size for _, size in follow(WindowController(8, MAXIMUM, 8), stall, told=told)]
    assert sizes[0] > 8


def test_window_does_not_grow_while_it_is_not_the_limit() -> None:
    """A job with fewer requests than the window leaves the window as it is."""
    course = drive(Engine(1024, lognormal(4)), 20, supply=100)
    assert {step.window for step in course} == {DEFAULT_WINDOW}


def test_thrashing_engine_gets_less_and_is_not_driven_back_at_once() -> None:
    """Preemptions shrink the window gently until they are few, and it stays useful."""
    window = WindowController(MINIMUM, MAXIMUM)
    engine = Engine(512, lognormal(8), comfortable=200, memory=512)
    course = drive(engine, 60, window=window)
    early = engine.preemptions
    course = drive(engine, 120, window=window)
    assert (engine.preemptions - early) / 120 < 0.1 * (512 - 200)
    assert min(step.window for step in course) >= 150
    assert max(jumps(course)) <= 0.1


def test_few_preemptions_change_nothing() -> None:
    """A preemption now and then among many finished requests is no reason to run fewer."""
    window = WindowController(MINIMUM, MAXIMUM, 1200)
    sizes = {
        window.update(Load(1000, 200, 0.95, reading), 1200, 50, reading * 0.5)
        for reading in range(50)
    }
    assert min(sizes) >= 1200


# The window: figures that are absent, wrong or hostile


def test_engine_without_figures_keeps_the_default() -> None:
    """An engine without figures gets a fixed window, whatever is finished."""
    window = WindowController(MINIMUM, MAXIMUM)
    sizes = {window.update(Load(), 128, 1000, reading * 0.5) for reading in range(100)}
    assert sizes == {DEFAULT_WINDOW}


def test_figures_that_fail_for_a_while_keep_the_window() -> None:
    """A window that was found is not given up because the figures cannot be read."""
    window = WindowController(MINIMUM, MAXIMUM)
    found = drive(Engine(1024, lognormal(4)), 30, window=window)[-1].window
    assert window.update(Load(), found, 100, 1000.0) == found
    nan = Load(math.nan, math.inf)  # type: ignore[arg-type]
    assert window.update(nan, found, 100, 1001.0) == found


@pytest.mark.parametrize("hidden", ["running", "waiting"])
def test_one_of_two_figures_is_enough(hidden: str) -> None:
    """A figure that the engine does not give is taken from what is in flight."""
    window = WindowController(MINIMUM, MAXIMUM)
    engine = Engine(64, lognormal(4))
    for reading in range(120):
        finished = engine.run(reading * 0.5, window.window, 10**9)
        told = engine.load()
        load = Load(waiting=told.waiting) if hidden == "running" else Load(running=told.running)
        window.update(load, engine.in_flight, finished, reading * 0.5)
    assert 64 + RESERVE_FLOOR <= window.window <= 110


def test_figures_between_nothing_and_nonsense_do_not_swing() -> None:
    """A trace that alternates between none and a million waiting moves the window little."""
    window = WindowController(MINIMUM, MAXIMUM)
    sizes = [
        window.update(Load(100, waiting, 0.5, 0), window.window, 10, reading * 0.5)
        for reading, waiting in enumerate([0, 10**6] * 100)
    ]
    assert max(sizes) <= 4 * DEFAULT_WINDOW
    assert len(set(sizes[10:])) <= 2


def test_load_of_others_on_a_shared_server_does_not_open_the_window() -> None:
    """Requests that are not ours are counted by the engine, and still bound ours."""
    window = WindowController(MINIMUM, MAXIMUM)
    for reading in range(100):
        window.update(Load(10**6, 50, 0.5, 0), window.window, 10, reading * 0.5)
    assert window.window <= 2 * DEFAULT_WINDOW


def test_counters_of_a_restarted_engine_are_no_preemptions() -> None:
    """A counter that falls means a new engine, and one that then rises by little is calm."""
    window = WindowController(MINIMUM, MAXIMUM, 88)
    sizes = [
        window.update(Load(64, 24, 0.5, counter), 88, 8, reading * 0.5)
        for reading, counter in enumerate([10**6, 0, 1, 0, 10**6])
    ]
    assert sizes[:4] == [88] * 4
    assert sizes[4] < 88


def test_clock_that_stands_still_is_survived() -> None:
    """Two readings at one time, or out of order, give no rate and no error."""
    window = WindowController(MINIMUM, MAXIMUM)
    for now in (5.0, 5.0, 4.0, 5.0, 5.1):
        assert window.update(Load(90, 38), 128, 10**9, now) == DEFAULT_WINDOW


def test_start_is_brought_within_the_bounds() -> None:
    """The bounds hold from the beginning, and impossible ones are refused."""
    assert WindowController(8, 64).window == 64
    assert WindowController(200, 300).window == 200
    with pytest.raises(ValueError, match="minimum"):
        WindowController(0, 10)
    with pytest.raises(ValueError, match="minimum"):
        WindowController(11, 10)


counts = st.none() | st.integers(-(10**12), 10**12) | st.just(math.nan) | st.just(math.inf)
loads = st.builds(
    Load,
    running=counts,
    waiting=counts,
    kv_cache_use=st.none() | st.floats(),
    preemptions=counts,
)
sane_loads = st.builds(
    Load,
    running=st.integers(0, 2000),
    waiting=st.integers(0, 2000),
    kv_cache_use=st.none() | st.floats(0, 1),
    preemptions=st.none() | st.integers(0, 100),
)
readings = st.tuples(sane_loads, st.floats(0, 1.5), st.integers(0, 3000), st.floats(0, 3))


@given(
    st.lists(
        st.tuples(loads, st.integers(-5, 10**6), st.integers(0, 10**6), st.floats(0, 1e6)),
        max_size=60,
    ),
    st.integers(1, 100),
    st.integers(0, 5000),
)
def test_window_stays_in_bounds(
    trace: list[tuple[Load, int, int, float]], minimum: int, span: int
) -> None:
    """Whatever is read, the window is a whole number within its bounds."""
    window = WindowController(minimum, minimum + span)
    for load, in_flight, finished, now in trace:
        size = window.update(load, in_flight, finished, now)
        assert isinstance(size, int)
        assert minimum <= size <= minimum + span
        assert size == window.window


def replay(trace: list[tuple[Load, float, int, float]]) -> tuple[WindowController, float]:
    """Return a controller that has seen a trace, and the time at its end."""
    window = WindowController(MINIMUM, MAXIMUM)
    now = 0.0
    for load, share, finished, step in trace:
        now += step
        window.update(load, int(share * window.window), finished, now)
    return window, now


@given(st.lists(readings, max_size=20), readings, st.integers(0, 5000), st.integers(0, 1000))
def test_more_waiting_or_preempted_never_opens_the_window(
    trace: list[tuple[Load, float, int, float]],
    last: tuple[Load, float, int, float],
    more_waiting: int,
    more_preempted: int,
) -> None:
    """Of two readings after the same past, the one with more waiting gets no larger window."""
    load, share, finished, step = last
    worse_waiting = Load(
        load.running, (load.waiting or 0) + more_waiting, load.kv_cache_use, load.preemptions
    )
    worse_preempted = Load(
        load.running,
        load.waiting,
        load.kv_cache_use,
        None if load.preemptions is None else load.preemptions + more_preempted,
    )
    sizes = []
    for variant in (load, worse_waiting, worse_preempted):
        window, now = replay(trace)
        in_flight = int(share * window.window)
        sizes.append(window.update(variant, in_flight, finished, now + step))
    assert sizes[1] <= sizes[0]
    assert sizes[2] <= sizes[0]


@given(st.lists(readings, max_size=20), readings)
def test_unchanging_figures_lead_to_an_unchanging_window(
    trace: list[tuple[Load, float, int, float]], last: tuple[Load, float, int, float]
) -> None:
    """After any past, an engine whose figures stay the same gets a window that stays the same."""
    window, now = replay(trace)
    load, _, finished, _ = last
    sizes = []
    for reading in range(400):
        in_flight = min(window.window, (load.running or 0) + (load.waiting or 0))
        sizes.append(window.update(load, in_flight, finished, now + reading * 0.5))
    assert len(set(sizes[-50:])) == 1


@given(
    st.lists(readings, max_size=20),
    st.lists(st.tuples(loads, st.floats(0, 1e6), st.none() | st.booleans()), max_size=20),
)
def test_nothing_in_flight_never_moves_the_window(
    trace: list[tuple[Load, float, int, float]],
    idle: list[tuple[Load, float, bool | None]],
) -> None:
    """After any past, and whatever the engine then shows, an idle window stays as it is."""
    window, _ = replay(trace)
    found = window.window
    for load, now, limited in idle:
        assert window.update(load, 0, 0, now, limited=limited) == found


@given(st.lists(readings, max_size=30))
def test_same_trace_gives_the_same_windows(trace: list[tuple[Load, float, int, float]]) -> None:
    """A recorded trace replays exactly: nothing but the arguments decides."""
    assert replay(trace)[0].window == replay(trace)[0].window

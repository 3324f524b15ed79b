"""The congestion window: it finds what a server takes from its answers alone, and settles."""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.engine.congestion import FORGIVEN_WINDOWS, INITIAL_WINDOW, CongestionWindow

MAXIMUM = 4096
# A refusal comes at once, and its place in the window rests for a moment.
REFUSED_AFTER_S, REST_S = 0.02, 0.5


def lognormal(mean_s: float, sigma: float = 0.8) -> Callable[[random.Random, int], float]:
    """Return a source of times to an answer that vary as those of answers do."""
    return lambda rng, _: rng.lognormvariate(math.log(mean_s) - sigma**2 / 2, sigma)


def batching(rng: random.Random, running: int) -> float:
    """The time to an answer of a server that becomes slower the more it runs, and gives more."""
    return (1 + running / 100) * lognormal(1.0)(rng, running)


@dataclass
class Server:
    """A server that shows no figures, and a client that fills each free place at once.

    `slots` requests run and the rest waits in its queue; above `limit` in all it refuses, and
    a `refused` share whatever it has to do; a request that takes longer than `timeout_s` is
    given up by the client.
    """

    service: Callable[[random.Random, int], float] = field(default_factory=lambda: lognormal(1.0))
    slots: float = math.inf
    limit: float = math.inf
    refused: float = 0.0
    timeout_s: float = math.inf
    seed: int = 1
    now: float = 0.0
    answers: int = 0
    refusals: int = 0
    timeouts: int = 0
    # The window over time, in request-seconds, since the last call of `settled`.
    _area: float = 0.0
    _since: float = 0.0
    _sent: dict[int, float] = field(default_factory=dict)
    _running: set[int] = field(default_factory=set)
    _queue: list[int] = field(default_factory=list)
    _events: list[tuple[float, int, str]] = field(default_factory=list)
    _serial: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def run(self, window: CongestionWindow, until: float) -> "Server":
        """Let time pass."""
        self._fill(window)
        while self._events and self._events[0][0] <= until:
            at, number, what = heapq.heappop(self._events)
            self._area += window.window * (at - self.now)
            self.now = at
            launched_at, flying = self._sent[number], len(self._sent)
            if what == "refused":
                self.refusals += 1
                window.overload(launched_at, at)
                heapq.heappush(self._events, (at + REST_S, number, "rested"))
                continue
            del self._sent[number]
            if what == "done":
                self._running.discard(number)
                if self._queue:
                    self._begin(self._queue.pop(0))
                if at - launched_at > self.timeout_s:
                    self.timeouts += 1
                    window.overload(launched_at, at)
                else:
                    self.answers += 1
                    window.answered(launched_at, at, flying)
            self._fill(window)
        return self

    def mean_window(self) -> float:
        """Return the mean window since the last call."""
        span, area = self.now - self._since, self._area
        self._since, self._area = self.now, 0.0
        return area / span

    def settled(self, window: CongestionWindow, begin: float, end: float) -> tuple[float, int]:
        """Return the mean window and the answers between two moments, in seconds."""
        self.run(window, begin).mean_window()
        before = self.answers
        mean = self.run(window, end).mean_window()
        return mean, self.answers - before

    def _fill(self, window: CongestionWindow) -> None:
        while len(self._sent) < window.window:
            self._serial += 1
            self._sent[self._serial] = self.now
            inside = len(self._running) + len(self._queue)
            if inside >= self.limit or self._rng.random() < self.refused:
                heapq.heappush(self._events, (self.now + REFUSED_AFTER_S, self._serial, "refused"))
            elif len(self._running) >= self.slots:
                self._queue.append(self._serial)
            else:
                self._begin(self._serial)

    def _begin(self, number: int) -> None:
        self._running.add(number)
        took = self.service(self._rng, len(self._running))
        heapq.heappush(self._events, (self.now + took, number, "done"))


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("limit", [1, 3, 10, 40])
def test_a_limit_is_found_by_its_refusals(limit: int, seed: int) -> None:
    """The window settles within a fifth of what a server takes, or one request."""
    window = CongestionWindow(1, MAXIMUM)
    mean, answers = Server(limit=limit, seed=seed).settled(window, 200, 400)
    assert limit - max(1, 0.2 * limit) <= mean <= limit + max(1, 0.2 * limit)
    # What is refused is little, and costs little: a perfect client would get `limit` a second.
    assert answers >= 0.85 * limit * 200


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("slots", [1, 8, 16, 64, 256])
def test_a_queue_is_not_filled_where_only_latency_grows(slots: int, seed: int) -> None:
    """A server that lets requests wait gets all that it can run and not many times that."""
    window = CongestionWindow(1, MAXIMUM)
    mean, answers = Server(slots=slots, seed=seed).settled(window, 300, 600)
    assert mean <= max(3 * INITIAL_WINDOW, 4 * slots)
    assert answers >= 0.85 * slots * 300


def test_a_slow_server_of_one_slot_times_nothing_out() -> None:
    """200 requests of half a second each, with 15 s for each, as from the issue of a user."""
    window = CongestionWindow(1, MAXIMUM)
    server = Server(lognormal(0.5, 0.1), slots=1, timeout_s=15).run(window, 100)
    assert (server.timeouts, server.answers >= 195) == (0, True)


def test_a_wave_of_time_outs_cuts_once_a_round_trip() -> None:
    """However many were sent before it, they halve the window once."""
    window = CongestionWindow(1, MAXIMUM, 128)
    cuts = [window.overload(0.0, 10.0 + number / 100) for number in range(128)]
    assert (window.window, cuts.count(True)) == (64, 1)


def test_a_server_that_gives_more_the_more_it_runs_is_filled() -> None:
    """The rate of a batching engine grows with the window, and so does the window."""
    window = CongestionWindow(1, MAXIMUM)
    mean, _ = Server(batching).settled(window, 300, 600)
    assert mean > 150


def test_a_limit_that_moves_is_followed() -> None:
    """Down within some round trips; up by one a clean window, and faster once it is forgotten."""
    window = CongestionWindow(1, MAXIMUM)
    server = Server(limit=10).run(window, 60)
    for limit, until, most in [(3, 90, 4.5), (30, 400, 40.0), (10, 430, 13.0)]:
        server.limit = limit
        server.run(window, until - 15).mean_window()
        mean = server.run(window, until).mean_window()
        assert 0.6 * limit <= mean <= most


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("refused", [0.01, 0.1, 0.5])
def test_refusals_that_no_window_ends_do_not_close_it(refused: float, seed: int) -> None:
    """Where one of two backends is gone the other one still gets work to do at once."""
    window = CongestionWindow(1, MAXIMUM)
    mean, _ = Server(slots=64, refused=refused, seed=seed).settled(window, 300, 900)
    assert mean >= 5


def test_an_overload_is_forgotten() -> None:
    """After enough clean windows the rate rules again, and the governor's limit is lifted."""
    window = CongestionWindow(1, MAXIMUM, 10)
    for _ in range(10):
        window.overload(0.0, 0.0)
    assert window.overloaded
    now = 1.0
    for _ in range(FORGIVEN_WINDOWS + 2):
        for _ in range(max(window.window, 8)):
            window.answered(now, now + 1, window.window)
        now += 2
    assert not window.overloaded


def test_a_window_that_is_not_used_is_not_judged() -> None:
    """A job's tail, or a pause of ours, says nothing of what the server takes."""
    window = CongestionWindow(1, MAXIMUM)
    for number in range(1000):
        window.answered(float(number), number + 1.0, 2)
    assert window.window == INITIAL_WINDOW


@given(
    bounds=st.tuples(st.integers(1, 50), st.integers(0, 200)),
    events=st.lists(
        st.tuples(st.booleans(), st.floats(0, 5), st.floats(0, 5), st.integers(0, 300)),
        max_size=400,
    ),
)
def test_whatever_comes_the_window_stays_within_its_bounds(
    bounds: tuple[int, int], events: list[tuple[bool, float, float, int]]
) -> None:
    """Answers and refusals in any order and at any time."""
    low, high = bounds[0], sum(bounds)
    window, now = CongestionWindow(low, high), 0.0
    for refused, step_s, age_s, in_flight in events:
        now += step_s
        if refused:
            window.overload(now - age_s, now)
        else:
            window.answered(now - age_s, now, in_flight)
        assert low <= window.window <= high


@pytest.mark.parametrize("bounds", [(0, 1), (2, 1)])
def test_bounds_that_make_no_sense_are_refused(bounds: tuple[int, int]) -> None:
    """They are the caller's mistake."""
    with pytest.raises(ValueError, match="bounds"):
        CongestionWindow(*bounds)

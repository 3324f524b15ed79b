"""The window: how many requests may be in flight.

Purpose: a controller that is fed with the engine's own load figures and answers with a
number, so that the engine always has the next request waiting and not many more.
Invariants: pure, so that a recorded trace replays exactly; the window stays within its
bounds whatever is read (nothing, nonsense, counters that jump); steady readings settle it.
Known limits: it assumes that a finished request is replaced at once; on a server that
others use too, up to as many of their requests as we have in flight count as ours.
"""

import math
from collections import deque
from typing import NamedTuple

from inbox_daemon.engine.base import Load

# For an engine that shows no figures, and to begin with.
DEFAULT_WINDOW = 128
# The window keeps what runs in the engine and a reserve in flight.  The reserve is the
# largest of a fixed number of requests, of a share of what runs, because requests that began
# together end together, and of what is finished in some seconds, while replacements travel.  More
# than they need costs the daemon: with 800 in flight a request took it 1.4 times as long.
RESERVE_FLOOR, RESERVE_SHARE, RESERVE_S = 4, 0.25, 0.02
# How many reserves waiting are too many, and for how many readings before it counts:
# requests wait for a moment too while the engine reads the prompts of a cold start.
EXCESS, EXCESS_READINGS = 2.0, 3
# With less than this share of the window in flight, the window is not why requests wait.
USED_SHARE = 0.75
# So far below the window, at least, a sample may show it though the window is the limit.
SLACK = 2
# A reading just after many requests finished shows fewer than can run, so peaks are held.
PEAK_READINGS = 5
# The preempted among all that left the engine's slots, above which more only costs; for
# this many readings from then on the window stands still, and for this many it grows slowly.
THRASH_SHARE, STILL_READINGS, CAREFUL_READINGS = 0.2, 10, 50
# From here on the KV cache, and not the window, limits what runs.
FULL_KV = 0.9
# Completions are counted over at least this many seconds, or their rate is noise.
RATE_SPAN_S = 0.2
# From here on a growing window takes half a step: each request too many holds memory.
LARGE = 512
# A cold engine is given what it takes in within this many readings beyond what it has.
RAMP_READINGS = 4


class _Reading(NamedTuple):
    """One update's figures, made sane."""

    running: int
    waiting: int
    in_flight: int
    used: bool  # so much is in flight that the window can be why requests wait
    intake: int  # how many began to run since the last reading
    kv_full: bool
    thrashing: bool
    rising: bool  # more run than in the last readings
    limited: bool  # the window was what kept requests back
    hungry: bool  # limited, little waits, and the figures know of what is in flight
    drained: bool  # nothing waits


class WindowController:
    """Decides how many requests may be in flight.

    The engine should always have the next request waiting, and not many more.  While none
    waits and the window is the limit it doubles (from 512 on it grows by half), and once
    some only waited it takes small steps.
    """

    def __init__(self, minimum: int, maximum: int, initial: int = DEFAULT_WINDOW) -> None:
        """Take the bounds and the start, in requests; without figures the start stays.

        Raises ValueError: the bounds are not 1 <= minimum <= maximum.
        """
        if not 1 <= minimum <= maximum:
            raise ValueError("the bounds must be 1 <= minimum <= maximum")
        self._bounds = minimum, maximum
        self._window = max(minimum, min(maximum, initial))
        self._at: float | None = None
        self._rate: float | None = None
        self._preemptions: int | None = None
        self._recent: deque[int] = deque([0], maxlen=PEAK_READINGS)
        self._finished, self._saturated = 0, False
        # How many readings in a row were so, and how many are left to be careful for.
        self._hungry = self._excessive = self._careful = 0

    @property
    def window(self) -> int:
        """How many requests may be in flight now."""
        return self._window

    def update(
        self,
        load: Load,
        in_flight: int,
        finished_since: int,
        now: float,
        *,
        limited: bool | None = None,
    ) -> int:
        """Return the window after this reading of the engine's figures.

        `in_flight` counts the requests sent and not answered, `finished_since` those
        answered since the last call, `now` is the monotonic clock in seconds, `limited`
        says whether the window was all that kept requests back; None: not known, and
        `in_flight` near the window tells.  Made for a call each 0.5 to 1 s.  Figures may
        be absent, late by one reading, or wrong.  A reading while nothing of ours is in
        flight says nothing of our window, and changes nothing.
        """
        if in_flight <= 0 and finished_since <= 0:
            # Keep what was found; the next work finds an engine that is cold, or others' by now.
            self._preempted(_figure(load.preemptions))
            self._recent.extend([0] * PEAK_READINGS)
            self._hungry = self._excessive = self._finished = 0
            self._at = now
            return self._window
        self._measure(finished_since, now)
        reading = self._sane(load, max(0, in_flight), finished_since, limited=limited)
        if reading is None:
            return self._window
        self._recent.append(reading.running)
        waiting = reading.waiting > EXCESS * self._reserve()
        excessive = waiting and reading.used and not reading.rising
        # Too many and too few one after the other is nonsense, and no reason to grow.
        growing = reading.hungry and not self._excessive
        self._hungry = self._hungry + 1 if growing else 0
        self._excessive = self._excessive + 1 if excessive else 0
        self._careful = CAREFUL_READINGS if reading.thrashing else max(0, self._careful - 1)
        low, high = self._bounds
        self._window = max(low, min(high, self._next(reading)))
        return self._window

    def _measure(self, finished: int, now: float) -> None:
        self._finished += finished
        span = RATE_SPAN_S if self._at is None else now - self._at
        if span < RATE_SPAN_S:
            return
        if self._at is not None:
            rate = self._finished / span
            self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
        self._at, self._finished = now, 0

    def _sane(
        self, load: Load, in_flight: int, finished: int, *, limited: bool | None
    ) -> _Reading | None:
        running, waiting = _figure(load.running), _figure(load.waiting)
        preempted = self._preempted(_figure(load.preemptions))
        if running is None and waiting is None:
            return None
        running = in_flight - (waiting or 0) if running is None else running
        # Others' requests, or nonsense, must neither open our window nor close it.
        running = max(0, min(running, in_flight))
        waiting = min(in_flight - running if waiting is None else waiting, in_flight)
        rising = running > 1 + 1.05 * max(self._recent)
        intake = max(0, running - self._recent[-1]) + max(0, finished)
        few = int(max(RESERVE_FLOOR, RESERVE_SHARE * running)) // 4
        # A cold engine that takes in ever more is not left to run out first.
        low = max(few, running // 3) if rising and not self._saturated else few
        used = in_flight >= USED_SHARE * self._window
        if not limited:
            # Where it is not known, a little less counts too: a place may not be refilled yet.
            slack = max(SLACK, self._window // 10) if limited is None else 0
            limited = in_flight >= self._window - slack
        known = running + max(few, RESERVE_FLOOR) >= 0.75 * in_flight
        return _Reading(
            running=running,
            waiting=waiting,
            in_flight=in_flight,
            used=used,
            intake=intake,
            kv_full=load.kv_cache_use is not None and load.kv_cache_use >= FULL_KV,
            # The ones: a single preemption while nothing happened to finish is no state.
            thrashing=used and preempted > 1 + THRASH_SHARE * (1 + preempted + finished),
            rising=rising,
            limited=limited,
            hungry=limited and waiting <= low and known,
            drained=waiting <= few,
        )

    def _preempted(self, counter: int | None) -> int:
        """Return the preemptions since the last reading; a restarted engine counts from 0."""
        before, self._preemptions = self._preemptions, counter
        return 0 if before is None or counter is None else max(0, counter - before)

    def _next(self, reading: _Reading) -> int:
        target = max(self._recent) + self._reserve()
        if reading.thrashing:
            self._saturated = True
            if reading.in_flight > self._window:
                return self._window  # the last cut is not felt yet; another would go too far
            # Towards fewer running, a little each time, and never to a standstill.
            less = int(0.95 * min(self._window, target))
            return min(self._window, max(less, reading.running // 2))
        if self._excessive >= EXCESS_READINGS:
            self._saturated = True
            goal = target + self._reserve() // 2
            # From further off a larger share of the way, to be quick from a cold start.
            share = 2 if reading.waiting > 2 * EXCESS * self._reserve() else 4
            return min(self._window, goal + max(0, self._window - goal) // share)
        grown = self._window
        if self._hungry and self._careful:
            # After preemptions the window stands still at first, then takes small steps.
            if self._careful <= CAREFUL_READINGS - STILL_READINGS:
                grown += max(1, self._window // 16)
        elif self._hungry:
            doubling = not self._saturated or self._hungry > 1
            large = self._window >= LARGE
            step = self._window // 2 if large else self._window
            grown += step if doubling else max(1, self._window // 4)
            if reading.kv_full:
                grown = max(self._window, min(grown, target + self._reserve()))
            elif not reading.drained:
                ramp = reading.in_flight + RAMP_READINGS * reading.intake + self._reserve()
                grown = max(self._window, min(grown, ramp))
        lacking = reading.limited and reading.waiting < self._reserve()
        return max(grown, target) if lacking and not self._careful else grown

    def _reserve(self) -> int:
        of_running = RESERVE_SHARE * max(self._recent)
        return math.ceil(max(RESERVE_FLOOR, of_running, RESERVE_S * (self._rate or 0.0)))


def _figure(figure: float | None) -> int | None:
    # Typed as a count, but it comes from another program's text.
    if figure is None or not math.isfinite(figure):
        return None
    return max(0, int(figure))

"""How much the card allows: chunk size and heat.

Purpose: two controllers, each fed with readings of the card.  `ChunkSizer` follows the
GPU memory that others use, `ThermalGovernor` the temperature.
Invariants: pure; answers stay within bounds whatever is read (nothing, nonsense);
steady readings settle them.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

# From "Adaptive chunks" in DESIGN.md: below this share of the memory, this many.
CHUNK_STEPS = ((70.0, 5000), (80.0, 3000), (90.0, 1000), (math.inf, 500))
# How far below a border the reading must fall before chunks grow again.
CHUNK_MARGIN_PERCENT = 3.0

# The share of the window that is left just below the temperature that closes it, and
# while the card throttles.
COOLEST_FACTOR, THROTTLED_FACTOR = 0.25, 0.5
# A closed governor that loses its sensor opens after so many readings without one.
PATIENCE_READINGS = 30


def chunk_size(others_percent: float | None, chunk_min: int, chunk_max: int) -> int:
    """Return how many requests a chunk may hold.

    `others_percent`: the GPU memory that others use, 0 to 100; None means the largest chunk.
    """
    return ChunkSizer(chunk_min, chunk_max).update(others_percent)


class ChunkSizer:
    """`chunk_size` with a memory, so that a reading around a border does not swing."""

    def __init__(self, chunk_min: int, chunk_max: int) -> None:
        """Take the configured bounds, in requests."""
        self._bounds = chunk_min, chunk_max
        self._step = 0

    def update(self, others_percent: float | None) -> int:
        """Return the chunk size after this reading: smaller at once, larger with a margin."""
        if others_percent is None or not math.isfinite(others_percent):
            self._step = 0
            return self._bounds[1]
        certain = _step(others_percent)
        relaxed = _step(others_percent + CHUNK_MARGIN_PERCENT)
        self._step = max(certain, min(self._step, relaxed))
        low, high = self._bounds
        return max(low, min(high, CHUNK_STEPS[self._step][1]))


def _step(percent: float) -> int:
    return next(index for index, (border, _) in enumerate(CHUNK_STEPS) if percent < border)


class Gate(StrEnum):
    """What the governor allows."""

    OPEN = "open"
    SHRINK = "shrink"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Allowance:
    """The governor's answer; `reason` is a sentence for the status, empty when open."""

    gate: Gate
    factor: float
    reason: str = ""

    def apply(self, window: int) -> int:
        """Return how many requests may be in flight: none when closed, else at least one."""
        return 0 if self.gate is Gate.CLOSED else max(1, int(window * self.factor))


OPEN = Allowance(Gate.OPEN, 1.0)
THROTTLED = Allowance(
    Gate.SHRINK,
    THROTTLED_FACTOR,
    f"the GPU slows itself down for heat: {THROTTLED_FACTOR:.0%} of the window is used",
)


class ThermalGovernor:
    """Spares a hot card: shrinks the window, closes it, and opens it once it is cool."""

    def __init__(self, warn_c: float, stop_c: float, resume_c: float) -> None:
        """Take three temperatures in degrees Celsius, resume below warn below stop."""
        self._warn_c, self._stop_c, self._resume_c = warn_c, stop_c, resume_c
        self._closed, self._missing = False, 0

    def update(self, temperature_c: float | None, *, throttled: bool = False) -> Allowance:
        """Return what is allowed after this reading.

        `throttled` says that the card slows itself down because of heat.  A card
        without a sensor is never held back; one that loses its sensor while closed
        stays closed for PATIENCE_READINGS readings.
        """
        if temperature_c is None or not math.isfinite(temperature_c):
            return self._without_sensor(throttled=throttled)
        self._missing = 0
        # Once closed the lower border counts: hot means not yet cool.
        hot = temperature_c >= self._resume_c if self._closed else temperature_c > self._stop_c
        self._closed = hot
        if hot:
            return self._close(f"is at {temperature_c:g} °C")
        if temperature_c > self._warn_c:
            return self._shrink(temperature_c, throttled=throttled)
        return THROTTLED if throttled else OPEN

    def _without_sensor(self, *, throttled: bool) -> Allowance:
        self._missing += 1
        self._closed = self._closed and self._missing <= PATIENCE_READINGS
        if self._closed:
            return self._close("was hot and its temperature cannot be read")
        return THROTTLED if throttled else OPEN

    def _close(self, what: str) -> Allowance:
        until = f"nothing is sent until it is below {self._resume_c:g} °C"
        return Allowance(Gate.CLOSED, 0.0, f"the GPU {what}: {until}")

    def _shrink(self, temperature_c: float, *, throttled: bool) -> Allowance:
        share = (temperature_c - self._warn_c) / (self._stop_c - self._warn_c)
        factor = 1.0 - share * (1.0 - COOLEST_FACTOR)
        factor = min(factor, THROTTLED_FACTOR) if throttled else factor
        what = f"the GPU is at {temperature_c:g} °C, above {self._warn_c:g} °C"
        return Allowance(Gate.SHRINK, factor, f"{what}: {factor:.0%} of the window is used")

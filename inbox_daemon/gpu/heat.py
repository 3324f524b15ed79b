"""How much of the window the card's temperature and its throttling allow.

Purpose: a controller that is fed with readings of the card.
Invariants: pure; answers stay within bounds whatever is read (nothing, nonsense);
steady readings settle them, and readings that hover around a border do not swing them:
what is taken at once is given back only with a margin or after a while.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

# The share of the window that is left just below the temperature that closes it, while
# the card slows itself down, and at most while it is warm.
COOLEST_FACTOR, THROTTLED_FACTOR, WARMEST_FACTOR = 0.25, 0.5, 0.95
# How far below the warning the temperature must fall before the whole window is used again.
WARM_MARGIN_C = 3.0
# A sensor that stops reporting keeps its last value for this many readings.
PATIENCE_READINGS = 30
# After this many readings in a row without throttling the card runs freely again.
CALM_READINGS = 15


class GovernorState(StrEnum):
    """What the governor allows; at WARN all of it, and there is something to tell."""

    OPEN = "open"
    WARN = "warn"
    SHRINK = "shrink"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Allowance:
    """The governor's answer.

    `reason` is a sentence for the status, empty when open; `cause` a word for what is
    behind it, which stays the same while the figures in the sentence change.
    """

    gate: GovernorState
    factor: float
    reason: str = ""
    cause: str = ""

    def apply(self, window: int) -> int:
        """Return how many requests may be in flight: none when closed, else at least one."""
        return 0 if self.gate is GovernorState.CLOSED else max(1, int(window * self.factor))


OPEN = Allowance(GovernorState.OPEN, 1.0)


class Latch:
    """On at once, and off after a number of calm readings in a row."""

    def __init__(self, calm_readings: int) -> None:
        """Begin off."""
        self._needed = self._calm = calm_readings

    def update(self, *, on: bool) -> bool:
        """Return whether it is on after this reading."""
        self._calm = 0 if on else self._calm + 1
        return self._calm < self._needed


class ThermalGovernor:
    """Spares a hot or throttled card: shrinks the window, closes it, opens it once it is cool."""

    def __init__(self, warn_c: float, stop_c: float, resume_c: float) -> None:
        """Take three temperatures in degrees Celsius, resume below warn below stop."""
        self._warn_c, self._stop_c, self._resume_c = warn_c, stop_c, resume_c
        self._calm_c = max(resume_c, warn_c - WARM_MARGIN_C)
        self._gate, self._celsius, self._missing = GovernorState.OPEN, 0.0, 0
        self._slowing, self._slowed_for = Latch(CALM_READINGS), ""

    def update(self, temperature_c: float | None, *, throttled: str = "") -> Allowance:
        """Return what is allowed after this reading.

        `throttled` says for what the card slows itself down, empty where it does not; it
        counts until CALM_READINGS readings in a row were without.  A card without a
        sensor is never held back for heat; one that loses its sensor is taken to be as
        warm as it was, for PATIENCE_READINGS readings.
        """
        self._slowed_for = throttled or self._slowed_for
        slowed = self._slowing.update(on=bool(throttled))
        if temperature_c is not None and math.isfinite(temperature_c):
            self._missing, self._celsius = 0, temperature_c
            self._gate = self._gate_at(temperature_c)
        else:
            self._missing += 1
            self._gate = self._gate if self._missing <= PATIENCE_READINGS else GovernorState.OPEN
        if self._gate is GovernorState.CLOSED:
            what = f"is at {self._celsius:g} °C"
            if self._missing:
                what = "was hot and its temperature cannot be read"
            until = f"nothing is sent until it is below {self._resume_c:g} °C"
            return Allowance(GovernorState.CLOSED, 0.0, f"the GPU {what}: {until}", "heat")
        if self._gate is GovernorState.SHRINK:
            share = (self._celsius - self._warn_c) / (self._stop_c - self._warn_c)
            factor = min(1.0 - share * (1.0 - COOLEST_FACTOR), WARMEST_FACTOR)
            what = f"the GPU is at {self._celsius:g} °C, and above {self._warn_c:g} °C it is spared"
            if not slowed:
                return Allowance(GovernorState.SHRINK, factor, _share_words(what, factor), "heat")
            factor = min(factor, THROTTLED_FACTOR)
            what = f"{what}; it slows itself down for {self._slowed_for}"
            return Allowance(
                GovernorState.SHRINK, factor, _share_words(what, factor), "heat and throttling"
            )
        if not slowed:
            return OPEN
        words = _share_words(f"the GPU slows itself down for {self._slowed_for}", THROTTLED_FACTOR)
        return Allowance(GovernorState.SHRINK, THROTTLED_FACTOR, words, "throttling")

    def _gate_at(self, celsius: float) -> GovernorState:
        """Each state is left at a lower border than it is entered."""
        # Once closed the lower border counts: hot means not yet cool.
        if celsius > self._stop_c or (
            self._gate is GovernorState.CLOSED and celsius >= self._resume_c
        ):
            return GovernorState.CLOSED
        if celsius > self._warn_c or (
            self._gate is GovernorState.SHRINK and celsius >= self._calm_c
        ):
            return GovernorState.SHRINK
        return GovernorState.OPEN


def _share_words(what: str, factor: float) -> str:
    return f"{what}: {factor:.0%} of the window is used"

"""Energy: what the card used, and for which job.

Purpose: joules between two readings of the card, and their shares for the running jobs.
Invariants: pure; joules are never negative and never more than a card can use in the
time; what cannot be measured is None and not 0; shares add up to what was measured, and
what was used while no job ran is charged to none.
Known limits: one card is read; what other programs compute on it while a job runs is
charged to the job; a job is charged for the whole of each interval in which it did
anything.  Where readings fail meanwhile the sum is too small.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

# Two readings that are further apart say nothing of what was between: the machine slept,
# or the driver was gone.
MAX_GAP_S = 30.0
# No card uses more; a counter that says so was another one's, or counted while we slept.
MAX_POWER_W = 3000.0
# A counter is brought up to date some times a second, so it may be this much behind.
COUNTER_LAG_S = 0.5


@dataclass(slots=True)
class EnergyMeter:
    """Joules between two readings: by the card's counter, else by its power."""

    _now: float = -math.inf
    _energy_j: float | None = None
    _power_w: float | None = None

    def update(self, now: float, energy_j: float | None, power_w: float | None) -> float | None:
        """Return what was used since the last reading, in joules; None if it is not known.

        `now` is in seconds of the monotonic clock, `energy_j` the card's counter.
        """
        power_w = _within(power_w, MAX_POWER_W)
        passed_s = now - self._now
        used = None
        if 0 <= passed_s <= MAX_GAP_S:
            if energy_j is not None and self._energy_j is not None:
                # A counter that was set back or runs wild is not believed.
                most = MAX_POWER_W * (passed_s + COUNTER_LAG_S)
                used = _within(energy_j - self._energy_j, most)
            if used is None and power_w is not None and self._power_w is not None:
                used = (power_w + self._power_w) / 2 * passed_s
        self._now, self._energy_j, self._power_w = now, energy_j, power_w
        return used


def _within(figure: float | None, most: float) -> float | None:
    return figure if figure is not None and 0 <= figure <= most else None


class Consumer(Protocol):
    """A running job, as far as its energy goes."""

    @property
    def tokens_made(self) -> int:
        """Output tokens of the answers since this process took the job up."""

    @property
    def in_flight(self) -> int:
        """How many of its requests are with the engine."""

    def use_energy(self, joules: float) -> None:
        """Take a share."""


@dataclass(slots=True)
class EnergyAccounts:
    """Charges the running jobs with what the card uses."""

    _meter: EnergyMeter = field(default_factory=EnergyMeter)
    _seen: dict[str, int] = field(default_factory=dict)

    def charge(
        self,
        now: float,
        energy_j: float | None,
        power_w: float | None,
        jobs: Iterable[tuple[str, Consumer]],
    ) -> None:
        """Take a reading and share what was used since the last one among the jobs, by id.

        The shares are those of the output tokens that were finished meanwhile; where
        none were, as with embeddings or long answers, those of the requests in flight.
        """
        running = dict(jobs)
        tokens = {job_id: job.tokens_made for job_id, job in running.items()}
        made = {job_id: count - self._seen.get(job_id, 0) for job_id, count in tokens.items()}
        self._seen = tokens
        joules = self._meter.update(now, energy_j, power_w)
        if joules is None:
            return
        if not any(made.values()):
            made = {job_id: job.in_flight for job_id, job in running.items()}
        whole = sum(made.values())
        for job_id, part in made.items():
            if part:
                running[job_id].use_energy(joules * part / whole)

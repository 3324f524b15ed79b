"""What no single moment shows: how fast jobs go, and when the engine died last.

Purpose: the memory between two documents.
Invariants: pure; `now` is in seconds of the monotonic clock.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from inbox_daemon.contract.facts import QueueFacts

RATE_WINDOW_S = 60.0


class Speed(NamedTuple):
    """Requests and output tokens a second."""

    requests: float
    output_tokens: float


@dataclass(slots=True)
class Rate:
    """How fast a job goes, over the last minute."""

    samples: deque[tuple[float, int, int]] = field(default_factory=deque)

    def add(self, now: float, requests: int, tokens: int) -> None:
        """Take a sample."""
        self.samples.append((now, requests, tokens))
        while now - self.samples[0][0] > RATE_WINDOW_S:
            self.samples.popleft()

    def per_second(self) -> Speed | None:
        """Return the speed; None until there are samples of two moments."""
        first, last = self.samples[0], self.samples[-1]
        passed = last[0] - first[0]
        if passed <= 0:
            return None
        return Speed((last[1] - first[1]) / passed, (last[2] - first[2]) / passed)


@dataclass(slots=True)
class Trends:
    """The rates of the running jobs, and the engine's last death."""

    _rates: dict[str, Rate] = field(default_factory=dict)
    _generation: int = 0
    _died_at: float | None = None

    def speeds(self, now: float, queue: QueueFacts) -> dict[str, Speed]:
        """Take a look at the jobs; return the speed of each that has one, by id."""
        running = {job.record.id: job.progress for job in queue.jobs if job.running}
        self._rates = {job_id: self._rates.get(job_id, Rate()) for job_id in running}
        for job_id, progress in running.items():
            self._rates[job_id].add(now, progress.ended, progress.output_tokens)
        found = {job_id: rate.per_second() for job_id, rate in self._rates.items()}
        return {job_id: speed for job_id, speed in found.items() if speed is not None}

    def died_s_ago(self, now: float, generation: int) -> float | None:
        """Take the engine's generation; return the seconds since it last grew, None if never."""
        if generation != self._generation:
            self._generation, self._died_at = generation, now
        return None if self._died_at is None else now - self._died_at

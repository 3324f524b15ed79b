"""Attempts: requests in flight, each to its verdict.

Purpose: send one request, apply the table of outcomes, and ask whether the engine is
dead where the table says so.
Invariants: every launched flight arrives exactly once; nothing here changes a job.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from inbox_daemon.engine.base import Engine, Reply
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.request.line import Request, engine_body, request_id
from inbox_daemon.run.budget import Budget, Holding
from inbox_daemon.run.outcomes import Action, Verdict, judge


class Flight(NamedTuple):
    """One request in flight, the generation of the engine that it went to, and what it holds.

    `ahead` is how many were in flight when it was launched; `alone` says that it was sent to
    see whether the server answers at all.  A tuple like Arrival, because a
    frozen dataclass takes three times as long to make.
    """

    run: RunningJob
    ordinal: int
    line: int
    custom_id: str
    generation: int
    launched_at: float
    held: Holding
    ahead: int = 0
    alone: bool = False


class Arrival(NamedTuple):
    """The end of a flight.

    `verdict` is None when the attempt was abandoned; `lost` is True when the engine
    died under it.
    """

    flight: Flight
    verdict: Verdict | None
    reply: Reply | None = None
    lost: bool = False


class Attempts:
    """All requests in flight."""

    def __init__(
        self, engine: Engine, timeout_s: float, budget: Budget, wake: Callable[[], None]
    ) -> None:
        """Send to `engine` as the budget allows; call `wake` whenever something has arrived."""
        self._engine, self._budget = engine, budget
        self._timeout_s = timeout_s
        self._wake = wake
        self._tasks: dict[asyncio.Task[Arrival], Flight] = {}
        self._arrived: list[Arrival] = []
        self._bug: BaseException | None = None
        self._flying: dict[int, int] = {}

    def __len__(self) -> int:
        """How many are in flight, those that have arrived but were not taken included."""
        return len(self._tasks) + len(self._arrived)

    @property
    def stale(self) -> bool:
        """Whether any flight went to an engine that is gone by now."""
        current = self._engine.info.generation
        return any(count for made, count in self._flying.items() if made != current)

    def launch(
        self,
        run: RunningJob,
        ordinal: int,
        request: Request,
        generation: int,
        *,
        alone: bool = False,
    ) -> None:
        """Start one attempt with the job's model, at the engine of that generation."""
        line, now = run.input.line_of(ordinal), time.monotonic()
        body = engine_body(request, run.record.model)
        held = self._budget.hold(len(body))
        ahead = len(self)
        flight = Flight(run, ordinal, line, request.custom_id, generation, now, held, ahead, alone)
        run.marks.start(ordinal)
        self._flying[flight.generation] = self._flying.get(flight.generation, 0) + 1
        task = asyncio.create_task(self._attempt(flight, request.url, body))
        self._tasks[task] = flight
        task.add_done_callback(self._land)

    def take(self) -> list[Arrival]:
        """Hand over what has arrived since the last call.

        Raises what an attempt should never raise, so that the daemon ends and recovers.
        """
        if self._bug is not None:
            raise self._bug
        arrived, self._arrived = self._arrived, []
        for arrival in arrived:
            self._flying[arrival.flight.generation] -= 1
        return arrived

    def abort(self, run: RunningJob) -> None:
        """Abandon the flights of one job; they arrive without a verdict."""
        for task, flight in list(self._tasks.items()):
            if flight.run is run:
                task.cancel()

    async def finish(self, grace_s: float) -> None:
        """Wait for all flights for at most `grace_s` seconds, then abandon the rest."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _land(self, task: asyncio.Task[Arrival]) -> None:
        """Take a flight's end, also of one that was cancelled before its first step."""
        flight = self._tasks.pop(task)
        if task.cancelled() or task.exception() is not None:
            self._bug = self._bug or (None if task.cancelled() else task.exception())
            arrival = Arrival(flight, None)
        else:
            arrival = task.result()
        self._arrived.append(arrival)
        flight.held.land(len(arrival.reply.body) if arrival.reply else 0)
        self._wake()

    async def _attempt(self, flight: Flight, url: str, body: bytes) -> Arrival:
        name = request_id(flight.run.record.id, flight.line)
        sending = self._engine.send(url, body, name, self._timeout_s, flight.held)
        del body  # the engine lets it go as soon as it is sent
        reply = await sending
        verdict = judge(reply)
        # A server that is busy is asked only where it has not answered anything yet.
        asked = verdict.action is Action.PROBE or (verdict.action is Action.LATER and flight.alone)
        lost = asked and await self._engine.lost(flight.generation)
        if verdict.action is Action.LATER and not lost:
            lost = self._engine.info.generation != flight.generation
        return Arrival(flight, verdict, reply if isinstance(reply, Reply) else None, lost)

"""The budget: how many bytes the requests in flight, and what came back, may hold.

Purpose: count the bodies in flight, the answers that come in and what is not committed
yet, and hold back what does not fit: a request that would be sent, an answer that would
be read.
Invariants: what is held stays within the bound or, where nothing else would free any,
within the bound and one request or answer; answers come before new requests, and among
them the one that has waited longest.
Known limits: of an answer that waits for room the connection has read some hundred KiB
by then, which are not counted; nor is what JSON takes while one answer is parsed.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable


class Budget:
    """The bytes that are held for requests, of at most so many."""

    def __init__(self, most: int) -> None:
        """Hold nothing yet, and at most `most` bytes."""
        self._most = most
        # Of requests in flight and of answers that come in; of answers that have arrived and
        # were not taken yet; of outcomes that are not committed.
        self._flying = self._arrived = self._uncommitted = 0
        # How many answers are being read, those that wait left out.
        self._reading = 0
        self._queue: deque[tuple[asyncio.Future[None], Holding, int]] = deque()
        # The one answer that is read whatever is held, as nothing else would go on.
        self._passing: Holding | None = None

    @property
    def held(self) -> int:
        """How many bytes are held now."""
        return self._flying + self._arrived + self._uncommitted

    @property
    def waiting(self) -> int:
        """The number of answers that wait for room, which a commit may make."""
        return len(self._queue)

    def allows(self, size: int) -> bool:
        """Return whether a request of that many bytes may be sent now.

        One that is larger than the whole budget may where nothing else is held.
        """
        held = self.held
        return not self._queue and (held + size <= self._most or held == 0)

    def hold(self, body: int) -> "Holding":
        """Hold the body of a request, of that many bytes, as it is sent."""
        self._flying += body
        return Holding(self, body)

    def settle(self, uncommitted: int) -> None:
        """Take note that all that had arrived was taken; so much is not committed by now."""
        self._arrived, self._uncommitted = 0, uncommitted
        if self._queue:
            self._serve()

    # -- one request, by its holding --------------------------------------------------

    def take(self, holding: "Holding", count: int) -> Awaitable[None] | None:
        """Hold `count` bytes more of an answer; return what to wait for, if they do not fit."""
        if not holding.reads:  # then its body is sent, and gone
            holding.reads = True
            self._flying -= holding.size
            self._reading += 1
            holding.size = 0
        held = self._flying + self._arrived + self._uncommitted
        if (held + count > self._most or self._queue) and holding is not self._passing:
            return self._wait(holding, count)
        self._flying += count
        holding.size += count
        return None

    def land(self, holding: "Holding", answer: int) -> None:
        """Take note of a request's end: `answer` bytes of it have arrived, none without one."""
        self._flying -= holding.size
        self._arrived += answer
        self._reading -= holding.reads
        if self._passing is holding:
            self._passing = None
        if self._queue:
            self._serve()

    async def _wait(self, holding: "Holding", count: int) -> None:
        entry = asyncio.get_running_loop().create_future(), holding, count
        self._queue.append(entry)
        self._reading -= 1
        self._serve()
        try:
            await entry[0]
        except asyncio.CancelledError:
            if entry in self._queue:
                self._queue.remove(entry)
                self._reading += 1
            raise

    def _serve(self) -> None:
        """Let the answers go on for which there is room."""
        while self._queue:
            future, holding, count = self._queue[0]
            if self.held + count > self._most:
                # What is being read will arrive, and what has arrived will be committed.
                if self._reading or self._arrived or self._uncommitted:
                    return
                self._passing = holding
            self._queue.popleft()
            self._reading += 1
            self._flying += count
            holding.size += count
            if not future.done():  # else it was abandoned, and lands in a moment
                future.set_result(None)


class Holding:
    """What one request in flight holds: its body, then its answer (engine/base.py: Room)."""

    __slots__ = ("_budget", "reads", "size")

    def __init__(self, budget: Budget, body: int) -> None:
        """Hold its body, which the budget counts already."""
        self._budget, self.size, self.reads = budget, body, False

    def take(self, count: int) -> Awaitable[None] | None:
        """Hold `count` bytes more of its answer; return what to wait for, if they do not fit."""
        return self._budget.take(self, count)

    def land(self, answer: int) -> None:
        """Take note of its end: `answer` bytes have arrived, or none."""
        self._budget.land(self, answer)

"""The marks of one running job: which requests are open, in flight, due again or over.

Purpose: everything about a job's requests that needs neither its files nor the ledger.
Invariants: pure, time is passed in; each request carries exactly one mark; a request is
started only below the limit that is committed, and after a charged failure only once that
is committed; a byte a request, whatever its line holds.
Words: an *ordinal* is the 0-based count of a request in its file.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

OPEN, IN_FLIGHT, RETRYING, ENDED = range(4)
# Among so many of the next requests the smallest is chosen to be sent alone.
ALONE_AMONG = 64

# When a request may be tried again, in seconds of the monotonic clock, and its ordinal.
Due = tuple[float, int]


class Marks:
    """The requests of one job by ordinal, each with one mark."""

    def __init__(
        self, total: int, limit: int, ended: Iterable[int] = (), failed: Iterable[int] = ()
    ) -> None:
        """Take `total` requests, of which those below `limit` may have been started.

        `ended` have their outcome; `failed` are open and have been charged before: they are
        due at once, as the daemon was down meanwhile.
        """
        self.in_flight = 0
        self._marks = bytearray(total)
        self._admitted = self._limit = limit
        self._searched = 0
        self._due: list[Due] = []
        self._uncommitted: list[Due] = []
        for ordinal in ended:
            self._marks[ordinal] = ENDED
        for ordinal in failed:
            self._marks[ordinal] = RETRYING
            heapq.heappush(self._due, (0.0, ordinal))
        self._ready = deque(ordinal for ordinal in range(limit) if self._marks[ordinal] == OPEN)

    # -- figures --------------------------------------------------------------------

    @property
    def retrying(self) -> int:
        """The number of requests that wait for a further attempt."""
        return len(self._due) + len(self._uncommitted)

    @property
    def startable(self) -> int:
        """The number of new requests that may start before the next chunk is needed."""
        return len(self._ready)

    @property
    def fully_admitted(self) -> bool:
        """Whether no further chunk is left."""
        return self._admitted >= len(self._marks)

    @property
    def admitting(self) -> bool:
        """Whether a chunk waits for the commit that lets it start."""
        return self._admitted != self._limit

    @property
    def admitted(self) -> int:
        """The number of requests in the chunks admitted so far, committed or not."""
        return self._admitted

    @property
    def spent(self) -> bool:
        """Whether no new request is left to start, only retries."""
        return self.fully_admitted and not self.admitting and not self._ready

    def is_open(self, ordinal: int) -> bool:
        """Return whether a request has no outcome yet."""
        return self._marks[ordinal] != ENDED

    def next_open(self) -> int | None:
        """Return a request that is neither in flight nor over, for a job that is ended early."""
        total = len(self._marks)
        while self._searched < total and self._marks[self._searched] in {IN_FLIGHT, ENDED}:
            self._searched += 1
        return self._searched if self._searched < total else None

    # -- admission ------------------------------------------------------------------

    def admit(self, size: int) -> tuple[int, int]:
        """Let the next `size` requests start after the next commit; return first and last."""
        first = self._admitted
        self._admitted = min(first + size, len(self._marks))
        return first, self._admitted - 1

    def next_ordinal(self, now: float) -> int | None:
        """Return the request to start now: one whose backoff is over, else the next new one.

        `now` is in seconds of the monotonic clock.
        """
        if self._due and self._due[0][0] <= now:
            return heapq.heappop(self._due)[1]
        while self._ready:
            ordinal = self._ready.popleft()
            if self._marks[ordinal] == OPEN:
                return ordinal
        return None

    def next_alone(self, size_of: Callable[[int], int]) -> int | None:
        """Return the request that is sent alone, to see whether the server answers any.

        A small one that was not tried yet, by `size_of` an ordinal, else the one that waits
        since longest, even if its time has not come: so that none is tried again and again.
        """
        fresh = [o for o in islice(self._ready, ALONE_AMONG) if self._marks[o] == OPEN]
        if fresh:
            chosen = min(fresh, key=size_of)
            self._ready.remove(chosen)
            return chosen
        while self._ready and self._marks[self._ready[0]] != OPEN:
            self._ready.popleft()
        if not self._ready and self._due:
            return heapq.heappop(self._due)[1]
        return None

    def put_back(self, ordinal: int) -> None:
        """Let a request be the next one after all, which `next_ordinal` has just returned."""
        if self._marks[ordinal] == OPEN:
            self._ready.appendleft(ordinal)
        else:
            heapq.heappush(self._due, (0.0, ordinal))

    def next_due(self) -> float | None:
        """Return when the next backoff is over, in seconds of the monotonic clock."""
        return self._due[0][0] if self._due else None

    def take_suspect(self, ordinal: int) -> bool:
        """Take a request out of its turn for the bisection; False if it may not run now."""
        if self._marks[ordinal] in {ENDED, IN_FLIGHT}:
            return False
        self._due = [entry for entry in self._due if entry[1] != ordinal]
        heapq.heapify(self._due)
        return all(entry[1] != ordinal for entry in self._uncommitted)

    def put_off(self, ordinal: int) -> None:
        """Let a suspect wait until the bisection takes it."""
        if self.take_suspect(ordinal):
            self._marks[ordinal] = RETRYING
            heapq.heappush(self._due, (math.inf, ordinal))

    # -- attempts -------------------------------------------------------------------

    def start(self, ordinal: int) -> None:
        """Mark a request as in flight."""
        self._marks[ordinal] = IN_FLIGHT
        self.in_flight += 1

    def abandon(self, ordinal: int, due: float = 0.0) -> None:
        """Put a request that was in flight back among the open ones, uncharged.

        It comes next, or after `due` in seconds of the monotonic clock.
        """
        self._leave(ordinal, RETRYING)
        heapq.heappush(self._due, (due, ordinal))

    def fail(self, ordinal: int, due: float) -> None:
        """Note a charged failure; the next attempt may start at `due`, once committed."""
        self._leave(ordinal, RETRYING)
        self._uncommitted.append((due, ordinal))

    def end(self, ordinal: int) -> None:
        """Note that a request has its outcome."""
        self._leave(ordinal, ENDED)

    def _leave(self, ordinal: int, mark: int) -> None:
        if self._marks[ordinal] == IN_FLIGHT:
            self.in_flight -= 1
        self._marks[ordinal] = mark

    # -- commit ---------------------------------------------------------------------

    def take_uncommitted(self) -> tuple[list[Due], range]:
        """Hand over the failures and the chunk that the next commit makes count."""
        failures, self._uncommitted = self._uncommitted, []
        return failures, range(self._limit, self._admitted)

    def committed(self, failures: list[Due], chunk: Sequence[int]) -> None:
        """Let failures be tried again, and a chunk start in the order given."""
        self._limit += len(chunk)
        self._ready.extend(chunk)
        for entry in failures:
            heapq.heappush(self._due, entry)

"""The group commit: many outcomes, one fdatasync a job, one ledger transaction.

Purpose: decide when outcomes are made to count, and do it in the right order.
Invariants: output before offset: the journals are on the disk before the ledger says
how long they are; one commit at a time; a failed one ends the daemon, because a later
one would succeed over the hole.
"""

import asyncio
import time
from collections.abc import Sequence

from inbox_daemon.contract.config import RunConfig
from inbox_daemon.jobs import ordering
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.running import Batch, RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.run.poison import Bisection

COMMIT_RESULTS = 512
COMMIT_BYTES = 8 << 20
HUNT = "hunt"


class GroupCommit:
    """Commits what the running jobs have gathered."""

    def __init__(self, run: RunConfig, queue: ActiveJobs, ledger: Ledger, hunt: Bisection) -> None:
        """Commit the jobs of `queue` and the state of `hunt`, as `run` has it."""
        self._queue, self._ledger, self._hunt = queue, ledger, hunt
        self._interval_s, self._reorder = run.commit_interval_s, run.reorder
        self._committed_at = time.monotonic()
        self.busy = False
        self.hunt_changed = False
        self._writing_hunt = False

    @property
    def hunt_unsaved(self) -> bool:
        """Say whether the hunt's newest state is not on the disk yet."""
        return self.hunt_changed or self._writing_hunt

    @property
    def due_at(self) -> float | None:
        """When the next commit is due, in seconds of the monotonic clock; None if never."""
        if any(run.dirty for run in self._queue.runs()):
            return self._committed_at + self._interval_s
        return None

    def due(self, now: float, *, draining: bool) -> bool:
        """Say whether to commit at `now` (monotonic)."""
        runs = [run for run in self._queue.runs() if run.dirty]
        if self.hunt_changed or any(run.urgent for run in runs):
            return True
        if sum(run.pending for run in runs) >= COMMIT_RESULTS or draining:
            return bool(runs)
        if sum(run.pending_bytes for run in runs) >= COMMIT_BYTES:
            return True
        return bool(runs) and now - self._committed_at >= self._interval_s

    async def commit(self) -> None:
        """Make everything that has been gathered count.

        Raises LedgerError, OSError: it does not count; the daemon must end.
        """
        batches = [(run, run.take_batch()) for run in self._queue.runs() if run.dirty]
        state = {HUNT: self._hunt.dump()} if self.hunt_changed else {}
        self._writing_hunt, self.hunt_changed = self.hunt_changed, False
        # From here, not from its end: what arrives during a slow commit waits no longer.
        self._committed_at = time.monotonic()
        await asyncio.to_thread(self._write, batches, state)
        for run, batch in batches:
            run.committed(batch)
        self._writing_hunt = self.busy = False

    def _write(
        self, batches: list[tuple[RunningJob, Batch]], state: dict[str, bytes | None]
    ) -> None:
        for run, batch in batches:
            run.journal.flush(batch.lines, batch.length)
        self._ledger.checkpoint([batch.checkpoint for _, batch in batches], state)
        if self._reorder:
            for run, batch in batches:
                batch.chunk = _ordered(run, batch.chunk)


def _ordered(run: RunningJob, chunk: Sequence[int]) -> Sequence[int]:
    """A chunk in the order that helps the engine; here, because it takes a thread's time."""
    if not chunk:
        return chunk
    last = chunk[-1] + 1 == run.total
    lines = (run.input.read(ordinal, ordering.READ_BYTES) for ordinal in chunk)
    return [chunk[index] for index in ordering.order(lines, long_first=last)]

"""The group commit: many outcomes, one fdatasync a job, one ledger transaction.

Purpose: decide when outcomes are made to count, and do it in the right order.
Invariants: output before offset: the results are on the disk before the ledger says
how long they are; one commit at a time; a failed one ends the daemon, because a later
one would succeed over the hole.
"""

import asyncio
import time
from typing import Protocol

from inbox_daemon.contract.config import RunConfig
from inbox_daemon.jobs import ordering
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.running import Batch, RunningJob
from inbox_daemon.ledger import Ledger

COMMIT_RESULTS = 512
COMMIT_BYTES = 8 << 20


class FurtherState(Protocol):
    """What else the same transaction makes last, when it has changed."""

    @property
    def dirty(self) -> bool:
        """Whether it differs from what was taken last."""

    def take_state(self) -> dict[str, bytes | None]:
        """Hand over the stored form by key, None to remove one; not dirty from then on."""


class GroupCommit:
    """Commits what the running jobs have gathered."""

    def __init__(
        self, run: RunConfig, jobs: ActiveJobs, ledger: Ledger, further: FurtherState
    ) -> None:
        """Commit `jobs` together with `further`, at the intervals of `run`."""
        self._jobs, self._ledger, self._further = jobs, ledger, further
        self._interval_s, self._reorder = run.commit_interval_s, run.reorder
        self._committed_at = time.monotonic()
        self.busy = False
        self._writing_further = False

    @property
    def further_unsaved(self) -> bool:
        """Whether the newest further state is not on the disk yet."""
        return self._further.dirty or self._writing_further

    @property
    def due_at(self) -> float | None:
        """When the next commit is due, in seconds of the monotonic clock; None if never."""
        if any(run.dirty for run in self._jobs.runs()):
            return self._committed_at + self._interval_s
        return None

    def due(self, now: float, *, draining: bool) -> bool:
        """Return whether to commit at `now` (monotonic)."""
        if self.busy:
            return False
        runs = [run for run in self._jobs.runs() if run.dirty]
        if self._further.dirty or any(run.urgent for run in runs):
            return True
        if sum(run.pending for run in runs) >= COMMIT_RESULTS or draining:
            return bool(runs)
        if sum(run.pending_bytes for run in runs) >= COMMIT_BYTES:
            return True
        return bool(runs) and now - self._committed_at >= self._interval_s

    async def commit(self) -> None:
        """Make everything that has been gathered count; `busy` from the call to the end.

        Raises LedgerError, OSError: it does not count; the daemon must end.
        """
        batches = [(run, run.take_batch()) for run in self._jobs.runs() if run.dirty]
        self._writing_further = self._further.dirty
        state = self._further.take_state() if self._writing_further else {}
        # From here, not from its end: what arrives during a slow commit waits no longer.
        self._committed_at = time.monotonic()
        await asyncio.to_thread(self._write, batches, state)
        for run, batch in batches:
            run.committed(batch)
        self._writing_further = self.busy = False

    def _write(
        self, batches: list[tuple[RunningJob, Batch]], state: dict[str, bytes | None]
    ) -> None:
        """Write everything, and put each new chunk in order; blocks, in a thread."""
        for run, batch in batches:
            run.results.flush(batch.lines, batch.length)
        self._ledger.checkpoint([batch.checkpoint for _, batch in batches], state)
        if self._reorder:
            for run, batch in batches:
                chunk = batch.chunk
                if not chunk:
                    continue
                last = chunk[-1] + 1 == run.total
                lines = (run.input.read(ordinal, ordering.READ_BYTES) for ordinal in chunk)
                batch.chunk = [chunk[i] for i in ordering.order(lines, long_first=last)]

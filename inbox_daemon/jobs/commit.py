"""The group commit: many outcomes, one fdatasync a job, one ledger transaction.

Purpose: decide when outcomes are made to count, and do it in the right order.
Invariants: output before offset: the results are on the disk before the ledger says
how long they are; one commit at a time; a full disk is waited for; a file that cannot be written
costs its own job alone, and one that takes no more, by a quota, keeps its own job waiting; a
failed transaction ends the daemon, because a later one would
succeed over the hole.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from inbox_daemon.contract.config import RunConfig
from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.jobs import ordering
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.running import Batch, RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import DISK_FULL

COMMIT_RESULTS = 512
COMMIT_BYTES = 8 << 20
# Between two attempts to write to a full disk.
FULL_PAUSE_S = 1.0


class _DiskFullError(OSError):
    """Results could not be written; unlike a failed transaction this may be tried again."""


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
        self,
        run: RunConfig,
        jobs: ActiveJobs,
        ledger: Ledger,
        further: FurtherState,
        has_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """Commit `jobs` together with `further`, at the intervals of `run`.

        `has_room` says whether the disk has room, so that a file that takes no more is its
        job's own trouble; it is called in a thread.
        """
        self._jobs, self._ledger, self._further = jobs, ledger, further
        self._has_room = has_room
        # What could not be written for the job's own trouble, at most one batch a job, and when
        # that is tried again.
        self._put_off: list[tuple[RunningJob, Batch]] = []
        self._again_at = 0.0
        self._interval_s, self._reorder = run.commit_interval_s, run.reorder
        self._most_bytes = min(COMMIT_BYTES, run.max_in_flight_bytes // 4)
        self._committed_at = time.monotonic()
        self.busy = False
        # Why a commit waits in its middle, in words, and how often one has waited.
        self.disk_full: str | None = None
        self.waits = 0
        # Set from outside: a commit does not wait any more.
        self.draining = False
        self._writing_further = False

    @property
    def further_unsaved(self) -> bool:
        """Whether the newest further state is not on the disk yet."""
        return self._further.dirty or self._writing_further

    @property
    def due_at(self) -> float | None:
        """When the next commit is due, in seconds of the monotonic clock; None if never."""
        if self._gathered():
            return self._committed_at + self._interval_s
        return self._again_at if self._put_off else None

    def due(self, now: float, *, draining: bool, pressed: bool = False) -> bool:
        """Return whether to commit at `now` (monotonic).

        `pressed`: answers wait for the memory that a commit frees.
        """
        if self.busy:
            return False
        runs = self._gathered()
        if self._further.dirty or any(run.urgent for run in runs):
            return True
        if self._put_off and now >= self._again_at:
            return True
        if sum(run.pending for run in runs) >= COMMIT_RESULTS or draining or pressed:
            return bool(runs)
        if sum(run.pending_bytes for run in runs) >= self._most_bytes:
            return True
        return bool(runs) and now - self._committed_at >= self._interval_s

    def _gathered(self) -> list[RunningJob]:
        """The jobs of which there is something to commit, and nothing that was put off."""
        return [run for run in self._jobs.runs() if run.dirty and run.unwritten is None]

    async def commit(self) -> None:
        """Make everything that has been gathered count; `busy` from the call to the end.

        A job whose file cannot be written is left out, with its `damage` set; one whose file
        takes no more waits, `unwritten`.
        Raises LedgerError, OSError: it does not count; the daemon must end.
        """
        batches = [(run, run.take_batch()) for run in self._gathered()]
        for run, batch in self._put_off:
            if run.damage is not None:
                run.results.give_up(run.damage)
            elif self._jobs.run_of(run.record.id) is run:
                batches.append((run, batch))
        self._put_off = []
        self._writing_further = self._further.dirty
        state = self._further.take_state() if self._writing_further else {}
        # From here, not from its end: what arrives during a slow commit waits no longer.
        self._committed_at = time.monotonic()
        unwritten, written = list(batches), list[tuple[RunningJob, Batch]]()
        while True:
            try:
                await asyncio.to_thread(self._write, unwritten, written, state)
            except _DiskFullError as error:
                # The results are in memory alone, and nothing more is sent until they are written.
                if self.draining:
                    raise
                self.disk_full = f"results wait to be written: {error}"
                self.waits += 1
                await asyncio.sleep(FULL_PAUSE_S)
            else:
                self.disk_full = None
                break
        for run, batch in written:
            run.committed(batch)
        self._writing_further = self.busy = False

    def _write(
        self,
        unwritten: list[tuple[RunningJob, Batch]],
        written: list[tuple[RunningJob, Batch]],
        state: dict[str, bytes | None],
    ) -> None:
        """Write everything, and put each new chunk in order; blocks, in a thread.

        What is written moves to the other list, so that after an error it goes on from there.
        """
        while unwritten:
            self._flush(*unwritten[0], written)
            del unwritten[0]
        if self._put_off and not (written or state):
            return
        self._ledger.checkpoint([batch.checkpoint for _, batch in written], state)
        for run, batch in written if self._reorder else []:
            chunk = batch.chunk
            if not chunk:
                continue
            last = chunk[-1] + 1 == run.total
            lines = (run.input.read(ordinal, ordering.READ_BYTES) for ordinal in chunk)
            try:
                batch.chunk = [chunk[i] for i in ordering.order(lines, long_first=last)]
            except DamagedJobError as error:
                run.damage = error

    def _flush(
        self, run: RunningJob, batch: Batch, written: list[tuple[RunningJob, Batch]]
    ) -> None:
        """Write one batch, or put it off, or see that it never can be written."""
        try:
            run.results.flush(batch.lines, batch.length)
        except DamagedJobError as error:
            run.damage = error
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            if not self._has_room():
                raise _DiskFullError(error.errno, error.strerror) from None
            self._put_off.append((run, batch))
            self._again_at = time.monotonic() + FULL_PAUSE_S
            self.waits += 1
            run.unwritten = (
                f"the results of {run.record.name} wait in memory: {error.strerror}; free some "
                "space, or raise the quota"
            )
        else:
            batch.lines.clear()
            run.unwritten = None
            written.append((run, batch))

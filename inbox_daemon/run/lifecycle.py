"""The life of a job around its requests: started, ended early, published, or set aside.

Purpose: the steps of a job that are taken once, each beside the runner's loop.
Invariants: one job is started at a time; a record changes on the disk first and never
while its job is being published; what is damaged is set aside, and the others go on.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.contract.records import DeadReason, JobRecord
from inbox_daemon.jobs import recovery
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool

log = logging.getLogger(__name__)

# A job that is more urgent by so many levels does not wait for the ones that run.
MORE_URGENT = 0.5

Publish = Callable[[RunningJob], Awaitable[None]]


class Lifecycle:
    """Starts, ends and publishes the jobs of a queue."""

    def __init__(
        self,
        spool: Spool,
        ledger: Ledger,
        queue: ActiveJobs,
        publish: Publish,
        beside: Callable[[Awaitable[None]], None],
    ) -> None:
        """Take work `beside` the loop that calls; what it raises must end that loop.

        `publish` takes a job out of the queue.
        """
        self._spool, self._ledger, self._queue = spool, ledger, queue
        self._publish, self._beside = publish, beside
        self._records = asyncio.Lock()
        self._starting = False
        self._publishing: set[str] = set()
        self._ending: set[str] = set()

    # -- start ----------------------------------------------------------------------

    def start_next(self, running: list[RunningJob], *, room: bool) -> None:
        """Begin the next job while the last one's tail runs, or a more urgent one at once.

        `running` are the jobs that may run, `room` says whether more may be in flight.
        """
        now = time.time()
        record = self._queue.next_queued(now)
        if record is None:
            return
        unspent = [run.record for run in running if not run.spent]
        urgency = self._queue.urgency(record, now) + MORE_URGENT
        more_urgent = all(urgency < self._queue.urgency(other, now) for other in unspent)
        if record.ending or (more_urgent if unspent else room):
            self.start(record)

    def start(self, record: JobRecord) -> None:
        """Begin a job, unless another is about to begin."""
        if not self._starting:
            self._starting = True
            self._beside(self._start(record))

    async def _start(self, record: JobRecord) -> None:
        try:
            await asyncio.to_thread(self._spool.start, record.id)
            await self._update(record.id, in_progress_at=time.time())
            run = await asyncio.to_thread(RunningJob, record, self._spool, self._ledger)
        except recovery.DAMAGE as error:
            await self._set_aside(record, error)
            return
        finally:
            self._starting = False
        entry = self._queue.entries[record.id]
        run.record, entry.run = entry.record, run
        log.info("job_started", extra={"job": record.name, "requests": record.requests})

    async def _set_aside(self, record: JobRecord, error: Exception) -> None:
        """Give up a job whose files are damaged; the others are not concerned."""
        note = await asyncio.to_thread(recovery.quarantine_job, record, self._spool, error)
        await asyncio.to_thread(self._ledger.forget, record.id)
        self._queue.remove(record.id)
        self._queue.note(note)

    # -- end ------------------------------------------------------------------------

    async def end(self, job_id: str, reason: DeadReason) -> None:
        """Cancel or expire an active job: what is finished will be published.

        Raises LedgerError: it is not on the disk, the daemon must end.
        """
        entry = self._queue.entries.get(job_id)
        if entry is None or entry.record.ending is None:  # the first order is the one that counts
            await self._update(job_id, ending=reason, ending_at=time.time())
        log.info("job_ending", extra={"id": job_id, "reason": reason.value})
        self._ending.discard(job_id)

    def expire(self, record: JobRecord) -> None:
        """End a job whose time is over, beside the loop."""
        over = record.expires_at is not None and record.expires_at <= time.time()
        if over and record.id not in self._ending:
            self._ending.add(record.id)
            self._beside(self.end(record.id, DeadReason.EXPIRED))

    async def _update(self, job_id: str, **changes: object) -> None:
        """Change an active job's record, on the disk first; one that is over is left alone."""
        async with self._records:
            entry = self._queue.entries.get(job_id)
            if entry is None or (entry.run is not None and entry.run.complete):
                return
            record = entry.record.model_copy(update=changes)
            await asyncio.to_thread(self._ledger.update, record)
            self._queue.replace(record)

    # -- publish --------------------------------------------------------------------

    def publish_complete(self) -> None:
        """Publish each job whose requests all have their outcome, beside the loop."""
        for run in self._queue.runs():
            if run.complete and run.record.id not in self._publishing:
                self._publishing.add(run.record.id)
                self._beside(self._publish_one(run))

    async def _publish_one(self, run: RunningJob) -> None:
        async with self._records:
            try:
                await self._publish(run)
            except DamagedJobError as error:
                run.close()
                await self._set_aside(run.record, error)
        self._publishing.discard(run.record.id)

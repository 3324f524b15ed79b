"""A job around its requests: started, expired, published, or set aside as damaged.

Purpose: the steps of a job that are taken once, each beside the runner's loop.
Invariants: one job is started at a time; a record changes on the disk first and never
while its job is being published; what is damaged is set aside, what the disk has no room
for waits, and the others go on.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from inbox_daemon.contract.config import DiskConfig
from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.contract.job_documents import ended_job
from inbox_daemon.contract.limits import publication_shortage
from inbox_daemon.contract.records import DeadReason, JobRecord
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.recovery import DAMAGE, quarantine_job
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.publish.folder import needed_bytes, publish, unbuild
from inbox_daemon.spool import Spool

log = logging.getLogger(__name__)

# A job that is more urgent by this many levels does not wait for the ones that run.
MORE_URGENT = 0.5
# How long a job waits whose next step has failed, until that is tried again.
HELD_S = 5.0


@dataclass(frozen=True, slots=True)
class Held:
    """Why a job cannot take its next step, and when that is tried again (monotonic, s)."""

    words: str
    until: float


class Lifecycle:
    """Starts, expires and publishes the active jobs."""

    def __init__(
        self,
        floor: DiskConfig,
        spool: Spool,
        ledger: Ledger,
        jobs: ActiveJobs,
        charge_energy: Callable[[], Awaitable[None]],
        beside: Callable[[Awaitable[None]], None],
    ) -> None:
        """Take work `beside` the loop that calls; what it raises must end that loop.

        Below the `floor` of free space nothing is published.  `charge_energy` charges the
        running jobs with what the card used up to now.
        """
        self._spool, self._ledger, self._jobs = spool, ledger, jobs
        self._floor, self._charge_energy, self._beside = floor, charge_energy, beside
        self._starting = False
        # One publication at a time, so that two do not count on the same room.
        self._publication = asyncio.Lock()
        # The jobs that are being published or given up, by id.
        self._leaving: set[str] = set()
        # The jobs that wait for the disk, by id, and how often one has been put off.
        self.held: dict[str, Held] = {}
        self.holds = 0
        # Grows while a job is being published: proof of progress.
        self.advanced = 0
        self._expiring: set[str] = set()
        self._binding: set[str] = set()

    # -- start ----------------------------------------------------------------------

    def start_next(self, running: list[RunningJob], unserved: set[str], *, room: bool) -> None:
        """Begin the next job while the last one's tail runs, or a more urgent one at once.

        `running` are the jobs that may run, `unserved` those whose model is not served, by
        id; `room` says whether more may be in flight.
        """
        now = self._jobs.clock.read().reckoned
        record = self._jobs.next_queued(now, self._waiting() | unserved)
        if record is None:
            return
        unspent = [run.record for run in running if not run.marks.spent]
        urgency = self._jobs.urgency(record, now) + MORE_URGENT
        more_urgent = all(urgency < self._jobs.urgency(other, now) for other in unspent)
        if record.ending or (more_urgent if unspent else room):
            self.start(record)

    def _waiting(self) -> set[str]:
        """Return which jobs are held and not to be tried again yet."""
        now = time.monotonic()
        return {job_id for job_id, held in self.held.items() if held.until > now}

    def start(self, record: JobRecord) -> None:
        """Begin a job, unless another is about to begin, or it waits."""
        if not self._starting and record.id not in self._waiting():
            self._starting = True
            self._beside(self._start(record))

    async def _start(self, record: JobRecord) -> None:
        try:
            await asyncio.to_thread(self._spool.start, record.id)
            if record.in_progress_at is None:  # else a start of the daemon has met an error
                now = self._jobs.clock.read().reckoned
                await self._jobs.update(record.id, in_progress_at=now)
            run = await asyncio.to_thread(RunningJob, record, self._spool, self._ledger)
        except DAMAGE as error:
            await self._set_aside(record, error)
            return
        except OSError as error:  # no room for its folder, or none for another descriptor
            self._hold(record, f"{record.name} cannot be started: {error.strerror}")
            return
        finally:
            self._starting = False
        self.held.pop(record.id, None)
        entry = self._jobs.entries[record.id]
        run.record, entry.run = entry.record, run
        log.info("job_started", extra={"job": record.name, "requests": record.requests})

    async def _set_aside(self, record: JobRecord, error: Exception) -> None:
        """Give up a job whose files are damaged; the others are not concerned."""
        try:
            ended = await asyncio.to_thread(
                quarantine_job, record, self._spool, self._ledger, error
            )
        except OSError as failure:
            why = f"{record.name} is damaged and cannot be moved away: {failure.strerror}"
            self._hold(record, why)
            return
        self.held.pop(record.id, None)
        self._jobs.ended(ended)

    # -- end ------------------------------------------------------------------------

    def expire(self, record: JobRecord) -> None:
        """End a job whose time is over, beside the loop."""
        at = record.expires_at
        over = at is not None and at <= self._jobs.clock.read().earliest
        if over and record.id not in self._expiring:
            self._expiring.add(record.id)
            self._beside(self._expire(record))

    async def _expire(self, record: JobRecord) -> None:
        await self._jobs.end(record.id, DeadReason.EXPIRED)
        self._expiring.discard(record.id)

    # -- model ----------------------------------------------------------------------

    def bind(self, record: JobRecord, model: str | None) -> None:
        """Bind a job that names no model to the one that is served, beside the loop.

        What is served later by default must not answer the rest of it.
        """
        if record.model is None and model is not None and record.id not in self._binding:
            self._binding.add(record.id)
            self._beside(self._bind(record, model))

    async def _bind(self, record: JobRecord, model: str) -> None:
        await self._jobs.update(record.id, model=model)
        self._binding.discard(record.id)

    # -- publish --------------------------------------------------------------------

    def publish_complete(self) -> None:
        """Publish each job whose requests all have their outcome, beside the loop."""
        for run in self._jobs.runs():
            job_id = run.record.id
            busy = job_id in self._leaving or job_id in self._waiting()
            if run.complete and not busy:
                self._leaving.add(job_id)
                self._beside(self._publish(run))

    def give_up(self, run: RunningJob, error: DamagedJobError) -> None:
        """Set a running job aside whose files cannot be used, beside the loop."""
        job_id = run.record.id
        if job_id not in self._leaving and job_id not in self._waiting():
            self._leaving.add(job_id)
            self._beside(self._give_up(run, error))

    async def _give_up(self, run: RunningJob, error: DamagedJobError) -> None:
        async with self._jobs.entries[run.record.id].changing:
            run.close()
            await self._set_aside(run.record, error)
        self._leaving.discard(run.record.id)

    async def _publish(self, run: RunningJob) -> None:
        job_id = run.record.id
        async with self._publication, self._jobs.entries[job_id].changing:
            await self._charge_energy()
            record = run.record.model_copy(update={"energy_j": run.energy_j})
            failed = run.progress.failed
            try:
                shortage = await asyncio.to_thread(self._shortage, record, failed)
                if shortage is None:
                    record = await asyncio.to_thread(
                        publish,
                        record,
                        self._spool,
                        self._ledger,
                        self._advance,
                        lambda: self._jobs.clock.read().latest,
                    )
            except DamagedJobError as error:
                run.close()
                await self._set_aside(run.record, error)
            except OSError as error:  # the disk is full all the same, or failing
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(unbuild, record, self._spool, self._ledger)
                where = error.filename or "the folder"
                self._hold(record, f"the results of {record.name} wait: {where}: {error.strerror}")
            else:
                if shortage is not None:
                    self._hold(record, f"the results of {record.name} wait: {shortage}")
                else:
                    run.close()
                    self.held.pop(job_id, None)
                    self._jobs.ended(ended_job(record))
        self._leaving.discard(job_id)

    def _shortage(self, record: JobRecord, failed: int) -> str | None:
        """Return why the disk has no room for a job's folder; blocks, use a thread."""
        needed = needed_bytes(record, self._spool, self._ledger, failed)
        return publication_shortage(*self._spool.free(), needed, self._floor)

    def _advance(self) -> None:
        self.advanced += 1

    def _hold(self, record: JobRecord, words: str) -> None:
        """Let a job wait for a while, and the others go on."""
        self.holds += 1
        before = self.held.get(record.id)
        self.held[record.id] = Held(words, time.monotonic() + HELD_S)
        if before is None or before.words != words:
            log.warning("job_held", extra={"job": record.name, "reason": words})
            self._jobs.on_change()

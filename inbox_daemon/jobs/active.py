"""The active jobs: what is queued and what is running, and every durable change of them.

Purpose: one view that intake asks for room, the runner for work and the status for
figures; one place where a job is ended early, paused, resumed, or over.
Invariants: it is rebuilt from the spool's folders and the ledger at start and changed
only after the change on the disk; oldest job first; `on_change` is called after each
change; a record never changes while its job is being published.
Threads: `load` and `named` may be called by any, the rest by the event loop's.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import orjson

from inbox_daemon.contract.facts import JobFacts, QueueFacts
from inbox_daemon.contract.health_documents import RecentJob
from inbox_daemon.contract.job_documents import recent_ended
from inbox_daemon.contract.limits import QueueLoad
from inbox_daemon.contract.names import ALL
from inbox_daemon.contract.records import DeadReason, Ended, EndedKind, JobRecord, Progress
from inbox_daemon.contract.states import Priority
from inbox_daemon.jobs.clock import CheckedClock, Correction
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.jobs.system_time import SystemTime
from inbox_daemon.ledger import Ledger

log = logging.getLogger(__name__)

# How many jobs that ended not long ago the status lists.
RECENT = 20
_PAUSED = "paused"
# A job's times that are reckoned, by the clock's word for it, and not read off.
_RECKONED = ("created_at", "arrived_at", "in_progress_at", "expires_at")


@dataclass(slots=True)
class ActiveEntry:
    """One active job: queued while `run` is None."""

    record: JobRecord
    run: RunningJob | None = None
    # Held while the record changes, and while the job is being published.
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def is_complete(self) -> bool:
        """Whether every request has its outcome, so that nothing of the job changes any more."""
        return self.run is not None and self.run.complete

    @property
    def open_requests(self) -> int:
        """The number of its requests that have no outcome yet."""
        return self.record.requests - (self.run.progress.ended if self.run else 0)


class ActiveJobs:
    """All active jobs, and the newest of those that ended."""

    def __init__(
        self, ledger: Ledger, ageing_s: float = 3600.0, clock: CheckedClock | None = None
    ) -> None:
        """Start with no job, and with what was paused when the daemon ended.

        `ageing_s` is the waiting time that raises a job by one level of priority; by `clock`,
        or the machine's as it is, jobs wait, expire and are known again.
        """
        self.clock = clock or CheckedClock(SystemTime())
        self.entries: dict[str, ActiveEntry] = {}
        self.recent: deque[RecentJob] = deque(maxlen=RECENT)
        self.last_finished: RecentJob | None = None
        self.last_rejected: RecentJob | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._ledger, self._ageing_s = ledger, ageing_s
        stored = ledger.get_state(_PAUSED)
        self.paused: set[str] = set(orjson.loads(stored)) if stored else set()

    # -- who is there ---------------------------------------------------------------

    def add(self, record: JobRecord, run: RunningJob | None = None) -> None:
        """Take up a job that lies in queued/ or running/."""
        self.entries[record.id] = ActiveEntry(record, run)
        self.on_change()

    def load(self) -> QueueLoad:
        """Return how many jobs and open requests there are; for any thread."""
        entries = list(self.entries.values())
        return QueueLoad(len(entries), sum(entry.open_requests for entry in entries))

    def named(self, name: str) -> JobRecord | None:
        """Return the active job of that name; for any thread."""
        found = (e.record for e in list(self.entries.values()) if e.record.name == name)
        return next(found, None)

    def run_of(self, job_id: str) -> RunningJob | None:
        """Return the running job of that id."""
        entry = self.entries.get(job_id)
        return entry.run if entry else None

    def runs(self, now: float | None = None) -> list[RunningJob]:
        """Return the running jobs: oldest first or, at a moment, the most urgent first."""
        runs = [e.run for _, e in sorted(self.entries.items()) if e.run is not None]
        if now is None or len(runs) < 2:  # noqa: PLR2004 - one needs no order
            return runs
        return sorted(runs, key=lambda run: self.urgency(run.record, now))

    def urgency(self, record: JobRecord, now: float) -> float:
        """Return a job's place in the order, the smallest first: its priority's level (0 to 2).

        What it has waited in inbox/ counts too.  `now` is in seconds since 1970.
        """
        since = record.created_at if record.arrived_at is None else record.arrived_at
        return self.aged(record.priority, now - since)

    def aged(self, priority: Priority, waited_s: float) -> float:
        """Return the level of what has waited so long, the smallest first.

        Each `ageing_s` raises it by one level, so that no stream of jobs of high priority can
        starve one of low priority.
        """
        return priority.level - max(waited_s, 0.0) / self._ageing_s

    def is_paused(self, record: JobRecord) -> bool:
        """Return whether the job, or all, were paused."""
        return record.id in self.paused or ALL in self.paused

    def next_queued(self, now: float, waiting: Collection[str] = frozenset()) -> JobRecord | None:
        """Return the job to start next: one that only has to be ended, else the most urgent.

        None of those that are `waiting`, by id.
        """
        found = [e.record for e in self.entries.values() if e.run is None]
        found = [record for record in found if record.id not in waiting]
        ready = [r for r in found if r.ending is not None or not self.is_paused(r)]
        return min(
            ready, key=lambda r: (r.ending is None, self.urgency(r, now), r.id), default=None
        )

    def facts(self) -> QueueFacts:
        """Return what the status shows of the queue; oldest job first."""
        load = self.load()
        return QueueFacts(
            active=load.jobs,
            open_requests=load.requests,
            jobs=tuple(
                JobFacts(
                    record=entry.record,
                    paused=self.is_paused(entry.record),
                    progress=entry.run.progress if entry.run else Progress(),
                    running=entry.run is not None,
                    retrying=entry.run.marks.retrying if entry.run else 0,
                )
                for _, entry in sorted(self.entries.items())
            ),
            recent=tuple(reversed(self.recent)),
            last_finished=self.last_finished,
            last_rejected=self.last_rejected,
        )

    # -- durable changes ------------------------------------------------------------

    async def update(self, job_id: str, **changes: object) -> None:
        """Change an active job's record; one that is over by now is left alone.

        Raises LedgerError: the change is not on the disk, the daemon must end.
        """
        entry = self.entries.get(job_id)
        # Before the lock too, or a job that is being published would hold up who asks.
        if entry is None or entry.is_complete():
            return
        async with entry.changing:
            if entry.is_complete() or self.entries.get(job_id) is not entry:
                return
            record = entry.record.model_copy(update=changes)
            await asyncio.to_thread(self._ledger.update, record)
            entry.record = record
            if entry.run is not None:
                entry.run.record = record
        self.on_change()

    async def end(self, job_id: str, reason: DeadReason) -> None:
        """Cancel or expire a job: what is finished will be published.

        The first reason is the one that counts.
        Raises LedgerError: as `update`.
        """
        entry = self.entries.get(job_id)
        if entry is not None and entry.record.ending is None:
            log.info("job_ending", extra={"id": job_id, "reason": reason.value})
            await self.update(job_id, ending=reason, ending_at=time.time())

    async def rebind(self, job_id: str, model: str) -> bool:
        """Bind a job to another model: what is not answered yet asks for that.

        Returns False where the job is over, or has nothing left to ask.
        Raises LedgerError: as `update`.
        """
        entry = self.entries.get(job_id)
        if entry is None:
            return False
        before = entry.record.model
        if before != model:
            earlier = [*entry.record.earlier_models, *([before] if before else [])]
            await self.update(job_id, model=model, earlier_models=earlier)
            log.info(
                "job_rebound", extra={"job": entry.record.name, "model": model, "before": before}
            )
        return entry.record.model == model

    async def correct(self, correction: Correction) -> None:
        """Move the times of the jobs with the clock, so that each keeps the time it has left.

        Raises LedgerError: as `update`.
        """
        since = correction.since
        for record in [entry.record for entry in self.entries.values()]:
            if since is not None and record.created_at < since:
                continue
            times = {name: getattr(record, name) for name in _RECKONED}
            moved = {k: at + correction.by_s for k, at in times.items() if at is not None}
            await self.update(record.id, **moved)

    async def pause(self, target: str) -> None:
        """Send nothing more of a job, by its id, or of ALL, a switch of its own.

        Raises LedgerError: as `update`.
        """
        await self._set_paused(self.paused | {target})

    async def resume(self, target: str) -> None:
        """Undo a pause of the same target.

        Raises LedgerError: as `update`.
        """
        await self._set_paused(self.paused - {target})

    async def _set_paused(self, targets: set[str]) -> None:
        chosen = targets & (self.entries.keys() | {ALL})  # jobs that are over need no entry
        stored = orjson.dumps(sorted(chosen))
        await asyncio.to_thread(self._ledger.put_state, _PAUSED, stored)
        self.paused = chosen
        self.on_change()

    # -- the end --------------------------------------------------------------------

    def ended(self, ended: Ended) -> None:
        """Take note that a job is over: the one place that says so in this process.

        The ledger holds the same event already (ledger/ended.py), in the transaction that
        ended the job.
        """
        self.entries.pop(ended.id, None)
        self.note(recent_ended(ended))
        self.on_change()

    def note(self, job: RecentJob) -> None:
        """Show a job among the recent ones: it ended, or was delivered again."""
        self.recent.append(job)
        if job.status == EndedKind.REJECTED:
            self.last_rejected = job
        elif job.status in {EndedKind.COMPLETED, EndedKind.CANCELLED, EndedKind.EXPIRED}:
            self.last_finished = job

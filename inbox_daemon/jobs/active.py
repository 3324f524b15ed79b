"""The active jobs: what is queued and what is running, in memory.

Purpose: one view that intake asks for room, the runner for work and the status for
figures.
Invariants: it is rebuilt from the spool's folders and the ledger at start and changed
only after the move on the disk; oldest job first.
"""

from collections import deque
from dataclasses import dataclass, field

from inbox_daemon.contract.health_documents import RecentJob
from inbox_daemon.contract.limits import QueueLoad
from inbox_daemon.contract.names import ALL
from inbox_daemon.contract.records import JobRecord
from inbox_daemon.jobs.running import RunningJob

_RECENT = 20


@dataclass(slots=True)
class ActiveEntry:
    """One active job: queued while `run` is None."""

    record: JobRecord
    run: RunningJob | None = None

    @property
    def open_requests(self) -> int:
        """How many of its requests have no outcome yet."""
        return self.record.requests - (self.run.progress.ended if self.run else 0)


@dataclass(slots=True)
class ActiveJobs:
    """All active jobs, and the newest of those that ended."""

    entries: dict[str, ActiveEntry] = field(default_factory=dict)
    ageing_s: float = 3600.0
    paused: set[str] = field(default_factory=set)
    recent: deque[RecentJob] = field(default_factory=lambda: deque(maxlen=_RECENT))
    last_finished: RecentJob | None = None
    last_rejected: RecentJob | None = None

    def add(self, record: JobRecord, run: RunningJob | None = None) -> None:
        """Take up a job that lies in queued/ or running/."""
        self.entries[record.id] = ActiveEntry(record, run)

    def remove(self, job_id: str) -> None:
        """Forget a job that has left running/."""
        del self.entries[job_id]

    def load(self) -> QueueLoad:
        """How many jobs and open requests the queue holds; for any thread."""
        entries = list(self.entries.values())
        return QueueLoad(len(entries), sum(entry.open_requests for entry in entries))

    def named(self, name: str) -> JobRecord | None:
        """The active job of that name; for any thread."""
        found = (e.record for e in list(self.entries.values()) if e.record.name == name)
        return next(found, None)

    def replace(self, record: JobRecord) -> None:
        """Take note of a job's changed record."""
        entry = self.entries[record.id]
        entry.record = record
        if entry.run is not None:
            entry.run.record = record

    def urgency(self, record: JobRecord, now: float) -> float:
        """A job's place in the order, the smallest first: its priority's level (0 to 2).

        Each `ageing_s` of waiting raises it by one level, so that no stream of jobs of
        high priority can starve one of low priority.  `now` is in seconds since 1970.
        """
        return record.priority.level - max(now - record.created_at, 0.0) / self.ageing_s

    def is_paused(self, record: JobRecord) -> bool:
        """Say whether the job, or all, were paused."""
        return record.id in self.paused or ALL in self.paused

    def next_queued(self, now: float) -> JobRecord | None:
        """The job to start next: one that only has to be ended, else the most urgent."""
        found = [e.record for e in self.entries.values() if e.run is None]
        ready = [r for r in found if r.ending is not None or not self.is_paused(r)]
        return min(
            ready, key=lambda r: (r.ending is None, self.urgency(r, now), r.id), default=None
        )

    def runs(self, now: float | None = None) -> list[RunningJob]:
        """The running jobs: oldest first or, at a given moment, the most urgent first."""
        runs = [e.run for _, e in sorted(self.entries.items()) if e.run is not None]
        if now is None or len(runs) < 2:  # noqa: PLR2004 - one needs no order
            return runs
        return sorted(runs, key=lambda run: self.urgency(run.record, now))

    def note(self, job: RecentJob) -> None:
        """Remember a job that ended, for the status."""
        self.recent.append(job)
        if job.status == "rejected":
            self.last_rejected = job
        elif job.status not in {"redelivered", "quarantined"}:
            self.last_finished = job

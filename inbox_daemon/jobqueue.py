"""The active jobs: what is queued and what is running, in memory.

Purpose: one view that intake asks for room, the runner for work and the status for
figures.
Invariants: it is rebuilt from the spool's folders and the ledger at start and changed
only after the move on the disk; oldest job first.
"""

from collections import deque
from dataclasses import dataclass, field

from inbox_daemon.jobrun import JobRun
from inbox_daemon.limits import QueueLoad
from inbox_daemon.model import RecentJob
from inbox_daemon.records import JobRecord

_RECENT = 20


@dataclass(slots=True)
class ActiveEntry:
    """One active job: queued while `run` is None."""

    record: JobRecord
    run: JobRun | None = None

    @property
    def open_requests(self) -> int:
        """How many of its requests have no outcome yet."""
        return self.record.requests - (self.run.progress.ended if self.run else 0)


@dataclass(slots=True)
class JobQueue:
    """All active jobs, and the newest of those that ended."""

    entries: dict[str, ActiveEntry] = field(default_factory=dict)
    recent: deque[RecentJob] = field(default_factory=lambda: deque(maxlen=_RECENT))
    last_finished: RecentJob | None = None
    last_rejected: RecentJob | None = None

    def add(self, record: JobRecord, run: JobRun | None = None) -> None:
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

    def next_queued(self) -> JobRecord | None:
        """The job to start next: the oldest that is queued."""
        found = (e.record for e in self.entries.values() if e.run is None)
        return min(found, key=lambda record: record.id, default=None)

    def runs(self) -> list[JobRun]:
        """The running jobs, oldest first."""
        return [e.run for _, e in sorted(self.entries.items()) if e.run is not None]

    def note(self, job: RecentJob) -> None:
        """Remember a job that ended, for the status."""
        self.recent.append(job)
        if job.status == "rejected":
            self.last_rejected = job
        elif job.status != "redelivered":
            self.last_finished = job

"""queued/ and running/: the moves of a job between its admission and its publication.

Purpose: the named moves of a job's life, each in the safe order and each repeatable
after a crash in its middle.
Invariant: the folder in which a job lies is its state (states.py).
"""

import os

from inbox_daemon.contract.states import Event, JobState, after
from inbox_daemon.spool import durable
from inbox_daemon.spool.outbox import Outbox
from inbox_daemon.spool.troubles import STUCK


class JobFolders(Outbox):
    """What is done to accepted jobs."""

    def admit(self, job_id: str) -> JobState:
        """Move a claimed job to queued/."""
        durable.move(self.claim_path(job_id), self.queued / f"{job_id}.jsonl")
        return after(JobState.CLAIMED, Event.ADMIT)

    def start(self, job_id: str) -> JobState:
        """Move a queued job to running/<id>/; may be repeated after an error in its middle."""
        durable.make_dir(self.running / job_id)
        source, target = self.queued / f"{job_id}.jsonl", self.input_path(job_id)
        if durable.exists(target) and not durable.exists(source):
            durable.sync_dir(target.parent)
            durable.sync_dir(source.parent)
        else:
            durable.move(source, target)
        return after(JobState.QUEUED, Event.START)

    def publish(self, job_id: str, name: str) -> str:
        """Move the folder built in running/<id>/outbox to outbox/NAME; return its name.

        A folder that stands there, other than an empty one or the notice of a
        refusal, or one that cannot be removed, is left alone and the results go beside it,
        with the id in the name.
        """
        built = self.build_path(job_id)
        if not durable.is_folder(built):
            return self.published_as(job_id, name) or name
        after(JobState.RUNNING, Event.PUBLISH)
        try:
            self.clear_notice(name)
        except OSError as error:  # another user's: it stays, as any other folder does
            if error.errno not in STUCK:
                raise
        try:
            durable.move(built, self.outbox / name)
        except FileExistsError:
            name = f"{name}.{job_id}"
            durable.move(built, self.outbox / name)
        return name

    def discard(self, job_id: str) -> None:
        """Remove running/<id> of a job that was published; what cannot go stays for now."""
        with self.troubles.alone(self.running / job_id, "removed"):
            durable.remove_tree(self.running / job_id)

    def queued_ids(self) -> list[str]:
        """The ids of the queued jobs, oldest first."""
        return sorted(path.stem for path in self.queued.glob("*.jsonl"))

    def running_ids(self) -> list[str]:
        """The ids of the jobs in running/, oldest first, leftovers included."""
        with os.scandir(self.running) as found:  # which looks at none of them
            return sorted(entry.name for entry in found if entry.is_dir())

"""A running job with its spool and its ledger, without a daemon around it."""

from pathlib import Path

from builders import start_job
from inbox_daemon.jobs.running import Batch, RunningJob


class Desk:
    """One job on a real spool, which can be closed and opened again."""

    def __init__(self, root: Path, lines: list[bytes]) -> None:
        """Accept and start the job."""
        self.spool, self.ledger, self.record = start_job(root, lines)
        self.run = RunningJob(self.record, self.spool, self.ledger)

    def reopen(self) -> RunningJob:
        """Drop everything in memory and load the job again."""
        self.run.close()
        self.run = RunningJob(self.record, self.spool, self.ledger)
        return self.run

    def commit(self) -> Batch:
        """Make everything count."""
        batch = self.run.take_batch()
        self.run.results.flush(batch.lines, batch.length)
        self.ledger.checkpoint([batch.checkpoint])
        self.run.committed(batch)
        return batch

    def admit(self, size: int) -> None:
        """Admit and commit a chunk."""
        self.run.marks.admit(size)
        self.commit()

    def take(self, now: float = 0.0) -> list[int]:
        """Start everything that may be started; return the ordinals."""
        taken = []
        while (ordinal := self.run.marks.next_ordinal(now)) is not None:
            self.run.marks.start(ordinal)
            taken.append(ordinal)
        return taken

    def close(self) -> None:
        """Let go of the files."""
        self.run.close()
        self.ledger.close()

"""The whole flow of a daemon in one thread, without an event loop and without an engine.

Purpose: take drops, run jobs and publish them, on a real spool and a real ledger, in a
few milliseconds, so that a test can do it hundreds of times.
Invariant: every effect on the disk is made by the daemon's own code.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from builders import config
from inbox_daemon.contract.config import Config
from inbox_daemon.contract.job_documents import ended_job
from inbox_daemon.contract.records import Tokens
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake.admission import Admission, Answer
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.recovery import recover
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.publish.folder import publish
from inbox_daemon.request.line import output_line
from inbox_daemon.request.validation import Served
from inbox_daemon.spool import Spool
from inbox_daemon.spool.entries import Kind, scan


class Miniature:
    """One life of a daemon on a spool."""

    def __init__(self, root: Path, settings: Config | None = None) -> None:
        """Start: make or recover what lies there."""
        self.config = settings or config()
        self.spool = Spool(root)
        self.spool.create()
        self.ledger = Ledger(self.spool.ledger)
        self.queue = ActiveJobs(self.ledger)
        try:
            self.queue = recover(self.spool, self.ledger)
        except BaseException:
            self.ledger.close()
            raise
        self.admission = Admission(self.config, self.spool, self.ledger, self.queue, Served)
        self.executed: list[tuple[str, int]] = []

    def close(self) -> None:
        """End, cleanly or not: only what is on the disk stays."""
        for run in self.queue.runs():
            run.close()
        self.ledger.close()

    def take_drops(self) -> list[Answer]:
        """Answer everything that lies in inbox/."""
        answers = []
        for lane in Priority:
            for entry in scan(self.spool.lane(lane)).entries:
                if entry.kind is Kind.FILE and entry.name.endswith(".jsonl"):
                    answer = self.admission.answer(entry, lane, settled=True)
                    if answer.queued is not None:
                        self.queue.add(answer.queued)
                    answers.append(answer)
        return answers

    def start(self) -> None:
        """Move every queued job to running/."""
        for entry in list(self.queue.entries.values()):
            if entry.run is None:
                self.spool.start(entry.record.id)
                record = entry.record.model_copy(update={"in_progress_at": 2.0})
                self.ledger.update(record)
                self.queue.add(record, RunningJob(record, self.spool, self.ledger))

    def commit(self, run: RunningJob) -> None:
        """Make what a job has gathered count: output before offset."""
        batch = run.take_batch()
        run.results.flush(batch.lines, batch.length)
        self.ledger.checkpoint([batch.checkpoint])
        run.committed(batch)

    def work(self, run: RunningJob, chunk: int = 2, at_once: int = 2) -> None:
        """Answer every open request, a few to a commit."""
        while not run.complete:
            if not run.marks.fully_admitted and run.marks.startable == 0:
                run.marks.admit(chunk)
                self.commit(run)
            for _ in range(at_once):
                ordinal = run.marks.next_ordinal(0.0)
                if ordinal is None:
                    break
                self.execute(run, ordinal)
            self.commit(run)

    def execute(self, run: RunningJob, ordinal: int) -> None:
        """Answer one request with its own custom_id."""
        line = run.input.line_of(ordinal)
        run.marks.start(ordinal)
        self.executed.append((run.record.name, line))
        custom_id = orjson.loads(run.input.read(ordinal))["custom_id"]
        body = orjson.dumps({"echo": custom_id})
        output = output_line(run.record.id, line, custom_id, 200, "r", body)
        run.succeed(ordinal, output, Tokens(1, 2))

    def publish(self, run: RunningJob) -> None:
        """Put a complete job's results into outbox/."""
        record = publish(run.record, self.spool, self.ledger)
        run.close()
        self.queue.ended(ended_job(record))

    def live(self) -> None:
        """Do everything that there is to do."""
        self.take_drops()
        self.start()
        for run in self.queue.runs():
            self.work(run)
            self.publish(run)


@contextmanager
def life(root: Path, settings: Config | None = None) -> Iterator[Miniature]:
    """One life of a daemon, closed at its end."""
    daemon = Miniature(root, settings)
    try:
        yield daemon
    finally:
        with suppress(OSError):
            daemon.close()

"""One running job: its lines, its marks, and its two files.

Purpose: everything the runner knows of a job beyond what is persisted.
Invariants: what was not committed is never shown as progress; a request is started only
below the committed admission mark, so a crash knows which ones may have run; lines are
read from the disk when they are sent, so memory is some bytes a request.
Words: *line* and *ordinal* as in files.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.contract.records import (
    Checkpoint,
    DeadLetter,
    JobRecord,
    OutcomeAt,
    Progress,
    RetryRecord,
    Tokens,
)
from inbox_daemon.contract.states import Outcome
from inbox_daemon.jobs.files import InputFile, ResultsFile
from inbox_daemon.jobs.marks import Due, Marks
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool


@dataclass(slots=True)
class Batch:
    """What one commit takes of one job: result lines first, then the checkpoint.

    `lines` come in parts; `chunk` holds the requests that may start once it counts, in the
    order in which they will; `due` the failures that may be tried again.
    """

    checkpoint: Checkpoint
    lines: list[bytes]
    length: int
    due: list[Due]
    chunk: Sequence[int]


class RunningJob:
    """A job between its start and its publication."""

    def __init__(self, record: JobRecord, spool: Spool, ledger: Ledger) -> None:
        """Load a job from running/<id>, wherever it was left; blocks, use a thread.

        Raises DamagedJobError: input or committed results are missing from the disk.
        """
        self.record = record
        # What makes it impossible to go on with this job; the runner gives it up then.
        self.damage: DamagedJobError | None = None
        # Why its results wait in memory, in words; nothing more of it is sent meanwhile.
        self.unwritten: str | None = None
        self.progress = ledger.progress(record.id)
        self.invalid: dict[int, Fault] = ledger.invalid(record.id) if record.invalid else {}
        self.retries: dict[int, RetryRecord] = ledger.retries(record.id)
        self.input = InputFile(spool.input_path(record.id), record.requests)
        self._completed, self._failed = self.progress.completed, self.progress.failed
        self._tokens_in = self.progress.input_tokens
        self._tokens_out = self._tokens_before = self.progress.output_tokens
        self.energy_j = self.progress.energy_j if record.energy_j is None else record.energy_j
        self._recoveries = self.progress.recoveries + (self.progress.admitted > 0)
        try:
            ended = [line for line, _ in ledger.all_entries(record.id)]
            for line in ended:
                self.retries.pop(line, None)
            self.marks = Marks(
                len(self.input),
                self.input.count_up_to(self.progress.admitted),
                map(self.input.ordinal_of, ended),
                map(self.input.ordinal_of, self.retries),
            )
            self.results = ResultsFile(spool.results_path(record.id), self.progress.committed)
        except (DamagedJobError, OSError):
            self.input.close()
            raise
        # The letters that a commit makes last at this moment, in bytes.
        self._committing = 0
        self._clear_pending()

    def _clear_pending(self) -> None:
        self._entries: list[tuple[int, OutcomeAt]] = []
        self._new_retries: dict[int, RetryRecord] = {}
        self._new_dead: list[DeadLetter] = []
        self._letter_bytes = 0

    def close(self) -> None:
        """Close the files; what was not committed is dropped."""
        self.results.close()
        self.input.close()

    # -- figures --------------------------------------------------------------------

    @property
    def total(self) -> int:
        """The number of requests of the job."""
        return len(self.input)

    @property
    def in_flight(self) -> int:
        """The number of its requests that are with the engine."""
        return self.marks.in_flight

    @property
    def left(self) -> int:
        """The number of requests that have no outcome yet, committed or not."""
        return self.total - self._completed - self._failed

    @property
    def tokens_made(self) -> int:
        """Output tokens of the answers since this process took the job up."""
        return self._tokens_out - self._tokens_before

    @property
    def complete(self) -> bool:
        """Whether every request has its outcome, committed."""
        return self.progress.ended == self.total

    @property
    def pending(self) -> int:
        """The number of outcomes and failures that the next commit would make count."""
        return len(self._entries) + len(self._new_retries)

    @property
    def urgent(self) -> bool:
        """Whether a commit is worth more now than later: a chunk waits, or the end."""
        return self.marks.admitting or (self.left == 0 and self.pending > 0)

    @property
    def pending_bytes(self) -> int:
        """The memory that the next commit would free, in bytes."""
        return self.results.pending_bytes + self._letter_bytes

    @property
    def uncommitted_bytes(self) -> int:
        """What is held of outcomes that are not committed, those in a commit included."""
        return self.pending_bytes + self._committing

    @property
    def dirty(self) -> bool:
        """Whether a commit would change anything."""
        return (self.pending > 0 or self.marks.admitting) and not self.results.broken

    def is_open(self, line: int) -> bool:
        """Return whether a line is a request without an outcome."""
        return self.marks.is_open(self.input.ordinal_of(line))

    # -- outcomes -------------------------------------------------------------------

    def fail(self, ordinal: int, record: RetryRecord, due: float) -> None:
        """Charge a failed attempt; the next may start at `due`, once this is committed."""
        self.marks.fail(ordinal, due)
        line = self.input.line_of(ordinal)
        self.retries[line] = self._new_retries[line] = record

    def succeed(
        self, ordinal: int, output: bytes | tuple[bytes, ...], tokens: Tokens | None
    ) -> None:
        """Take a result, its line whole or in parts."""
        self._end(ordinal, output, Outcome.RESULT, retryable=False)
        self._completed += 1
        if tokens is not None:
            self._tokens_in += tokens.input
            self._tokens_out += tokens.output

    def set_aside(
        self, ordinal: int, output: bytes, letter: DeadLetter, *, retryable: bool
    ) -> None:
        """Take a dead letter; `retryable` says whether its line belongs in retry.jsonl."""
        self._end(ordinal, output, Outcome.DEAD, retryable=retryable)
        self._new_dead.append(letter)
        self._letter_bytes += self.input.size_of(ordinal)
        self._failed += 1

    def _end(
        self,
        ordinal: int,
        output: bytes | tuple[bytes, ...],
        outcome: Outcome,
        *,
        retryable: bool,
    ) -> None:
        self.marks.end(ordinal)
        line = self.input.line_of(ordinal)
        parts = (output,) if isinstance(output, bytes) else output
        offset, length = self.results.append(*parts)
        self._entries.append((line, OutcomeAt(offset, length, outcome, retryable)))
        self.retries.pop(line, None)
        self._new_retries.pop(line, None)

    def use_energy(self, joules: float) -> None:
        """Take a share of what the card used; it counts with the next commit."""
        self.energy_j = round((self.energy_j or 0.0) + joules, 3)

    # -- commit ---------------------------------------------------------------------

    def take_batch(self) -> Batch:
        """Hand over everything that is not committed yet."""
        lines, length = self.results.take()
        self._committing = self._letter_bytes
        admitted = self.marks.admitted
        progress = Progress(
            committed=length,
            admitted=self.input.line_of(admitted - 1) if admitted else 0,
            completed=self._completed,
            failed=self._failed,
            input_tokens=self._tokens_in,
            output_tokens=self._tokens_out,
            energy_j=self.energy_j,
            recoveries=self._recoveries,
        )
        checkpoint = Checkpoint(
            self.record.id, progress, self._entries, self._new_retries, self._new_dead
        )
        due, chunk = self.marks.take_uncommitted()
        self._clear_pending()
        return Batch(checkpoint, lines, length, due, chunk)

    def committed(self, batch: Batch) -> None:
        """Note that the batch counts: retries may start, and the next chunk."""
        self.progress, self._committing = batch.checkpoint.progress, 0
        self.marks.committed(batch.due, batch.chunk)

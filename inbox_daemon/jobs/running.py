"""One running job in memory: its lines, which of them are open, and its journal.

Purpose: everything the runner knows of a job beyond what is persisted.
Invariants: each request carries exactly one mark; what was not committed is never
shown as progress; a request is started only below the committed admission mark, so
a crash knows which ones may have run; memory is some bytes a request, whatever its
line holds, because lines are read from the disk when they are sent.
Words: *line* and *ordinal* as in jobinput.py.
"""

import heapq
import math
from collections import deque
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
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool

OPEN, IN_FLIGHT, RETRYING, ENDED = range(4)


@dataclass(slots=True)
class Batch:
    """What one commit takes of one job: journal lines first, then the checkpoint."""

    checkpoint: Checkpoint
    lines: list[bytes]
    length: int
    due: list[tuple[float, int]]
    # The requests that may be started once it counts, in the order in which they will be.
    chunk: Sequence[int]


class RunningJob:
    """A job between its start and its publication."""

    def __init__(self, record: JobRecord, spool: Spool, ledger: Ledger) -> None:
        """Load a job from running/<id>, wherever it was left; blocks, use a thread.

        Raises DamagedJobError: input or committed results are missing from the disk.
        """
        self.record = record
        self.progress = ledger.progress(record.id)
        self.invalid: dict[int, Fault] = ledger.invalid(record.id) if record.invalid else {}
        self.retries: dict[int, RetryRecord] = ledger.retries(record.id)
        self.in_flight = 0
        self.input = InputFile(spool.input_path(record.id), record.requests)
        self._marks = bytearray(len(self.input))
        self._completed, self._failed = self.progress.completed, self.progress.failed
        self._tokens_in = self.progress.input_tokens
        self._tokens_out = self._tokens_before = self.progress.output_tokens
        self.energy_j = self.progress.energy_j if record.energy_j is None else record.energy_j
        self._recoveries = self.progress.recoveries + (self.progress.admitted > 0)
        self._admitted = self._limit = self.input.count_up_to(self.progress.admitted)
        self._closed = 0
        self._due: list[tuple[float, int]] = []
        try:
            self._restore(ledger)
            self._ready = deque(
                ordinal for ordinal in range(self._limit) if self._marks[ordinal] == OPEN
            )
            self.journal = ResultsFile(spool.results_path(record.id), self.progress.committed)
        except (DamagedJobError, OSError):
            self.input.close()
            raise
        self._clear_pending()

    def _clear_pending(self) -> None:
        self._entries: list[tuple[int, OutcomeAt]] = []
        self._new_retries: dict[int, RetryRecord] = {}
        self._new_dead: list[DeadLetter] = []
        self._new_due: list[tuple[float, int]] = []
        self._letter_bytes = 0

    def _restore(self, ledger: Ledger) -> None:
        """Take up the outcomes and failures that were committed before."""
        for line, _ in ledger.all_entries(self.record.id):
            self._marks[self.input.ordinal_of(line)] = ENDED
            self.retries.pop(line, None)
        for line in self.retries:  # the backoff is over: the daemon was down meanwhile
            ordinal = self.input.ordinal_of(line)
            self._marks[ordinal] = RETRYING
            heapq.heappush(self._due, (0.0, ordinal))

    def close(self) -> None:
        """Close the files; what was not committed is dropped."""
        self.journal.close()
        self.input.close()

    # -- figures --------------------------------------------------------------------

    @property
    def total(self) -> int:
        """How many requests the job has."""
        return len(self.input)

    @property
    def retrying(self) -> int:
        """How many requests wait for a further attempt."""
        return len(self._due) + len(self._new_due)

    @property
    def left(self) -> int:
        """How many requests have no outcome yet, committed or not."""
        return self.total - self._completed - self._failed

    @property
    def tokens_made(self) -> int:
        """Output tokens of the answers since this process took the job up."""
        return self._tokens_out - self._tokens_before

    @property
    def complete(self) -> bool:
        """Say whether every request has its outcome, committed."""
        return self.progress.ended == self.total

    @property
    def startable(self) -> int:
        """How many new requests could be started before the next chunk is needed."""
        return len(self._ready)

    @property
    def fully_admitted(self) -> bool:
        """Say whether no further chunk is left."""
        return self._admitted >= self.total

    @property
    def spent(self) -> bool:
        """Say whether no new request is left to start, only retries."""
        return self.fully_admitted and not self.admitting and not self._ready

    @property
    def pending(self) -> int:
        """How many outcomes and failures the next commit would make count."""
        return len(self._entries) + len(self._new_retries)

    @property
    def admitting(self) -> bool:
        """Say whether a chunk waits for the commit that lets it start."""
        return self._admitted != self._limit

    @property
    def urgent(self) -> bool:
        """Say whether a commit is worth more now than later: a chunk waits, or the end."""
        ended = self._completed + self._failed == self.total and self.pending > 0
        return self.admitting or ended

    @property
    def pending_bytes(self) -> int:
        """How much memory the next commit would free, in bytes."""
        return self.journal.pending_bytes + self._letter_bytes

    @property
    def dirty(self) -> bool:
        """Say whether a commit would change anything."""
        return self.pending > 0 or self.admitting

    # -- requests ----------------------------------------------------------------------

    def is_open(self, line: int) -> bool:
        """Say whether a line is a request without an outcome."""
        return self._marks[self.input.ordinal_of(line)] != ENDED

    def next_open(self) -> int | None:
        """Any request that is neither in flight nor ended, for a job that is ended early."""
        while self._closed < self.total and self._marks[self._closed] in {IN_FLIGHT, ENDED}:
            self._closed += 1
        return self._closed if self._closed < self.total else None

    # -- admission ------------------------------------------------------------------

    def admit_chunk(self, size: int) -> tuple[int, int]:
        """Let the next `size` requests be started once the next commit has returned.

        Returns their first and last line number.
        """
        first = self._admitted
        self._admitted = min(first + size, self.total)
        return self.input.line_of(first), self.input.line_of(self._admitted - 1)

    def next_ordinal(self, now: float) -> int | None:
        """The request to start now: one whose backoff is over, else the next new one.

        `now` is in seconds of the monotonic clock.
        """
        if self._due and self._due[0][0] <= now:
            return heapq.heappop(self._due)[1]
        while self._ready:
            ordinal = self._ready.popleft()
            if self._marks[ordinal] == OPEN:
                return ordinal
        return None

    def next_due(self) -> float | None:
        """When the next backoff is over, in seconds of the monotonic clock."""
        return self._due[0][0] if self._due else None

    def take_suspect(self, ordinal: int) -> bool:
        """Take a request out of the normal order for the hunt; False if it may not run."""
        if self._marks[ordinal] in {ENDED, IN_FLIGHT}:
            return False
        self._due = [entry for entry in self._due if entry[1] != ordinal]
        heapq.heapify(self._due)
        return all(entry[1] != ordinal for entry in self._new_due)

    def put_off(self, ordinal: int) -> None:
        """Let a suspect wait until the hunt claims it."""
        if self.take_suspect(ordinal):
            self._marks[ordinal] = RETRYING
            heapq.heappush(self._due, (math.inf, ordinal))

    def start(self, ordinal: int) -> None:
        """Mark a request as in flight."""
        self._marks[ordinal] = IN_FLIGHT
        self.in_flight += 1

    # -- outcomes -------------------------------------------------------------------

    def abandon(self, ordinal: int, due: float = 0.0) -> None:
        """Put a request that was in flight back among the open ones, uncharged.

        It comes next, or after `due` in seconds of the monotonic clock.
        """
        self._leave(ordinal, RETRYING)
        heapq.heappush(self._due, (due, ordinal))

    def fail(self, ordinal: int, record: RetryRecord, due: float) -> None:
        """Charge a failed attempt; the next may start at `due`, once this is committed."""
        self._leave(ordinal, RETRYING)
        line = self.input.line_of(ordinal)
        self.retries[line] = self._new_retries[line] = record
        self._new_due.append((due, ordinal))

    def succeed(self, ordinal: int, output: bytes, tokens: Tokens | None) -> None:
        """Take a result."""
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

    def _end(self, ordinal: int, output: bytes, outcome: Outcome, *, retryable: bool) -> None:
        self._leave(ordinal, ENDED)
        line = self.input.line_of(ordinal)
        offset, length = self.journal.append(output)
        self._entries.append((line, OutcomeAt(offset, length, outcome, retryable)))
        self.retries.pop(line, None)
        self._new_retries.pop(line, None)

    def _leave(self, ordinal: int, mark: int) -> None:
        if self._marks[ordinal] == IN_FLIGHT:
            self.in_flight -= 1
        self._marks[ordinal] = mark

    def use_energy(self, joules: float) -> None:
        """Take a share of what the card used; it counts with the next commit."""
        self.energy_j = round((self.energy_j or 0.0) + joules, 3)

    # -- commit ---------------------------------------------------------------------

    def take_batch(self) -> Batch:
        """Hand over everything that is not committed yet."""
        lines, length = self.journal.take()
        progress = Progress(
            committed=length,
            admitted=self.input.line_of(self._admitted - 1) if self._admitted else 0,
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
        chunk = range(self._limit, self._admitted)
        batch = Batch(checkpoint, lines, length, self._new_due, chunk)
        self._clear_pending()
        return batch

    def committed(self, batch: Batch) -> None:
        """Take note that the batch counts: retries may start, and the next chunk."""
        self.progress = batch.checkpoint.progress
        self._limit = self.input.count_up_to(self.progress.admitted)
        self._ready.extend(batch.chunk)
        for entry in batch.due:
            heapq.heappush(self._due, entry)

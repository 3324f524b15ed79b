"""A running job in memory: each request has one mark, and only what is committed counts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import JOB_ID, dead_letter, request
from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.contract.records import Tokens
from inbox_daemon.jobs.files import InputFile
from job_desk import Desk
from ledger_rows import RETRY

LINES = [request(f"r{n}") for n in range(6)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A job of six requests with a blank line after the second."""
    desk = Desk(tmp_path, [*LINES[:2], b"", *LINES[2:]])
    yield desk
    desk.close()


# -- lines --------------------------------------------------------------------------


def test_lines_and_ordinals_differ_by_blank_lines(desk: Desk) -> None:
    """A request is known by its line in the file as the sender counts it."""
    run = desk.run
    assert [run.input.line_of(ordinal) for ordinal in range(run.total)] == [1, 2, 4, 5, 6, 7]
    assert run.input.ordinal_of(4) == 2
    assert run.input.read(2) == LINES[2]
    for line in (0, 3, 8):
        with pytest.raises(KeyError):
            run.input.ordinal_of(line)


def test_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    """A file that ends without one loses nothing."""
    (tmp_path / "a").write_bytes(b"one\n\ntwo")
    with InputFile(tmp_path / "a", 2) as found:
        assert list(found.lines) == [1, 3]
        assert [found.read(ordinal) for ordinal in range(2)] == [b"one", b"two"]
        assert [found.count_up_to(line) for line in range(5)] == [0, 1, 1, 2, 2]


@given(
    st.lists(st.binary(max_size=40_000).map(lambda b: b.replace(b"\n", b"x") + b"y"), max_size=5)
)
def test_any_line_is_read_back_and_cut_at_the_limit(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    """Lines of any length come back whole, or as far as the limit goes."""
    path = tmp_path_factory.mktemp("input") / "a"
    path.write_bytes(b"\n".join(lines))
    with InputFile(path, len(lines)) as found:
        assert len(found) == len(lines)
        for ordinal, line in enumerate(lines):
            assert found.read(ordinal) == line
            assert found.read(ordinal, 100) == line[:100]
            assert found.read(ordinal, len(line)) == line
        assert sum(found.size_of(ordinal) for ordinal in range(len(lines))) == path.stat().st_size


@pytest.mark.parametrize("requests", [1, 3])
def test_a_file_of_other_requests_than_accepted_is_damage(tmp_path: Path, requests: int) -> None:
    """More or fewer requests than were accepted are an error before any of them runs."""
    (tmp_path / "a").write_bytes(b"one\ntwo\n")
    with pytest.raises(DamagedJobError):
        InputFile(tmp_path / "a", requests)


# -- admission ----------------------------------------------------------------------


def test_nothing_starts_before_its_chunk_is_committed(desk: Desk) -> None:
    """An admitted chunk waits until its admission is committed."""
    assert desk.take() == []
    assert desk.run.marks.admit(2) == (0, 1)
    assert (desk.run.marks.admitting, desk.take()) == (True, [])
    desk.commit()
    assert not desk.run.marks.admitting
    assert desk.ledger.progress(JOB_ID).admitted == 2
    assert desk.take() == [0, 1]


def test_the_last_chunk_is_as_large_as_what_is_left(desk: Desk) -> None:
    """A chunk ends with the job."""
    desk.admit(4)
    assert (desk.run.marks.fully_admitted, desk.run.marks.admit(4)) == (False, (4, 5))
    assert desk.run.marks.fully_admitted
    desk.commit()
    assert desk.take() == list(range(6))
    assert desk.run.marks.startable == 0


def test_a_commit_under_way_does_not_admit_what_came_after(desk: Desk) -> None:
    """A chunk that was admitted while a commit was being written waits for the next one."""
    desk.run.marks.admit(2)
    batch = desk.run.take_batch()
    desk.run.marks.admit(2)
    desk.ledger.checkpoint([batch.checkpoint])
    desk.run.committed(batch)
    assert desk.take() == [0, 1]
    assert desk.run.marks.admitting
    desk.commit()
    assert desk.take() == [2, 3]


# -- outcomes -----------------------------------------------------------------------


def test_a_result_counts_once_it_is_committed(desk: Desk) -> None:
    """Progress shows what the disk holds, and the journal has the line at its place."""
    desk.admit(6)
    desk.take()
    desk.run.succeed(3, b"three\n", Tokens(2, 3))
    desk.run.succeed(0, b"zero\n", None)
    assert (desk.run.pending, desk.run.progress.completed) == (2, 0)
    desk.commit()
    progress = desk.ledger.progress(JOB_ID)
    assert (progress.completed, progress.input_tokens, progress.output_tokens) == (2, 2, 3)
    assert desk.run.progress == progress
    places = dict(desk.ledger.all_entries(JOB_ID))
    results = desk.spool.results_path(JOB_ID).read_bytes()
    assert {n: results[e.offset : e.offset + e.length] for n, e in places.items()} == {
        1: b"zero\n",
        5: b"three\n",
    }


def test_a_failed_request_waits_for_its_commit_and_its_time(desk: Desk) -> None:
    """A charged attempt is on the disk before the next one starts, and that one waits."""
    desk.admit(1)
    desk.take()
    desk.run.fail(0, RETRY, due=50.0)
    assert (desk.take(99.0), desk.run.marks.retrying) == ([], 1)
    desk.commit()
    assert desk.ledger.retries(JOB_ID) == {1: RETRY}
    assert (desk.take(49.0), desk.run.marks.next_due()) == ([], 50.0)
    assert desk.take(50.0) == [0]


def test_an_abandoned_request_is_free_at_once_and_uncharged(desk: Desk) -> None:
    """What the engine's death or a drain interrupted may run again without a commit."""
    desk.admit(2)
    desk.take()
    desk.run.marks.abandon(1)
    assert desk.run.in_flight == 1
    assert desk.take() == [1]
    assert desk.run.retries == {}


def test_a_request_that_is_set_aside_has_its_letter(desk: Desk) -> None:
    """A dead letter ends the request and is kept with the commit."""
    desk.admit(2)
    desk.take()
    desk.run.set_aside(1, b"dead\n", dead_letter(2), retryable=True)
    desk.commit()
    assert list(desk.ledger.dead_letters(JOB_ID)) == [dead_letter(2)]
    assert desk.ledger.progress(JOB_ID).failed == 1
    assert desk.ledger.entries(JOB_ID)[0][1].retryable


def test_the_size_of_a_letters_request_makes_a_commit_due(desk: Desk) -> None:
    """Letters keep their requests, so their bytes count as waiting too."""
    desk.admit(1)
    desk.take()
    desk.run.set_aside(0, b"dead\n", dead_letter(1), retryable=True)
    assert desk.run.pending_bytes >= len(LINES[0]) + len(b"dead\n")
    desk.commit()
    assert desk.run.pending_bytes == 0


def test_a_job_is_complete_when_its_last_outcome_is_committed(desk: Desk) -> None:
    """Not before: an outcome in memory can still be lost."""
    desk.admit(6)
    for ordinal in desk.take():
        desk.run.succeed(ordinal, b"x\n", None)
    assert (desk.run.urgent, desk.run.complete) == (True, False)
    desk.commit()
    assert desk.run.complete
    assert not desk.run.dirty


# -- the hunt and early ends --------------------------------------------------------


def test_a_suspect_is_taken_out_of_the_normal_order(desk: Desk) -> None:
    """A suspect neither starts by itself nor a second time."""
    desk.admit(2)
    desk.take()
    desk.run.marks.abandon(0)
    desk.run.marks.abandon(1)
    assert desk.run.marks.take_suspect(1)
    assert desk.take() == [0]
    assert not desk.run.marks.take_suspect(0)  # it is in flight
    desk.run.succeed(0, b"x\n", None)
    assert not desk.run.marks.take_suspect(0)  # it has ended


def test_a_suspect_whose_failure_is_not_committed_may_not_run_yet(desk: Desk) -> None:
    """An attempt is on the disk before the next one, for suspects as well."""
    desk.admit(1)
    desk.take()
    desk.run.fail(0, RETRY, due=0.0)
    assert not desk.run.marks.take_suspect(0)
    desk.commit()
    assert desk.run.marks.take_suspect(0)


def test_a_suspect_is_not_started_again_after_a_restart(desk: Desk) -> None:
    """A suspect that is tried before the normal order reaches it is passed over there."""
    desk.admit(6)
    desk.reopen()
    assert desk.run.marks.take_suspect(3)
    desk.run.marks.start(3)
    assert desk.take() == [0, 1, 2, 4, 5]


def test_every_open_request_of_an_ending_job_is_found(desk: Desk) -> None:
    """Requests that never started, that wait or that were abandoned are found."""
    desk.admit(3)
    desk.take()
    desk.run.succeed(0, b"x\n", None)
    desk.run.marks.abandon(1)
    found = []
    while (ordinal := desk.run.marks.next_open()) is not None:
        found.append(ordinal)
        desk.run.set_aside(
            ordinal, b"dead\n", dead_letter(desk.run.input.line_of(ordinal)), retryable=True
        )
    assert found == [1, 3, 4, 5]
    desk.run.marks.abandon(2)


# -- a restart ----------------------------------------------------------------------


def test_a_restart_goes_on_with_what_was_committed(desk: Desk) -> None:
    """Ended requests stay ended, uncommitted outcomes run again, failures are remembered."""
    desk.admit(4)
    desk.take()
    desk.run.succeed(0, b"zero\n", None)
    desk.run.fail(1, RETRY, due=1e9)
    desk.commit()
    desk.run.succeed(2, b"lost\n", None)
    desk.run.results.flush(*desk.run.results.take())
    run = desk.reopen()
    assert run.progress.completed == 1
    assert run.retries == {2: RETRY}
    assert desk.take() == [1, 2, 3]  # the backoff is over, and 4 and 5 are not admitted
    assert desk.spool.results_path(JOB_ID).read_bytes() == b"zero\n"
    assert (run.input.read(0), run.marks.startable) == (LINES[0], 0)


def test_energy_counts_with_the_next_commit(desk: Desk) -> None:
    """What the card used is kept with the outcomes that it was used for, and grows after that."""
    desk.admit(6)
    first, *_ = desk.take()
    desk.run.use_energy(100.25)
    desk.run.use_energy(0.5)
    desk.run.succeed(first, b"{}\n", Tokens(0, 7))
    assert desk.run.tokens_made == 7
    desk.commit()
    assert desk.run.progress.energy_j == 100.75
    desk.run.use_energy(50)
    again = desk.reopen()
    assert (again.energy_j, again.tokens_made) == (100.75, 0)
    again.use_energy(1)
    assert again.energy_j == 101.75


def test_a_restart_is_counted_only_if_anything_ran(desk: Desk) -> None:
    """`recoveries` counts the restarts after which a job went on that had begun."""
    desk.reopen()
    desk.admit(1)
    assert desk.ledger.progress(JOB_ID).recoveries == 0
    desk.reopen()
    desk.admit(1)
    assert desk.ledger.progress(JOB_ID).recoveries == 1


def test_closing_twice_is_fine(desk: Desk) -> None:
    """The second close does nothing."""
    desk.run.close()
    desk.run.close()


class History:
    """A job to which anything may happen, and a model of what it must show."""

    def __init__(self, root: Path) -> None:
        """Start with nothing in flight."""
        self.desk = Desk(root, LINES)
        self.flying: list[int] = []
        self.ended: set[int] = set()
        self.committed: set[int] = set()

    def crash(self, _: int) -> None:
        """Lose everything that is not on the disk."""
        self.desk.reopen()
        self.flying, self.ended = [], set(self.committed)

    def commit(self, _: int) -> None:
        """Make what has ended count."""
        self.desk.commit()
        self.committed = set(self.ended)

    def admit(self, size: int) -> None:
        """Admit a chunk, to be committed later."""
        if not self.desk.run.marks.fully_admitted and not self.desk.run.marks.admitting:
            self.desk.run.marks.admit(1 + size)

    def take(self, _: int) -> None:
        """Start all that may be started: nothing twice, nothing that was not admitted."""
        taken, run = self.desk.take(), self.desk.run
        assert not set(taken) & (self.ended | set(self.flying))
        admitted = self.desk.ledger.progress(JOB_ID).admitted
        assert all(run.input.line_of(ordinal) <= admitted for ordinal in taken)
        self.flying += taken

    def _land(self, number: int) -> int | None:
        return self.flying.pop(number % len(self.flying)) if self.flying else None

    def succeed(self, number: int) -> None:
        """A request is answered."""
        if (ordinal := self._land(number)) is not None:
            self.desk.run.succeed(ordinal, b"%d\n" % ordinal, None)
            self.ended.add(ordinal)

    def set_aside(self, number: int) -> None:
        """A request becomes a dead letter."""
        if (ordinal := self._land(number)) is not None:
            letter = dead_letter(self.desk.run.input.line_of(ordinal))
            self.desk.run.set_aside(ordinal, b"dead\n", letter, retryable=True)
            self.ended.add(ordinal)

    def fail(self, number: int) -> None:
        """An attempt fails."""
        if (ordinal := self._land(number)) is not None:
            self.desk.run.fail(ordinal, RETRY, 0.0)

    def abandon(self, number: int) -> None:
        """An attempt is interrupted."""
        if (ordinal := self._land(number)) is not None:
            self.desk.run.marks.abandon(ordinal)

    def check(self) -> None:
        """Compare the job with the model."""
        assert self.desk.run.in_flight == len(self.flying)
        assert self.desk.run.progress.ended == len(self.committed)


STEPS = ("admit", "take", "succeed", "fail", "set_aside", "abandon", "commit", "crash")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), max_size=40))
def test_any_history_ends_each_request_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """After any steps in any order, crashes included, each request has one outcome."""
    history = History(tmp_path_factory.mktemp("job"))
    to_the_end = [(step, 5) for _ in range(7) for step in ("commit", "admit", "take", "succeed")]
    for step, number in [*steps, *to_the_end, ("commit", 0)]:
        getattr(history, step)(number)
        history.check()
    assert history.desk.run.complete
    entries = history.desk.ledger.all_entries(JOB_ID)
    assert [line for line, _ in entries] == [1, 2, 3, 4, 5, 6]
    history.desk.close()

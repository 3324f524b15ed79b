"""Publishing: the folder is whole, in input order, proved complete, and shown once."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import config, request
from inbox_daemon.cli.views import read_status
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.errors import DamagedJobError, LedgerError
from inbox_daemon.contract.records import Checkpoint, DeadReason, Progress, Tokens
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.publish.folder import publish
from inbox_daemon.publish.verify import verify_published, verify_running
from inbox_daemon.request.line import output_line
from inbox_daemon.run import dead_letters
from inbox_daemon.run.dead_letters import DeadRequest
from inbox_daemon.run.outcomes import Action, Verdict
from miniature import Miniature

LENIENT = config(intake={"on_invalid_line": "dead_letter"})
NO = Verdict(action=Action.DEAD, code="E400", message="no", http_status=400)


class Press(Miniature):
    """A daemon with one job whose outcomes a test decides."""

    def accept(self, *lines: bytes, end: bytes = b"\n") -> RunningJob:
        """Take a job in and start it, with everything admitted."""
        (self.spool.inbox / "job.jsonl").write_bytes(b"\n".join(lines) + end)
        (answer,) = self.take_drops()
        assert answer.queued is not None
        self.start()
        (run,) = self.queue.runs()
        run.marks.admit(10_000)
        self.commit(run)
        return run

    def answer(self, run: RunningJob, ordinal: int, body: bytes = b'{"a":1}') -> None:
        """A request is answered."""
        run.marks.start(ordinal)
        custom_id = orjson.loads(run.input.read(ordinal))["custom_id"]
        line = run.input.line_of(ordinal)
        output = output_line(run.record.id, line, custom_id, 200, "r", body)
        run.succeed(ordinal, output, Tokens(1, 2))

    def refuse(self, run: RunningJob, ordinal: int, fault: Fault | None = None) -> None:
        """A request becomes a dead letter: wrong, or never valid."""
        run.marks.start(ordinal)
        dead = DeadRequest(run.record, run.input.line_of(ordinal), run.input.read(ordinal))
        if fault is None:
            made = dead_letters.make_letter(dead, NO, DeadReason.INVALID_REQUEST, None, 5.0)
        else:
            made = dead_letters.make_invalid(dead, fault, 5.0)
        run.set_aside(ordinal, made.output, made.letter, retryable=made.retryable)

    def prove(self) -> list[str]:
        """What verify finds wrong with the published job."""
        folder = self.spool.outbox / "job"
        status = read_status(folder)
        assert status is not None
        (record,) = self.ledger.jobs()
        return verify_published(folder, status, record).faults


@pytest.fixture
def press(tmp_path: Path) -> Iterator[Press]:
    """A daemon whose jobs may hold bad lines."""
    press = Press(tmp_path / "spool", LENIENT)
    yield press
    press.close()


@pytest.mark.parametrize("file", ["input.jsonl", "results.part"])
def test_a_file_that_lost_data_is_damage(press: Press, file: str) -> None:
    """What the disk has lost since the start is noticed before a folder is shown."""
    run = press.accept(request("a"), request("b"))
    press.answer(run, 0)
    press.answer(run, 1)
    press.commit(run)
    path = press.spool.running / run.record.id / file
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DamagedJobError):
        publish(run.record, press.spool, press.ledger)
    assert not list(press.spool.outbox.iterdir())


def read(press: Press, file: str) -> bytes:
    """A published file."""
    return (press.spool.outbox / "job" / file).read_bytes()


def ids(press: Press, file: str) -> list[str | None]:
    """The custom_ids of a published file."""
    return [orjson.loads(line)["custom_id"] for line in read(press, file).splitlines()]


def files(press: Press) -> set[str]:
    """What the published folder holds."""
    return {path.name for path in (press.spool.outbox / "job").iterdir()}


def test_results_stand_in_input_order_whatever_order_they_came_in(press: Press) -> None:
    """The journal's order is that of the engine, the output's that of the sender."""
    run = press.accept(*(request(f"r{n}") for n in range(5)))
    for ordinal in (3, 0, 4, 2, 1):
        press.answer(run, ordinal)
        press.commit(run)
    press.publish(run)
    assert ids(press, "output.jsonl") == ["r0", "r1", "r2", "r3", "r4"]
    assert files(press) == {"output.jsonl", "status.json"}
    assert press.prove() == []


@pytest.mark.parametrize(("last", "told"), [(None, 3.5), (4.25, 4.25)])
def test_energy_is_that_of_the_last_reading(press: Press, last: float | None, told: float) -> None:
    """What was charged after the last commit counts too; without it, what was committed."""
    run = press.accept(request("a"))
    press.answer(run, 0)
    run.use_energy(3.5)
    press.commit(run)
    run.record = run.record.model_copy(update={"energy_j": last})
    press.publish(run)
    status = orjson.loads(read(press, "status.json"))
    assert status["energy_j"] == told
    assert status["energy_j_per_1000_output_tokens"] == 500 * told
    assert press.prove() == []


def test_each_kind_of_end_has_its_file(press: Press) -> None:
    """Answers, dead letters and what can be run again are kept apart, each in input order."""
    lines = [request("a"), b"nope", request("b"), request("c")]
    run = press.accept(*lines)
    press.refuse(run, 3)
    press.refuse(run, 1, Fault(code="invalid_json", message="m"))
    press.answer(run, 0)
    press.refuse(run, 2)
    press.commit(run)
    press.publish(run)
    assert ids(press, "output.jsonl") == ["a"]
    assert ids(press, "errors.jsonl") == [None, "b", "c"]
    assert read(press, "retry.jsonl") == lines[2] + b"\n" + lines[3] + b"\n"
    assert press.prove() == []


def test_a_job_without_one_answer_has_an_empty_output(press: Press) -> None:
    """The file is there, so that a web app need not guess."""
    run = press.accept(request("a"))
    press.refuse(run, 0)
    press.commit(run)
    press.publish(run)
    assert read(press, "output.jsonl") == b""
    assert files(press) == {"output.jsonl", "errors.jsonl", "retry.jsonl", "status.json"}


def test_a_retry_file_is_a_job_again(press: Press) -> None:
    """The original lines come back byte for byte, whatever ended them."""
    raw = b'{ "url":"/v1/completions", "custom_id" :"\\u00e9", "body":{"prompt":"1"} } '
    run = press.accept(raw + b"\r", request("b"), end=b"")
    press.refuse(run, 0)
    press.refuse(run, 1)
    press.commit(run)
    press.publish(run)
    assert read(press, "retry.jsonl") == raw + b"\r\n" + request("b") + b"\n"
    (press.spool.inbox / "again.jsonl").write_bytes(read(press, "retry.jsonl"))
    (answer,) = press.take_drops()
    assert answer.queued is not None


def test_the_status_counts_and_sums_what_is_there(press: Press) -> None:
    """Counts, tokens, files and their checksums are those of the folder."""
    run = press.accept(request("a"), request("b"))
    press.answer(run, 0)
    press.refuse(run, 1)
    press.commit(run)
    press.publish(run)
    status = orjson.loads(read(press, "status.json"))
    assert status["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert status["usage"] == {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    assert status["checksums"] == {
        name: hashlib.sha256(read(press, name)).hexdigest()
        for name in ("output.jsonl", "errors.jsonl", "retry.jsonl")
    }


def test_everything_is_readable_by_the_group_alone(press: Press) -> None:
    """The folder and its files have the same modes, whatever the umask was."""
    run = press.accept(request("a"))
    press.answer(run, 0)
    press.commit(run)
    before = os.umask(0o077)
    press.publish(run)
    os.umask(before)
    folder = press.spool.outbox / "job"
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


def test_a_published_job_leaves_only_its_record(press: Press) -> None:
    """running/ is empty, and the ledger keeps what a re-delivery needs."""
    run = press.accept(request("a"))
    press.answer(run, 0)
    press.commit(run)
    press.publish(run)
    assert list(press.spool.running.iterdir()) == []
    (record,) = press.ledger.jobs()
    assert (record.outbox, record.completed, record.finished_at is None) == ("job", 1, False)


def test_publishing_again_changes_nothing(press: Press) -> None:
    """A repetition after a crash finds the folder and finishes the rest."""
    run = press.accept(request("a"))
    press.answer(run, 0)
    press.commit(run)
    first = run.record
    discard = press.spool.discard
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(press.spool, "discard", lambda _: None)
        patch.setattr(press.ledger, "finish", lambda *_: None)
        publish(first, press.spool, press.ledger)
    before = read(press, "output.jsonl"), read(press, "status.json")
    publish(first, press.spool, press.ledger)
    assert (read(press, "output.jsonl"), read(press, "status.json")) == before
    assert [path.name for path in press.spool.outbox.iterdir()] == ["job"]
    discard(first.id)


def test_a_folder_that_was_collected_before_the_end_is_not_shown_twice(press: Press) -> None:
    """A sender that is quicker than our last step gets its results once."""
    run = press.accept(request("a"))
    press.answer(run, 0)
    press.commit(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(press.ledger, "finish", lambda *_: None)
        patch.setattr(press.spool, "discard", lambda _: None)
        publish(run.record, press.spool, press.ledger)
    for path in (press.spool.outbox / "job").iterdir():
        path.unlink()
    (press.spool.outbox / "job").rmdir()
    record = press.ledger.job(run.record.id)
    assert record is not None
    publish(record, press.spool, press.ledger)
    assert list(press.spool.outbox.iterdir()) == []
    (record,) = press.ledger.jobs()
    assert record.finished_at is not None


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_job_with_a_request_without_outcome_is_never_published(
    press: Press, missing: int
) -> None:
    """A bug in the counting ends the daemon before a sender sees it."""
    run = press.accept(*(request(f"r{n}") for n in range(3)))
    for ordinal in range(3):
        if ordinal != missing:
            press.answer(run, ordinal)
    press.commit(run)
    press.ledger.checkpoint([Checkpoint(run.record.id, Progress(completed=3))])
    with pytest.raises(LedgerError):
        publish(run.record, press.spool, press.ledger)
    assert list(press.spool.outbox.iterdir()) == []


def test_counts_that_do_not_agree_are_never_published(press: Press) -> None:
    """Progress must say what the lines say."""
    run = press.accept(request("a"), request("b"))
    press.answer(run, 0)
    press.answer(run, 1)
    press.commit(run)
    press.ledger.checkpoint([Checkpoint(run.record.id, Progress(completed=1, failed=1))])
    with pytest.raises(LedgerError) as caught:
        publish(run.record, press.spool, press.ledger)
    assert caught.value.code == "count_mismatch"


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["answer", "refuse", "bad", "blank"]), min_size=1, max_size=25))
def test_any_job_is_published_and_proved(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str]
) -> None:
    """Whatever mix of ends and blank lines, the folder passes its own proof."""
    press = Press(tmp_path_factory.mktemp("press") / "spool", LENIENT)
    texts = {"bad": b"nope", "blank": b" "}
    lines = [texts.get(kind) or request(f"r{n}") for n, kind in enumerate(kinds)]
    run = press.accept(*lines, request("last"))
    ends = [kind for kind in kinds if kind != "blank"]
    for ordinal, kind in reversed([*enumerate([*ends, "answer"])]):
        if kind == "answer":
            press.answer(run, ordinal)
        else:
            fault = Fault(code="invalid_json", message="m") if kind == "bad" else None
            press.refuse(run, ordinal, fault)
        if ordinal % 3 == 0:
            press.commit(run)
    press.commit(run)
    assert verify_running(run.record, press.spool, press.ledger).faults == []
    press.publish(run)
    assert press.prove() == []
    press.close()


# -- the proof finds what is wrong --------------------------------------------------


def published(press: Press) -> Path:
    """The folder of a job of two answers, a refusal and a bad line."""
    run = press.accept(request("a"), request("b"), b"nope", request("c"))
    press.answer(run, 0)
    press.answer(run, 1)
    press.refuse(run, 2, Fault(code="invalid_json", message="m"))
    press.refuse(run, 3)
    press.commit(run)
    press.publish(run)
    assert press.prove() == []
    return press.spool.outbox / "job"


def change(path: Path, harm: str) -> None:
    """Do to a published file what should never happen."""
    lines = path.read_bytes().splitlines(keepends=True)
    changed: dict[str, Any] = {
        "lost": lines[:-1],
        "twice": [*lines, lines[-1]],
        "swapped": lines[::-1],
        "renamed": [lines[0].replace(b'"custom_id":"a"', b'"custom_id":"z"'), *lines[1:]],
        "garbage": [b"[1]\n", *lines[1:]],
        "cut": [*lines[:-1], lines[-1][:20]],
    }
    path.write_bytes(b"".join(changed[harm]))


@pytest.mark.parametrize("harm", ["lost", "twice", "swapped", "renamed", "garbage", "cut"])
def test_the_proof_finds_any_harm_to_a_published_job(press: Press, harm: str) -> None:
    """Lost, doubled, reordered, renamed or broken lines are reported."""
    change(published(press) / "output.jsonl", harm)
    assert press.prove()


def test_the_proof_finds_a_line_with_two_ends(press: Press) -> None:
    """A request that is both answered and dead is reported, even without its custom_id."""
    folder = published(press)
    output, errors = folder / "output.jsonl", folder / "errors.jsonl"
    line = output.read_bytes().splitlines(keepends=True)[0]
    none = line.replace(b'"custom_id":"a"', b'"custom_id":null')
    errors.write_bytes(none + errors.read_bytes())
    assert press.prove()


def test_the_proof_finds_a_missing_file(press: Press) -> None:
    """A file that status.json names and that is missing is reported."""
    (published(press) / "errors.jsonl").unlink()
    assert any("errors.jsonl" in fault for fault in press.prove())


@pytest.mark.parametrize("harm", ["input", "results"])
def test_the_proof_finds_harm_to_a_running_job(press: Press, harm: str) -> None:
    """An input that is not what was accepted, or a result that cannot be read, is reported."""
    run = press.accept(request("a"), request("b"))
    press.answer(run, 0)
    press.commit(run)
    assert verify_running(run.record, press.spool, press.ledger).faults == []
    path = press.spool.input_path(run.record.id)
    if harm == "results":
        path = press.spool.results_path(run.record.id)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"custom_id":"a"', b'"custom_id":"z"'))
    proof = verify_running(run.record, press.spool, press.ledger)
    assert proof.faults
    assert proof.summary == ""

"""Submitting: a drop as a careful sender makes it, and the wait for its end."""

import hashlib
from pathlib import Path

import orjson
import pytest

from builders import JOB_ID, job_record, make_spool, request
from inbox_daemon.cli import submit
from inbox_daemon.cli.submit import Dropped
from inbox_daemon.contract import job_documents
from inbox_daemon.contract.documents import Fault, JobStatus, Refusal
from inbox_daemon.contract.errors import SenderError
from inbox_daemon.contract.job_documents import pretty
from inbox_daemon.contract.states import BatchStatus
from inbox_daemon.spool import Spool

CONTENT = request("a") + b"\n" + request("b") + b"\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
DROPPED = Dropped("job", SHA256, 2, 1000.0)
FAULT = Fault(code="too_large", message="it is too large")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return make_spool(tmp_path)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A file to submit."""
    path = tmp_path / "job.jsonl"
    path.write_bytes(CONTENT)
    return path


# -- drop ---------------------------------------------------------------------------


def test_a_drop_is_whole_and_has_its_marker(spool: Spool, job: Path) -> None:
    """The file lies in inbox/ with the sender's word on it, and nothing else does."""
    dropped = submit.drop(spool, job)
    assert (dropped.name, dropped.sha256, dropped.lines) == ("job", SHA256, 2)
    assert (spool.inbox / "job.jsonl").read_bytes() == CONTENT
    marker = orjson.loads((spool.inbox / "job.jsonl.ready").read_bytes())
    assert marker == {"bytes": len(CONTENT), "sha256": SHA256}
    names = {path.name for path in spool.inbox.iterdir()}
    assert names == {"job.jsonl", "job.jsonl.ready", "high", "low"}


def test_a_file_that_waits_is_not_replaced(spool: Spool, job: Path) -> None:
    """While a file of that name waits to be taken, a second one is refused."""
    submit.drop(spool, job)
    job.write_bytes(b"other")
    with pytest.raises(SenderError) as caught:
        submit.drop(spool, job)
    assert caught.value.code == "name_in_use"
    assert (spool.inbox / "job.jsonl").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["a b.jsonl", "a.json", "ALL.jsonl", "status.json.jsonl"])
def test_a_name_that_is_no_jobs_is_refused_at_once(spool: Spool, job: Path, name: str) -> None:
    """What the daemon would refuse later is refused here."""
    with pytest.raises(SenderError) as caught:
        submit.drop(spool, job.rename(job.with_name(name)))
    assert caught.value.code == "bad_name"


def test_what_cannot_be_read_is_the_senders_to_mend(spool: Spool, tmp_path: Path) -> None:
    """A missing file is named, and so is a folder."""
    (tmp_path / "dir.jsonl").mkdir()
    for name in ("none.jsonl", "dir.jsonl"):
        with pytest.raises(SenderError) as caught:
            submit.drop(spool, tmp_path / name)
        assert caught.value.code == "unreadable"


def test_a_spool_that_was_never_made_is_named(tmp_path: Path, job: Path) -> None:
    """Without an inbox the error says how to make one."""
    with pytest.raises(SenderError, match="inbox-daemon init"):
        submit.drop(Spool(tmp_path / "none"), job)


# -- outcome ------------------------------------------------------------------------


def publish(spool: Spool, folder: str, sha256: str = SHA256) -> None:
    """Put a finished job's status where it would lie."""
    record = job_record(sha256=sha256, status=BatchStatus.COMPLETED, finished_at=1001.0)
    (spool.outbox / folder).mkdir()
    status = job_documents.job_status(record, errors=False, retry=False)
    (spool.outbox / folder / "status.json").write_bytes(pretty(status))


def refuse(
    spool: Spool, file: str, sha256: str | None = SHA256, *, at: float = 1001.0, name: str = "job"
) -> None:
    """Put a refusal where it would lie."""
    why = job_documents.reason(JOB_ID, name, [FAULT], at, sha256=sha256)
    (spool.rejected / f"{file}.reason.json").write_bytes(pretty(why))


def test_nothing_is_known_of_a_file_that_waits(spool: Spool) -> None:
    """While the file lies in inbox/ an older answer is not taken for its own."""
    publish(spool, "job")
    (spool.inbox / "job.jsonl").touch()
    assert submit.outcome(spool, DROPPED) is None


@pytest.mark.parametrize("folder", ["job", f"job.{JOB_ID}"])
def test_a_published_job_is_found(spool: Spool, folder: str) -> None:
    """The answer is found under the job's name, and beside it where that was taken."""
    publish(spool, folder)
    found = submit.outcome(spool, DROPPED)
    assert isinstance(found, JobStatus)
    assert found.status == "completed"


@pytest.mark.parametrize("file", ["job", f"job.{JOB_ID}"])
@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_refusal_is_found(spool: Spool, file: str, sha256: str | None) -> None:
    """A refusal ends the wait, also one that came before the file was read."""
    refuse(spool, file, sha256)
    found = submit.outcome(spool, DROPPED)
    assert isinstance(found, Refusal)
    assert found.code == "too_large"


def test_what_happened_to_other_files_is_no_answer(spool: Spool) -> None:
    """Neither other bytes, nor an earlier refusal, nor a job with a longer name counts."""
    publish(spool, "job", "1" * 64)
    refuse(spool, "job", at=900.0)
    refuse(spool, "job.2", None, name="job.2")
    refuse(spool, f"job.{JOB_ID}", "1" * 64)
    assert submit.outcome(spool, DROPPED) is None


def test_a_refusals_notice_is_not_taken_for_results(spool: Spool) -> None:
    """The failed status in outbox/ does not count; the reason with its faults does."""
    why = job_documents.reason(JOB_ID, "job", [FAULT], 1001.0, sha256=SHA256)
    spool.put_notice("job", pretty(job_documents.refused_status(why, 2)))
    assert submit.outcome(spool, DROPPED) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", orjson.dumps({"sha256": SHA256})])
def test_a_document_that_cannot_be_read_is_passed_over(spool: Spool, content: bytes) -> None:
    """Garbage where a document should lie ends neither the wait nor the program."""
    (spool.outbox / "job").mkdir()
    (spool.outbox / "job" / "status.json").write_bytes(content)
    (spool.rejected / "job.reason.json").write_bytes(content)
    assert submit.outcome(spool, DROPPED) is None


# -- orders -------------------------------------------------------------------------

NONE = frozenset[str]()


def test_an_order_is_a_file(spool: Spool) -> None:
    """A command becomes NAME.ACTION in inbox/, with its reason if it has one."""
    submit.order(spool, "job", "cancel")
    submit.order(spool, "ALL", "redrive", reason="poison")
    assert (spool.inbox / "job.cancel").read_bytes() == b""
    assert orjson.loads((spool.inbox / "ALL.redrive").read_bytes()) == {"reason": "poison"}


@pytest.mark.parametrize(
    ("name", "reason", "code"),
    [("a b", None, "bad_name"), ("../x", None, "bad_name"), ("job", "bad", "unknown_reason")],
)
def test_an_order_that_makes_no_sense_is_refused(
    spool: Spool, name: str, reason: str | None, code: str
) -> None:
    """Names and reasons are checked before anything is dropped."""
    with pytest.raises(SenderError) as caught:
        submit.order(spool, name, "redrive", reason=reason)
    assert caught.value.code == code
    assert {path.name for path in spool.inbox.iterdir()} == {"high", "low"}


def test_an_order_that_was_taken_is_obeyed(spool: Spool) -> None:
    """Once the file is gone and no refusal lies there, the order was carried out."""
    assert submit.wait_obeyed(spool, "job.cancel", 0.0, NONE) is None


def test_an_order_that_was_refused_says_why(spool: Spool) -> None:
    """The refusal's words are those of its fault."""
    refuse(spool, "job.cancel", None, at=4e9, name="job.cancel")
    (spool.rejected / "job.cancel").touch()
    assert submit.wait_obeyed(spool, "job.cancel", 0.0, NONE) == "it is too large"


def test_an_order_is_not_taken_for_an_earlier_one_that_was_refused(spool: Spool) -> None:
    """A second order that follows at once has an answer of its own."""
    refuse(spool, "job.cancel", None, at=4e9, name="job.cancel")
    (spool.rejected / "job.cancel").touch()
    earlier = submit.order(spool, "job", "cancel")
    (spool.inbox / "job.cancel").unlink()
    assert submit.wait_obeyed(spool, "job.cancel", 0.0, earlier) is None


@pytest.mark.parametrize("place", ["claimed", "rejected"])
def test_an_order_that_is_being_refused_is_not_done(spool: Spool, place: str) -> None:
    """Between inbox/ and its reason in rejected/ it is not taken for obeyed."""
    folder = spool.claimed / f"{JOB_ID}.normal.drop" if place == "claimed" else spool.rejected
    folder.mkdir(exist_ok=True)
    (folder / "job.cancel").touch()
    assert submit.wait_obeyed(spool, "job.cancel", 0.0, NONE) is not None
    assert submit.wait_obeyed(spool, "other.cancel", 0.0, NONE) is None


def test_an_order_without_a_daemon_waits_for_one(spool: Spool) -> None:
    """After the patience is over the words say what is missing."""
    earlier = submit.order(spool, "job", "cancel")
    words = submit.wait_obeyed(spool, "job.cancel", 0.0, earlier)
    assert words is not None
    assert "inbox-daemon run" in words

"""Recovery: whatever a crash left, the next start goes on to the same end."""

import errno
import os
import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from builders import JOB_ID, config, job_record, make_spool, request
from crashing import dying
from inbox_daemon.contract import job_documents
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.job_documents import pretty
from inbox_daemon.contract.records import Checkpoint, Ended, OutcomeAt, Progress
from inbox_daemon.contract.states import Outcome
from inbox_daemon.jobs.recovery import recover
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool, durable
from miniature import Miniature, life
from spool_files import names

OTHER = JOB_ID[:-1] + "1"
IDS = [f"r{number}" for number in range(5)]
GOOD = b"\n".join(request(custom_id) for custom_id in IDS) + b"\n"
BAD = b"nope\n"


def assert_ended_well(daemon: Miniature, crashes: int) -> None:
    """Check a spool in which one good and one bad job have ended."""
    spool = daemon.spool
    output = (spool.outbox / "job" / "output.jsonl").read_bytes()
    lines = [orjson.loads(line) for line in output.splitlines()]
    assert [line["custom_id"] for line in lines] == IDS
    assert [line["response"]["body"]["echo"] for line in lines] == IDS
    status = orjson.loads((spool.outbox / "job" / "status.json").read_bytes())
    assert status["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert status["usage"]["total_tokens"] == 15
    assert names(spool.outbox) == {"job", "bad"}
    refused = [path for path in spool.rejected.iterdir() if path.suffix == ".jsonl"]
    # A crash between the refusal and the removal of the drop makes a second refusal.
    assert 1 <= len(refused) <= 1 + crashes
    assert all(path.read_bytes() == BAD for path in refused)
    for path in refused:
        assert path.with_name(f"{path.stem}.reason.json").exists()
    assert len(names(spool.rejected)) == 2 * len(refused)
    for folder in spool.claimed, spool.queued, spool.running, spool.quarantine:
        assert names(folder) == set()
    assert names(spool.inbox) == {"high", "low"}
    records = daemon.ledger.jobs()
    assert [(record.name, record.completed) for record in records] == [("job", 5)]
    assert daemon.ledger.entries(records[0].id) == []


def prepare(tmp_path: Path) -> Path:
    """A spool that was used before, with a good and a bad drop in inbox/."""
    root = tmp_path / "spool"
    with life(root) as daemon:
        (daemon.spool.inbox / "job.jsonl").write_bytes(GOOD)
        (daemon.spool.inbox / "bad.jsonl").write_bytes(BAD)
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a spool, to be copied."""
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize("part", range(4))
def test_a_crash_before_any_effect_is_recovered_from(
    tmp_path: Path, prepared: Path, part: int
) -> None:
    """After a crash at any effect, the next start ends in one complete folder in outbox/."""
    ended = False
    for at in range(1 + part, 1000, 4):
        root = shutil.copytree(prepared, tmp_path / str(at))
        lives: list[Miniature] = []
        with dying(at) as crasher, life(root) as daemon:
            lives.append(daemon)
            daemon.live()
        if not crasher.dead:
            ended = at > 60  # or the flow were not what this test is about
            break
        with life(root) as daemon:
            lives.append(daemon)
            daemon.live()
            assert_ended_well(daemon, 1)
        executions = Counter(line for one in lives for line in one.executed)
        assert len(executions) == 5
        # Only what was in flight or not committed runs again.
        assert sum(executions.values()) <= 5 + 2
    assert ended


@pytest.mark.parametrize("seed", range(12))
def test_crash_after_crash_is_recovered_from(tmp_path: Path, prepared: Path, seed: int) -> None:
    """Starts that crash again and again still end in the same state."""
    rng, root = Random(seed), shutil.copytree(prepared, tmp_path / "spool")
    for _ in range(6):
        with dying(rng.randint(1, 40)), life(root) as daemon:
            daemon.live()
    with life(root) as daemon:
        daemon.live()
        assert_ended_well(daemon, 6)


# -- what may lie there -------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return make_spool(tmp_path)


def accept(ledger: Ledger, job_id: str = JOB_ID, name: str = "job", requests: int = 5) -> None:
    """Record a job that has no file."""
    ledger.accept(job_record(job_id, name, requests=requests), [])


def endings(spool: Spool) -> list[Ended]:
    """The ended events, oldest first."""
    ledger = Ledger(spool.ledger)
    try:
        return ledger.last_endings(10)
    finally:
        ledger.close()


def recovered(spool: Spool, *, accepted: tuple[str, ...] = ()) -> list[str]:
    """The ids in the queue after a start; `accepted` are known to the ledger before."""
    ledger = Ledger(spool.ledger)
    try:
        for job_id in accepted:
            accept(ledger, job_id, f"job{job_id[-1]}")
        queue = recover(spool, ledger)
        for run in queue.runs():
            run.close()
        return sorted(queue.entries)
    finally:
        ledger.close()


def test_an_empty_spool_recovers_to_an_empty_queue(spool: Spool) -> None:
    """The first start on a new spool finds nothing to do."""
    assert recovered(spool) == []


def test_queued_and_running_jobs_are_taken_up(spool: Spool) -> None:
    """Both go on where they were."""
    (spool.queued / f"{OTHER}.jsonl").write_bytes(GOOD)
    (spool.running / JOB_ID).mkdir()
    spool.input_path(JOB_ID).write_bytes(GOOD)
    assert recovered(spool, accepted=(JOB_ID, OTHER)) == [JOB_ID, OTHER]


def test_a_start_that_was_cut_off_is_begun_again(spool: Spool) -> None:
    """An empty folder in running/ beside the file in queued/ is no second job."""
    (spool.queued / f"{JOB_ID}.jsonl").write_bytes(GOOD)
    (spool.running / JOB_ID).mkdir()
    assert recovered(spool, accepted=(JOB_ID,)) == [JOB_ID]
    assert names(spool.running) == set()


def test_a_job_without_a_record_is_set_aside(spool: Spool) -> None:
    """Files without a record are kept in quarantine/, whole."""
    (spool.queued / f"{OTHER}.jsonl").write_bytes(GOOD)
    (spool.running / JOB_ID).mkdir()
    spool.input_path(JOB_ID).write_bytes(GOOD)
    assert recovered(spool) == []
    assert names(spool.quarantine) == {f"{OTHER}.jsonl", JOB_ID}
    assert (spool.quarantine / JOB_ID / "input.jsonl").read_bytes() == GOOD


def test_what_is_set_aside_replaces_nothing(spool: Spool) -> None:
    """A second file of the same name is put beside the first."""
    for content in (b"one", b"two"):
        (spool.queued / f"{OTHER}.jsonl").write_bytes(content)
        recovered(spool)
    assert sorted(path.read_bytes() for path in spool.quarantine.iterdir()) == [b"one", b"two"]


def test_one_damaged_job_does_not_stop_the_others(spool: Spool) -> None:
    """Committed results that are gone cost that job, which is kept, and no other."""
    ledger = Ledger(spool.ledger)
    accept(ledger)
    progress = Progress(committed=50, admitted=5, completed=1)
    entry = OutcomeAt(0, 50, Outcome.RESULT, retryable=False)
    ledger.checkpoint([Checkpoint(JOB_ID, progress, [(1, entry)])])
    ledger.close()
    (spool.running / JOB_ID).mkdir()
    spool.input_path(JOB_ID).write_bytes(GOOD)
    (spool.queued / f"{OTHER}.jsonl").write_bytes(GOOD)
    assert recovered(spool, accepted=(OTHER,)) == [OTHER]
    assert names(spool.quarantine) == {JOB_ID}


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_a_job_that_can_be_neither_opened_nor_set_aside_waits(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The start goes on, the others are taken up, and the job is tried again as a queued one."""
    for job_id in JOB_ID, OTHER:
        (spool.running / job_id).mkdir()
        (spool.running / job_id / "input.jsonl").write_bytes(GOOD)
    real, move = os.open, durable.move

    def fail(path: object, *words: Any, **more: Any) -> int:  # noqa: ANN401 - as os.open takes them
        if f"{JOB_ID}/input" in str(path):
            raise OSError(number, os.strerror(number))
        return real(path, *words, **more)  # type: ignore[arg-type]

    def keep(source: Path, target: Path) -> None:
        if source.name == JOB_ID:
            raise OSError(number, os.strerror(number))
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        patch.setattr(durable, "move", keep)
        assert recovered(spool, accepted=(JOB_ID, OTHER)) == [JOB_ID, OTHER]
    assert names(spool.running) == {JOB_ID, OTHER}
    assert endings(spool) == []
    assert recovered(spool) == [JOB_ID, OTHER]


def test_each_leftover_is_tried_alone(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be moved or removed stays, is named, and goes at a later start."""
    kept = (spool.claimed / f"{JOB_ID}.jsonl", spool.claimed / "junk", spool.queued / "x.jsonl")
    gone = (spool.claimed / f"{OTHER}.jsonl", spool.claimed / "other", spool.queued / "y.jsonl")
    for path in (*kept, *gone):
        path.write_bytes(GOOD)
    remove, move = durable.remove_file, durable.move

    def keep(path: Path, *others: Path) -> None:
        if path in kept:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        (move if others else remove)(path, *others)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "remove_file", keep)
        patch.setattr(durable, "move", keep)
        assert recovered(spool) == []
    assert [path.exists() for path in (*kept, *gone)] == [True] * 3 + [False] * 3
    assert len(spool.troubles.words()) == len(kept)
    assert recovered(spool) == []
    assert [path.exists() for path in kept] == [False] * 3
    assert spool.troubles.words() == ()


@pytest.mark.parametrize("content", [GOOD[: len(GOOD) // 2], b"", b"\n\n\n"])
def test_an_input_that_lost_lines_is_damage(spool: Spool, content: bytes) -> None:
    """A file with fewer requests than were accepted is set aside before it can be published."""
    (spool.running / JOB_ID).mkdir()
    spool.input_path(JOB_ID).write_bytes(content)
    assert recovered(spool, accepted=(JOB_ID,)) == []
    assert names(spool.quarantine) == {JOB_ID}


def test_a_job_whose_file_vanished_frees_its_name(spool: Spool) -> None:
    """A record without any file is forgotten, so that the sender may send it again."""
    assert recovered(spool, accepted=(JOB_ID,)) == []
    ledger = Ledger(spool.ledger)
    assert ledger.jobs() == []
    ledger.close()


def test_leftovers_of_claims_are_cleared(spool: Spool) -> None:
    """Partial copies, unfinished notices and temporary files are removed."""
    (spool.claimed / f"{JOB_ID}.jsonl").write_bytes(b"half")
    (spool.claimed / ".1234.new").write_bytes(b"half")
    (spool.claimed / "notice.job").mkdir()
    (spool.claimed / "notice.job" / "status.json").write_bytes(b"{")
    assert recovered(spool, accepted=(JOB_ID,)) == []
    assert names(spool.claimed) == set()
    assert names(spool.quarantine) == set()


@pytest.mark.parametrize("content", [b"", b"{", b'{"file": "x.js', b"\0" * 50])
def test_a_reason_that_was_cut_off_is_dropped(spool: Spool, content: bytes) -> None:
    """A refusal whose reason was not whole yet is repeated from its file."""
    (spool.claimed / f"{JOB_ID}.reason.json").write_bytes(content)
    (spool.claimed / f"{JOB_ID}.jsonl").write_bytes(BAD)
    assert recovered(spool) == []
    assert names(spool.claimed) == set()
    assert names(spool.rejected) == set()


def test_a_refusal_is_rolled_forward(spool: Spool) -> None:
    """With the reason whole, the claim and its reason go to rejected/, from either step.

    The refusal is among the ended events, once.
    """
    note = spool.claimed / f"{JOB_ID}.reason.json"
    fault = Fault(code="x", message="no")
    reason = pretty(job_documents.reason(JOB_ID, "bad", [fault], 5.0, file="bad.jsonl"))
    for claim in (spool.claimed / f"{JOB_ID}.jsonl", spool.rejected / "bad.jsonl"):
        note.write_bytes(reason)
        claim.write_bytes(BAD)
        recovered(spool)
        assert [(e.id, e.kind) for e in endings(spool)] == [(JOB_ID, "rejected")]
        assert names(spool.rejected) == {"bad.jsonl", "bad.reason.json"}
        assert names(spool.claimed) == set()
        for path in spool.rejected.iterdir():
            path.unlink()


def test_a_reason_that_says_too_little_is_kept_all_the_same(spool: Spool) -> None:
    """A reason of another release is kept in rejected/, and the start goes on."""
    (spool.claimed / f"{JOB_ID}.reason.json").write_bytes(orjson.dumps({"file": "bad.jsonl"}))
    (spool.claimed / f"{JOB_ID}.jsonl").write_bytes(BAD)
    recovered(spool)
    assert names(spool.rejected) == {"bad.jsonl", "bad.reason.json"}
    assert endings(spool) == []


def test_a_drop_that_was_being_taken_away_is_back(spool: Spool) -> None:
    """It is in its own lane again, under its own name, whatever the name is."""
    for folder, name in ("normal.drop", "a.drop.b.jsonl"), ("high.drop", "x.reason.json"):
        (spool.claimed / f"{JOB_ID}.{folder}").mkdir()
        (spool.claimed / f"{JOB_ID}.{folder}" / name).write_bytes(folder.encode())
    recovered(spool)
    assert (spool.inbox / "a.drop.b.jsonl").read_bytes() == b"normal.drop"
    assert (spool.inbox / "high" / "x.reason.json").read_bytes() == b"high.drop"
    assert names(spool.claimed) == set()


def test_a_newer_drop_of_the_same_name_stays(spool: Spool) -> None:
    """What was being taken away goes to quarantine/ when its place is taken."""
    (spool.claimed / f"{JOB_ID}.normal.drop").mkdir()
    (spool.claimed / f"{JOB_ID}.normal.drop" / "job.jsonl").write_bytes(b"old")
    (spool.inbox / "job.jsonl").write_bytes(b"new")
    recovered(spool)
    assert (spool.inbox / "job.jsonl").read_bytes() == b"new"
    assert [path.read_bytes() for path in spool.quarantine.iterdir()] == [b"old"]


@pytest.mark.parametrize("name", ["a.drop.b", "x.reason.json", "notice.x", "retained.y", "outbox"])
def test_a_jobs_name_cannot_look_like_our_own_files(tmp_path: Path, name: str) -> None:
    """Names that contain the names of our own files survive a crash like any other."""
    for at in range(20, 44, 4):
        root = tmp_path / str(at)
        with life(root) as daemon:
            (daemon.spool.inbox / f"{name}.jsonl").write_bytes(BAD)
        with dying(at), life(root) as daemon:
            daemon.live()
        with life(root) as daemon:
            daemon.live()
            status = orjson.loads((daemon.spool.outbox / name / "status.json").read_bytes())
            assert status["status"] == "failed"
            assert names(daemon.spool.inbox) == {"high", "low"}
            assert names(daemon.spool.quarantine) == names(daemon.spool.claimed) == set()


def test_recent_ends_are_remembered(tmp_path: Path) -> None:
    """After a restart the last finished and the last refused job are still known."""
    root = prepare(tmp_path)
    with life(root) as daemon:
        daemon.live()
        (daemon.spool.rejected / "broken.reason.json").write_bytes(b"[")
    with life(root, config()) as daemon:
        assert {(job.name, job.status) for job in daemon.queue.recent} == {
            ("job", "completed"),
            ("bad", "rejected"),
        }
        assert daemon.queue.last_finished is not None
        assert daemon.queue.last_rejected is not None

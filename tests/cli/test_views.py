"""Views: the reading commands see everything and disturb nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from builders import JOB_ID, dead_letter, job_record, make_spool, request, service_status
from inbox_daemon.cli import views
from inbox_daemon.contract import job_documents
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.errors import LedgerError, SenderError
from inbox_daemon.contract.job_documents import pretty
from inbox_daemon.contract.records import Checkpoint, Progress
from inbox_daemon.contract.states import BatchStatus, JobState
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool
from miniature import life

SECOND = JOB_ID[:-1] + "1"
THIRD = JOB_ID[:-1] + "2"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return make_spool(tmp_path)


def seen(spool: Spool) -> list[tuple[str, JobState, str]]:
    """Each job's id, state and status word."""
    return [(v.status.id, v.state, str(v.status.status)) for v in views.list_jobs(spool)]


def fill(spool: Spool) -> None:
    """A job in each state: refused, published, running, queued."""
    ledger = Ledger(spool.ledger)
    done = job_record(
        JOB_ID, "done", status=BatchStatus.COMPLETED, finished_at=1.0, outbox="done", completed=1
    )
    ledger.accept(done, [])
    ledger.accept(job_record(SECOND, "running", requests=4, created_at=1001.0), [])
    ledger.accept(job_record(THIRD, "queued", created_at=1002.0), [])
    ledger.checkpoint([Checkpoint(SECOND, Progress(completed=2, failed=1))])
    ledger.close()
    (spool.running / SECOND).mkdir()
    spool.input_path(SECOND).touch()
    (spool.outbox / "done").mkdir()
    status = job_documents.job_status(done, errors=False, retry=False)
    (spool.outbox / "done" / "status.json").write_bytes(pretty(status))
    why = job_documents.reason("refused-id", "refused", [Fault(code="x", message="m")], 999.0)
    (spool.rejected / "refused.reason.json").write_bytes(pretty(why))
    spool.put_notice("refused", pretty(job_documents.refused_status(why, 0)))


def test_every_job_is_seen_once_in_its_state(spool: Spool) -> None:
    """Refused, published, running and queued jobs are listed, the oldest first."""
    fill(spool)
    assert seen(spool) == [
        ("refused-id", JobState.REJECTED, "failed"),
        (JOB_ID, JobState.PUBLISHED, "completed"),
        (SECOND, JobState.RUNNING, "in_progress"),
        (THIRD, JobState.QUEUED, "validating"),
    ]
    running = views.find_jobs(spool, "running.jsonl")[0].status
    assert (running.request_counts.completed, running.request_counts.failed) == (2, 1)


def test_a_job_is_found_by_name_and_by_id(spool: Spool) -> None:
    """A name and an id both find the job, and an unknown name finds nothing."""
    fill(spool)
    assert [v.status.name for v in views.find_jobs(spool, SECOND)] == ["running"]
    assert [v.status.id for v in views.find_jobs(spool, "queued")] == [THIRD]
    assert views.find_jobs(spool, "unknown") == []


def test_a_collected_job_is_still_known(spool: Spool) -> None:
    """After its folder was taken the ledger tells how it ended."""
    fill(spool)
    (spool.outbox / "done" / "status.json").unlink()
    (spool.outbox / "done").rmdir()
    assert (JOB_ID, JobState.PUBLISHED, "completed") in seen(spool)


def test_an_unused_spool_is_empty(spool: Spool, tmp_path: Path) -> None:
    """Without a ledger, or without a spool at all, there are no jobs and no error."""
    assert views.list_jobs(spool) == []
    assert views.list_jobs(Spool(tmp_path / "none")) == []
    assert views.service_status(Spool(tmp_path / "none")) is None


def test_reading_makes_nothing(spool: Spool) -> None:
    """A reading command leaves no file behind, not even an empty ledger."""
    views.list_jobs(spool)
    assert list(spool.ledger.iterdir()) == []


def test_without_the_ledger_the_health_document_tells(spool: Spool) -> None:
    """A user who may not read the ledger sees the active jobs as outbox/ shows them."""
    job = {
        "id": SECOND,
        "name": "running",
        "state": "running",
        "requests": 4,
        "completed": 1,
        "failed": 0,
        "created_at": 5,
        "energy_j": 9.5,
    }
    queued = job | {"id": THIRD, "name": "queued", "state": "queued", "completed": 0}
    spool.write_service_status(pretty(service_status(jobs=[job, queued])))
    assert seen(spool) == [
        (SECOND, JobState.RUNNING, "in_progress"),
        (THIRD, JobState.QUEUED, "validating"),
    ]
    assert [view.status.energy_j for view in views.list_jobs(spool)] == [9.5, 9.5]


def test_documents_that_cannot_be_read_are_passed_over(spool: Spool) -> None:
    """One broken file does not hide the rest."""
    fill(spool)
    (spool.outbox / "broken").mkdir()
    (spool.outbox / "broken" / "status.json").write_bytes(b"{")
    (spool.outbox / "leftover").write_bytes(b"")
    (spool.outbox / "status.json").write_bytes(b'{"seq": 1}')
    (spool.rejected / "broken.reason.json").write_bytes(b"[]")
    assert len(views.list_jobs(spool)) == 4
    assert views.service_status(spool) is None


def test_a_writer_in_another_process_is_not_disturbed(spool: Spool) -> None:
    """While one process commits without a pause, another lists the jobs again and again."""
    fill(spool)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from inbox_daemon.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "print('open', flush=True)\n"
        "for number in range(300):\n"
        "    ledger.put_state('x', b'%d' % number)\n"
        "    if number == 50:\n"
        "        ledger._env.set_mapsize(1 << 30)\n"
        "print(ledger.get_state('x').decode(), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(spool.ledger)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        while writer.poll() is None:
            assert len(views.list_jobs(spool)) == 4
        assert writer.stdout.readline() == "299\n"
    assert writer.returncode == 0


@pytest.mark.parametrize(
    ("now", "fresh"),
    [(1000.0, True), (1010.0, True), (1010.1, False), (995.0, True), (989.9, False)],
)
def test_a_document_is_fresh_until_its_own_time_is_over(now: float, fresh: bool) -> None:  # noqa: FBT001 - a table
    """The document itself says how long it counts, also by a clock that was set back."""
    assert views.is_fresh(service_status(), now) == fresh


# -- dead letters and proofs --------------------------------------------------------


def elsewhere(spool: Spool, code: str) -> str:
    """What another process prints about a spool."""
    head = "import sys\nfrom pathlib import Path\nfrom inbox_daemon.cli import views\n"
    head += "from inbox_daemon.spool import Spool\nspool = Spool(Path(sys.argv[1]))\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code, str(spool.root)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_dead_letters_are_found_by_job_and_reason(spool: Spool) -> None:
    """By name or id, by reason, or all of them."""
    ledger = Ledger(spool.ledger)
    letters = [dead_letter(1), dead_letter(2, reason="poison"), dead_letter(1, SECOND, job="b")]
    ledger.checkpoint([Checkpoint(JOB_ID, Progress(), dead=letters)])
    ledger.close()

    def found(job: str | None, reason: str | None) -> list[tuple[str, int]]:
        return [(x.job, x.line) for x in views.dead_letters(spool, job, reason)]

    assert found(None, None) == [("job", 1), ("job", 2), ("b", 1)]
    assert found("job", None) == found(JOB_ID, None) == [("job", 1), ("job", 2)]
    assert found(None, "poison") == [("job", 2)]
    assert found("b", "poison") == []


def test_without_a_ledger_dead_letters_are_an_error_in_words(spool: Spool) -> None:
    """A command that needs the ledger says what is missing."""
    with pytest.raises(LedgerError, match="inbox-daemon run"):
        list(views.dead_letters(spool, None, None))


def test_a_running_and_a_published_job_are_proved_by_name_and_id(tmp_path: Path) -> None:
    """The newest job of a name is proved where it lies, beside a running daemon."""
    with life(tmp_path / "spool") as daemon:
        (daemon.spool.inbox / "job.jsonl").write_bytes(request("a") + b"\n" + request("b"))
        daemon.take_drops()
        daemon.start()
        (run,) = daemon.queue.runs()
        run.marks.admit(2)
        daemon.commit(run)
        daemon.execute(run, 1)
        daemon.commit(run)
        words = elsewhere(daemon.spool, "print(views.verify(spool, 'job').summary)")
        assert words.startswith("job: 1 of 2 requests have exactly one outcome so far")
        daemon.work(run)
        daemon.publish(run)
        for name in ("job", run.record.id):
            words = elsewhere(daemon.spool, f"print(views.verify(spool, {name!r}).summary)")
            assert words.startswith("job: all 2 requests have exactly one outcome")


def test_what_cannot_be_proved_is_said(spool: Spool) -> None:
    """A job that has no results says where it is; an unknown name says what lists the names."""
    fill(spool)
    words = {
        "unknown": "no job named 'unknown'; `inbox-daemon jobs` lists all",
        "done": "its results were collected",
        "queued": "it is queued and has no results yet",
        "refused": "`inbox-daemon job NAME` says why",
    }
    for name, said in words.items():
        with pytest.raises(SenderError, match=said):
            views.verify(spool, name)

"""Display: only printable text reaches a terminal, whatever its source."""

import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from builders import JOB_ID, job_record, make_spool, service_status
from inbox_daemon.cli import display, progress, submit, views
from inbox_daemon.cli.submit import Dropped
from inbox_daemon.cli.views import JobView
from inbox_daemon.contract import job_documents
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.health_documents import ServiceStatus
from inbox_daemon.contract.records import DeadLetter, DeadReason, Progress
from inbox_daemon.contract.states import BatchStatus, JobState

HOSTILE = "[/bold] [red]x[/red] \x1b[31m\x9b \n"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the tables room, so that no text is folded."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "dumb")


def hostile_status() -> ServiceStatus:
    """A health document in which every text is hostile."""
    job = {
        "id": JOB_ID,
        "name": "job",
        "state": "running",
        "requests": 9,
        "completed": 3,
        "failed": 1,
        "created_at": 1,
    }
    recent = {"id": JOB_ID, "name": HOSTILE, "status": "completed", "at": 1, "message": HOSTILE}
    fields: dict[str, Any] = {
        "written_at": time.time() + 5,  # fresh for as long as the test may take
        "status": "degraded",
        "reasons": [HOSTILE],
        "gpu": {
            "name": HOSTILE,
            "memory_percent": 5,
            "temperature_c": 50,
            "power_w": 9,
            "power_limit_w": 450,
            "throttle_reasons": ["sw_power_cap"],
            "healthy": True,
        },
        "worker": {"state": "paused", "reason": HOSTILE},
        "engine": {
            "state": "backoff",
            "models": [HOSTILE],
            "version": HOSTILE,
            "state_seconds": 1.0,
            "restarts": 2,
            "running": 3,
            "waiting": 4,
            "kv_cache_percent": 50,
            "last_error": HOSTILE,
            "last_lines": [HOSTILE],
        },
        "jobs": [job, job | {"name": "other", "state": "queued", "failed": 0}],
        "waiting": [{"name": "x", "why": HOSTILE, "since_s": 1.0}],
        "last_finished": recent,
        "last_rejected": recent,
    }
    return service_status(**fields)


def safe(text: str) -> str:
    """The text, after it was held to be free of control characters."""
    assert all(line.isprintable() for line in text.split("\n"))
    return text


def test_the_status_is_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    """Worker, engine, GPU, queue and jobs have their line, and each text only stands there."""
    display.print_status(hostile_status())
    out = safe(capsys.readouterr().out)
    assert "degraded  pid 7" in out
    assert "job: 4 of 9 requests; [/bold] [red]x[/red]" in out
    assert "3 running, 4 waiting, KV cache 50 %, 2 restarts" in out
    assert "memory 5 %, 50 °C, 9 of 450 W, slowed by sw_power_cap" in out


def test_a_stale_status_says_that_no_daemon_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The word of a daemon that is gone does not count."""
    display.print_status(service_status())
    out = capsys.readouterr().out
    assert out.startswith("down")
    assert "not running" in out


def test_a_status_from_the_future_is_stale(capsys: pytest.CaptureFixture[str]) -> None:
    """By a clock that was set back no daemon is known to run, and the age says why."""
    ahead = service_status().model_copy(update={"written_at": time.time() + 3600})
    display.print_status(ahead)
    out = capsys.readouterr().out
    assert out.startswith("down")
    assert "s in the future" in out


def test_jobs_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Each job has its row, and its name is only a name."""
    status = job_documents.job_status(
        job_record(name=HOSTILE, status=BatchStatus.COMPLETED, requests=2, completed=2),
        errors=False,
        retry=False,
    )
    display.print_jobs([JobView(JobState.PUBLISHED, status)])
    assert "completed" in safe(capsys.readouterr().out)
    display.print_jobs([])
    assert "no jobs yet" in capsys.readouterr().out


def test_jobs_are_json_for_programs() -> None:
    """The machine's form is a list of states and status documents."""
    status = job_documents.job_status(job_record(), errors=False, retry=False)
    found = orjson.loads(display.jobs_json([JobView(JobState.QUEUED, status)]))
    assert [(row["state"], row["status"]["id"]) for row in found] == [("queued", JOB_ID)]


def test_one_job_is_shown_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status, counts, folder and faults are printed."""
    spool = make_spool(tmp_path)
    why = job_documents.reason(JOB_ID, "job", [Fault(code="x", message=HOSTILE, line=4)], 1000.0)
    display.print_job(JobView(JobState.REJECTED, job_documents.refused_status(why, 3)), spool)
    out = safe(capsys.readouterr().out)
    assert "line 4: x: [/bold]" in out
    assert "3, 0 answered, 0 dead" in out
    assert "energy" not in out


def test_energy_is_printed_where_it_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Joules of a job, and what 1,000 output tokens cost if it has any."""
    progress = Progress(completed=1, output_tokens=2000, energy_j=12_345.6)
    shown = job_documents.active_status(job_record(), progress, JobState.RUNNING)
    display.print_job(JobView(JobState.RUNNING, shown), make_spool(tmp_path))
    assert "12,346 J, 6,172.8 J for 1,000 output tokens" in capsys.readouterr().out
    job = hostile_status().jobs[0].model_copy(update={"energy_j": 7.0})
    display.print_status(service_status(jobs=[job.model_dump()]))
    assert "; 7 J" in safe(capsys.readouterr().out)


def test_dead_letters_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Each letter has its row; none at all is said."""
    letter = DeadLetter(
        job_id=JOB_ID,
        job="job",
        custom_id=HOSTILE,
        line=3,
        reason=DeadReason.POISON,
        code="poison",
        message=HOSTILE,
        http_status=None,
        retry_count=2,
        first_at=1.0,
        last_at=2.0,
        request=None,
    )
    display.print_letters([letter])
    assert "poison" in safe(capsys.readouterr().out)
    display.print_letters([])
    assert "no dead letters" in capsys.readouterr().out


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (1, 3)])
def test_the_end_of_a_job_is_an_exit_status(
    tmp_path: Path, failed: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script can tell a job without faults from one with dead letters."""
    record = job_record(requests=2, completed=2 - failed, failed=failed)
    status = job_documents.job_status(record, errors=failed > 0, retry=False)
    assert display.print_outcome(make_spool(tmp_path), status) == code
    assert "outbox/job" in capsys.readouterr().err


def test_a_refusal_is_an_exit_status_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first faults are shown and the file's place is named."""
    faults = [Fault(code="x", message=HOSTILE, line=n) for n in range(1, 20)]
    why = job_documents.reason(JOB_ID, "job", faults, 1000.0, file="job.jsonl")
    assert display.print_outcome(make_spool(tmp_path), why) == 1
    err = safe(capsys.readouterr().err)
    assert err.count("  line ") == 10
    assert "rejected/job.jsonl" in err


def test_a_single_fault_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One fault of a whole file stands there once, with its code and without a line."""
    why = job_documents.reason(JOB_ID, "job", [Fault(code="too_large", message="split it")], 1.0)
    assert display.print_outcome(make_spool(tmp_path), why) == 1
    err = capsys.readouterr().err
    assert err.count("split it") == 1
    assert "job: the file was refused for 1 fault\n  too_large: split it\n" in err


def test_following_shows_progress_until_all_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bars go on while anything is open, whatever the engine says meanwhile."""
    spool, looks = make_spool(tmp_path), 0
    done = job_documents.job_status(job_record(), errors=False, retry=False)
    why = job_documents.reason(JOB_ID, "other", [Fault(code="x", message="m")], 1000.0)
    states = [None, service_status(), hostile_status(), hostile_status()]

    def look(_: object) -> ServiceStatus | None:
        nonlocal looks
        looks += 1
        return states[min(looks, len(states)) - 1]

    ends = {"job": done, "other": why}
    monkeypatch.setattr(views, "service_status", look)
    monkeypatch.setattr(progress, "POLL_S", 0.0)
    monkeypatch.setattr(submit, "outcome", lambda _, d: ends[d.name] if looks > 4 else None)
    drops = [Dropped("job", "0" * 64, 9, 0.0), Dropped("other", "1" * 64, 0, 0.0)]
    assert progress.follow(spool, drops) == [done, why]
    assert "job" in capsys.readouterr().err


def test_two_files_of_one_name_are_both_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second may have been dropped after the first was taken; each has its own end."""
    done = job_documents.job_status(job_record(), errors=False, retry=False)
    why = job_documents.reason(JOB_ID, "job", [Fault(code="name_in_use", message="m")], 1000.0)
    ends = {"0" * 64: done, "1" * 64: why}
    monkeypatch.setattr(submit, "outcome", lambda _, d: ends[d.sha256])
    drops = [Dropped("job", sha256, 1, 0.0) for sha256 in ends]
    assert progress.follow(make_spool(tmp_path), drops) == [done, why]


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "?"), (5, "0:05"), (65.9, "1:05"), (3_725, "1:02:05")]
)
def test_time_left_is_read_at_a_glance(seconds: float | None, words: str) -> None:
    """Seconds become minutes and hours."""
    assert display._span(seconds) == words

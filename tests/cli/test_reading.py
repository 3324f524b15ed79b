"""`status`, `jobs` and `job` show the truth with a daemon and without, and disturb nothing."""

import json
from typing import Any

from daemon_process import DaemonProcess, MakeDaemon, inbox_daemon
from job_files import chats, schema


def show(daemon: DaemonProcess, *words: str, code: int = 0) -> Any:  # noqa: ANN401 - JSON is any value
    """Run a command with --json and return its document; nothing but that is on stdout."""
    found = inbox_daemon(*words, "--json", "--config", daemon.config)
    assert found.returncode == code, found.stderr
    return json.loads(found.stdout)


def finished(daemon: DaemonProcess) -> None:
    """Let there be a finished, a partly failed and a refused job."""
    daemon.run_job("good", chats(3))
    daemon.run_job("partly", chats(4, {1: "[[400]]"}))
    daemon.drop("refused", [b"no\n"])
    daemon.wait_refusal("refused")


def test_status_shows_the_health_document(start_daemon: MakeDaemon) -> None:
    """`status --json` prints the document by its schema; the words tell the same."""
    daemon = start_daemon()
    status = show(daemon, "status")
    schema("status").validate(status)
    assert (status["pid"], status["status"]) == (daemon.process.pid, "healthy")
    words = inbox_daemon("status", "--config", daemon.config)
    assert words.returncode == 0
    assert words.stdout.startswith(f"healthy  pid {daemon.process.pid}")


def test_status_of_a_stopped_daemon_ends_with_1(start_daemon: MakeDaemon) -> None:
    """After a stop, and after a kill -9 once the document is stale, `status` ends with 1."""
    daemon = start_daemon()
    daemon.stop()
    assert show(daemon, "status", code=1)["status"] == "unhealthy"
    daemon.start()
    daemon.kill()
    path = daemon.spool / "outbox" / "status.json"
    old = json.loads(path.read_bytes())
    path.write_text(json.dumps(old | {"written_at": old["written_at"] - 3600}))
    words = inbox_daemon("status", "--config", daemon.config)
    assert words.returncode == 1
    assert words.stdout.startswith("down")


def test_status_without_a_daemon_says_how_to_start_one(make_daemon: MakeDaemon) -> None:
    """On a spool that no daemon has run on, `status` ends with 1 and names `run`."""
    daemon = make_daemon()
    daemon.write_config()
    found = inbox_daemon("status", "--config", daemon.config)
    assert (found.returncode, found.stdout) == (1, "")
    assert "inbox-daemon run" in found.stderr


def test_jobs_are_the_same_with_and_without_a_daemon(start_daemon: MakeDaemon) -> None:
    """`jobs --json` lists finished and refused jobs, the same while the daemon runs and after."""
    daemon = start_daemon()
    finished(daemon)
    jobs = show(daemon, "jobs")
    assert show(daemon, "jobs") == jobs
    for job in jobs:
        schema("job-status").validate(job["status"])
    told = [(job["status"]["name"], job["state"], job["status"]["status"]) for job in jobs]
    assert told == [
        ("good", "outbox", "completed"),
        ("partly", "outbox", "completed"),
        ("refused", "rejected", "failed"),
    ]
    daemon.stop()
    assert show(daemon, "jobs") == jobs


def test_job_shows_one_job(start_daemon: MakeDaemon) -> None:
    """`job NAME` and `job ID` show a job, by its schema with --json, in words without."""
    daemon = start_daemon()
    finished(daemon)
    partly = show(daemon, "job", "partly")
    assert partly == daemon.notice("partly")
    assert show(daemon, "job", partly["id"]) == partly
    assert show(daemon, "job", "partly.jsonl") == partly
    refused = show(daemon, "job", "refused")
    assert refused["errors"]["data"][0]["line"] == 1
    words = inbox_daemon("job", "refused", "--config", daemon.config)
    assert words.returncode == 0
    assert "line 1: invalid_json" in words.stdout


def test_running_and_queued_jobs_are_shown(make_daemon: MakeDaemon) -> None:
    """An active job shows its state and its counts, with the daemon and after its death."""
    daemon = make_daemon(limits={"max_queue_depth": 3}).start()
    daemon.drop("running", chats(5, {4: "[[hang]]"}))
    daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["completed"] == 4, "four answers")
    shown = show(daemon, "job", "running")
    counts = {"total": 5, "completed": 4, "failed": 0}
    assert (shown["status"], shown["request_counts"]) == ("in_progress", counts)
    daemon.kill()
    assert show(daemon, "job", "running") == shown
    words = inbox_daemon("jobs", "--config", daemon.config)
    assert "running" in words.stdout


def test_unknown_job_ends_with_1(start_daemon: MakeDaemon) -> None:
    """A name that left no trace ends with 1 and one sentence, safe to print."""
    daemon = start_daemon()
    found = inbox_daemon("job", "none\x1b[31m", "--config", daemon.config)
    assert (found.returncode, found.stdout) == (1, "")
    assert "\x1b" not in found.stderr


def test_jobs_on_an_empty_spool_says_so(make_daemon: MakeDaemon) -> None:
    """Without any job `jobs` prints an empty list for programs and a hint for people."""
    daemon = make_daemon()
    daemon.write_config()
    inbox_daemon("init", "--config", daemon.config)
    assert show(daemon, "jobs") == []
    assert "no jobs yet" in inbox_daemon("jobs", "--config", daemon.config).stdout


def test_reading_commands_disturb_nothing(start_daemon: MakeDaemon) -> None:
    """While a job runs, reading over and over neither stops it nor writes into the spool."""
    daemon = start_daemon("--slots", "8", "--latency", "0.02")
    lines = chats(400)
    daemon.drop("job", lines)
    daemon.wait_active("job")
    for words in (["jobs"], ["job", "job"], ["status"]):
        show(daemon, *words)
    assert len(daemon.check_results("job", lines).results) == 400
    daemon.stop()
    before = snapshot(daemon)
    for words in (["jobs"], ["job", "job"]):
        show(daemon, *words)
    assert snapshot(daemon) == before


def snapshot(daemon: DaemonProcess) -> dict[str, tuple[int, int]]:
    """Each file of the spool with its size and time; the ledger's lock file is for readers."""
    files = [path for path in daemon.spool.rglob("*") if path.is_file()]
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
        if path.name != "lock.mdb"
    }

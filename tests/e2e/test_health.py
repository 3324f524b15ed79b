"""outbox/status.json is right at all times, and the daemon stays small."""

import json
import socket

import pytest

from daemon_process import MakeDaemon, inbox_daemon
from job_files import Json, chats
from status_watch import StatusWatch

MAX_BYTES = 100 * 1024 * 1024
MANY = 50_000


def test_health_is_fresh_while_the_engine_starts(make_daemon: MakeDaemon) -> None:
    """While the engine loads, the document is still written and says so."""
    daemon = make_daemon("--start-delay", "3")
    with StatusWatch(daemon.spool / "outbox" / "status.json") as watch:
        daemon.start()
    starting = [s for s in watch.seen if s["engine"]["state"] == "starting"]
    assert len(starting) >= 4
    assert {s["status"] for s in starting} == {"degraded"}
    assert all("the engine is starting" in s["reasons"] for s in starting)
    assert daemon.status_now()["status"] == "healthy"


@pytest.mark.slow
def test_health_is_fresh_while_a_large_file_is_validated(make_daemon: MakeDaemon) -> None:
    """From the drop of 50,000 lines to their admission no document is ever too old."""
    daemon = make_daemon("--start-delay", "600").start(ready=False)
    lines = chats(MANY)
    with StatusWatch(daemon.spool / "outbox" / "status.json"):
        daemon.drop("large", lines)
        assert daemon.wait_active("large")["requests"] == MANY
    assert daemon.status_now()["queue"]["total_queued_requests"] == MANY


@pytest.mark.slow
def test_daemon_stays_small_with_a_large_job(start_daemon: MakeDaemon) -> None:
    """Validating and running 50,000 requests takes under 100 MiB, and no torch is loaded."""
    daemon = start_daemon()
    daemon.drop("large", chats(MANY))
    daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["completed"] > 5000, "5,000 answers")
    assert "torch" not in daemon.process.maps
    assert daemon.process.rss_bytes < MAX_BYTES
    daemon.stop()


def test_idle_daemon_goes_on_writing_its_health(start_daemon: MakeDaemon) -> None:
    """Without any work the document is written at least every interval_s."""
    daemon = start_daemon()
    with StatusWatch(daemon.spool / "outbox" / "status.json") as watch:
        daemon.wait_writings(4)
    status = watch.seen[-1]
    assert (status["status"], status["worker"]["state"]) == ("healthy", "idle")
    assert status["reasons"] == []


def test_health_shows_what_runs(start_daemon: MakeDaemon) -> None:
    """The document has the running job with its counts, tokens and rate, and the queue's room."""
    daemon = start_daemon("--slots", "4", limits={"max_queue_depth": 3})
    daemon.drop("shown", chats(30, {29: "[[hang]]"}))
    status = daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["completed"] == 29, "29")
    job = status["jobs"][0]
    assert (job["name"], job["state"], job["requests"]) == ("shown", "running", 30)
    assert job["output_tokens"] > 0
    assert (status["worker"]["state"], status["worker"]["current_job"]) == ("processing", "shown")
    assert status["worker"]["in_flight"] == 1
    queue = status["queue"]
    assert (queue["active_jobs"], queue["queue_available"]) == (1, 2)
    assert queue["total_queued_requests"] == 1
    assert status["limits"]["max_queue_depth"] == 3
    assert (status["engine"]["models"], status["engine"]["version"]) == (["standin"], "0.0.standin")


def test_health_counts_the_dead_letters(start_daemon: MakeDaemon) -> None:
    """The health says how many dead letters there are, soon after a job has ended."""
    daemon = start_daemon()
    daemon.run_job("job", chats(3, {0: "[[400]]", 2: "[[400]]"}))
    daemon.wait_status(lambda s: s["dead_letters"] == 2, "two dead letters", patience_s=10)


def test_health_outlives_a_restart(start_daemon: MakeDaemon) -> None:
    """After a restart the document still names the last finished and the last refused job."""
    daemon = start_daemon()
    daemon.run_job("finished", chats(2))
    daemon.drop("refused", [b"no\n"])
    daemon.wait_refusal("refused")
    daemon.stop()
    daemon.start()
    status = daemon.status_now()
    assert status["last_finished"]["name"] == "finished"
    assert status["last_rejected"]["name"] == "refused"


def test_log_is_one_object_a_line(start_daemon: MakeDaemon) -> None:
    """In a pipe or a file every log line is a JSON object with time, level and event."""
    daemon = start_daemon()
    daemon.run_job("logged", chats(2))
    daemon.drop("refused\x1b[31m", [b"no\n"])
    daemon.wait_status(lambda s: s["waiting"] or s["last_rejected"], "the odd name")
    daemon.stop()
    lines = [json.loads(line) for line in daemon.log.read_bytes().split(b"\n")[:-1]]
    assert all({"time", "level", "event"} <= line.keys() for line in lines)
    events = [line["event"] for line in lines]
    assert {"starting", "engine_ready", "job_queued", "job_published", "stopped"} <= set(events)


def test_documents_are_never_seen_half_written(start_daemon: MakeDaemon) -> None:
    """While small jobs come and go, every document that is read fits its schema."""
    daemon = start_daemon(limits={"max_queue_depth": 20})
    with StatusWatch(daemon.spool / "outbox" / "status.json") as watch:
        for number in range(400):  # until enough was seen, however fast the machine is
            daemon.run_job(f"job{number}", chats(20))
            if number >= 11 and len(watch.seen) > 2:
                break
    assert len(watch.seen) > 2


def reason_to_stand_still(status: Json) -> tuple[str, str | None]:
    """The worker's state and hindrance, as an operator reads them."""
    return status["worker"]["state"], status["worker"]["code"]


def test_a_job_paused_by_its_name_is_shown_as_that(start_daemon: MakeDaemon) -> None:
    """The only job is paused: the status says so under its code, and how to go on."""
    daemon = start_daemon()
    inbox_daemon("pause", "--config", daemon.config)
    daemon.drop("job", chats(3))
    daemon.wait_active("job")
    inbox_daemon("pause", "job", "--config", daemon.config)
    inbox_daemon("resume", "--config", daemon.config)
    shown = daemon.wait_status(lambda s: s["worker"]["code"] == "jobs_paused", "the job's pause")
    assert reason_to_stand_still(shown) == ("paused", "jobs_paused")
    assert "inbox-daemon resume NAME" in shown["worker"]["reason"]
    inbox_daemon("resume", "job", "--config", daemon.config)
    assert len(daemon.check_results("job", chats(3)).results) == 3
    idle = daemon.wait_status(lambda s: not s["jobs"], "no job")
    assert reason_to_stand_still(idle) == ("idle", None)


def test_a_full_disk_is_shown_by_its_code(make_daemon: MakeDaemon) -> None:
    """Below the floor of free space nothing is sent, and the service is unhealthy."""
    daemon = make_daemon(disk={"min_free_bytes": 1 << 52}).start()
    shown = daemon.wait_status(lambda s: s["worker"]["code"] is not None, "the disk's floor")
    assert reason_to_stand_still(shown) == ("paused", "disk_short")
    assert shown["status"] == "unhealthy"


def test_the_disk_is_read_before_the_first_drop_is_taken(make_daemon: MakeDaemon) -> None:
    """A drop that was complete before the start stays in inbox/ where the disk is too full."""
    daemon = make_daemon(disk={"min_free_bytes": 1 << 52})
    (daemon.spool / "inbox").mkdir(parents=True)
    daemon.drop("job", chats(3))
    daemon.drop_marker("job", b"".join(chats(3)))
    daemon.start()
    shown = daemon.wait_status(lambda s: s["waiting"], "the drop that waits")
    assert [drop["name"] for drop in shown["waiting"]] == ["job.jsonl"]
    assert "are kept free" in shown["waiting"][0]["why"]
    assert not shown["jobs"]


def test_an_endpoint_that_refuses_is_shown_with_what_it_met(make_daemon: MakeDaemon) -> None:
    """The health names the address and says that the connection was refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    daemon = make_daemon(endpoint={"url": address})
    daemon.start(ready=False)
    shown = daemon.wait_status(
        lambda s: s["worker"]["code"] == "engine_backoff" and address in s["worker"]["reason"],
        "the refusal with its address",
        patience_s=60,
    )
    assert "connection refused" in shown["worker"]["reason"]


def test_a_purge_is_in_the_next_status(start_daemon: MakeDaemon) -> None:
    """After `dead purge --all` no dead letter is shown, and not only after some minutes."""
    daemon = start_daemon()
    lines = chats(3, {1: "[[400]]"})
    daemon.drop("job", lines)
    daemon.wait_outcome("job")
    daemon.wait_status(lambda s: s["dead_letters"] == 1, "the dead letter")
    inbox_daemon("dead", "purge", "--all", "--config", daemon.config)
    daemon.wait_status(lambda s: s["dead_letters"] == 0, "no dead letter", patience_s=10)

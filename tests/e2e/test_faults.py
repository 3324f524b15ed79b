"""Requests that fail: dead letters, retries, and their messages."""

import shutil

import pytest

from daemon_process import MakeDaemon, inbox_daemon
from job_files import chats, check_outputs

MAX_ATTEMPTS = 3


def test_request_that_is_wrong_is_a_dead_letter_at_once(start_daemon: MakeDaemon) -> None:
    """A 400 is not tried again, and errors.jsonl has the engine's own answer."""
    daemon = start_daemon()
    outputs = daemon.run_job("wrong", chats(5, {2: "[[400]]"}))
    assert outputs.reasons() == {"r2": "invalid_request"}
    error = outputs.errors["r2"]
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["message"] == "asked to answer 400"
    assert error["error"]["message"] == "asked to answer 400"
    assert daemon.tries(2) == 1


def test_prompt_over_the_context_is_a_dead_letter(start_daemon: MakeDaemon) -> None:
    """A prompt that is too long for the engine fails alone, with the engine's own message."""
    daemon = start_daemon("--max-model-len", "10")
    outputs = daemon.run_job("long", chats(4, {1: "long " * 20}))
    assert outputs.reasons() == {"r1": "invalid_request"}
    assert "maximum context length is 10" in outputs.errors["r1"]["error"]["message"]


def test_failing_request_is_tried_three_times(start_daemon: MakeDaemon) -> None:
    """A 500 is tried max_attempts times, then set aside; dropped again it may succeed."""
    daemon = start_daemon()
    outputs = daemon.run_job("flaky", chats(5, {3: f"[[500x{MAX_ATTEMPTS}]]"}))
    assert outputs.reasons() == {"r3": "max_attempts"}
    assert daemon.tries(3) == MAX_ATTEMPTS
    assert outputs.errors["r3"]["response"]["status_code"] == 500
    retry = (daemon.spool / "outbox" / "flaky" / "retry.jsonl").read_bytes()
    again = daemon.run_job("flaky-again", [retry])
    assert list(again.results) == ["r3"]
    assert daemon.tries(3) == MAX_ATTEMPTS + 1


@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "reset", "truncate", "garbage"])
def test_passing_fault_costs_only_an_attempt(start_daemon: MakeDaemon, fault: str) -> None:
    """A fault that passes ends in an answer, and the outputs do not show it."""
    daemon = start_daemon()
    outputs = daemon.run_job("passing", chats(4, {1: f"[[{fault}x1]]"}))
    assert list(outputs.results) == ["r0", "r1", "r2", "r3"]
    assert [daemon.tries(n) for n in range(4)] == [1, 2, 1, 1]


@pytest.mark.parametrize("fault", ["reset", "truncate", "garbage", "empty"])
def test_invalid_answer_ends_as_a_dead_letter(start_daemon: MakeDaemon, fault: str) -> None:
    """A request that never gets a whole JSON answer is set aside after max_attempts."""
    daemon = start_daemon()
    outputs = daemon.run_job("broken", chats(4, {1: f"[[{fault}]]"}))
    assert outputs.reasons() == {"r1": "max_attempts"}
    assert outputs.errors["r1"]["error"]["message"]
    assert daemon.tries(1) == MAX_ATTEMPTS
    assert daemon.status_now()["engine"]["deaths"] == 0


def test_request_without_an_answer_times_out(make_daemon: MakeDaemon) -> None:
    """A request that hangs is given up after request_timeout_s, as often as others."""
    daemon = make_daemon(run={"request_timeout_s": 0.5, "max_attempts": 2}).start()
    outputs = daemon.run_job("hanging", chats(4, {1: "[[hang]]"}))
    assert outputs.reasons() == {"r1": "timeout"}
    assert daemon.tries(1) == 2


def test_slow_request_does_not_delay_others(start_daemon: MakeDaemon) -> None:
    """While one request hangs every other one is answered and counted."""
    daemon = start_daemon("--slots", "8")
    daemon.drop("slow", chats(300, {0: "[[hang]]"}))
    daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["completed"] == 299, "299 answers")
    assert not (daemon.spool / "outbox" / "slow").exists()


def test_server_that_refuses_the_daemon_holds_the_job(start_daemon: MakeDaemon) -> None:
    """A server that answers 401 blames no request: the job waits, and the health says why."""
    daemon = start_daemon()
    daemon.drop("held", chats(3, dict.fromkeys(range(3), "[[401]]")))
    status = daemon.wait_status(lambda s: s["status"] == "unhealthy", "an unhealthy service")
    assert any("401" in reason for reason in status["reasons"])
    assert (status["jobs"][0]["completed"], status["jobs"][0]["failed"]) == (0, 0)
    daemon.stop()


@pytest.mark.slow
def test_refusal_of_one_request_does_not_stall_the_rest(start_daemon: MakeDaemon) -> None:
    """A 403 for one request, while later ones are answered, is a failure of that request."""
    daemon = start_daemon("--slots", "4", "--latency", "0.05")
    lines = chats(600, {1: "[[403]]"})
    daemon.drop("filtered", lines)
    outputs = check_outputs(lines, daemon.wait_outcome("filtered"))
    assert list(outputs.errors) == ["r1"]
    assert outputs.errors["r1"]["response"]["status_code"] == 403


def test_refused_request_that_is_the_last_one_ends_the_job(start_daemon: MakeDaemon) -> None:
    """A 403 for the last request is a failure of that request too."""
    daemon = start_daemon()
    lines = chats(3, {1: "[[403]]"})
    daemon.drop("filtered", lines)
    outputs = check_outputs(lines, daemon.wait_outcome("filtered"))
    assert list(outputs.errors) == ["r1"]


def test_job_whose_file_lost_lines_is_set_aside(start_daemon: MakeDaemon) -> None:
    """The other jobs go on, and the health names the job within seconds."""
    daemon = start_daemon()
    inbox_daemon("pause", "--config", daemon.config)
    for name in ("bad", "good"):
        daemon.drop(name, chats(3))
    daemon.wait_active("good")
    damaged = daemon.wait_active("bad")["id"]
    (daemon.spool / "queued" / f"{damaged}.jsonl").write_bytes(chats(1)[0])
    inbox_daemon("resume", "--config", daemon.config)
    assert len(daemon.check_results("good", chats(3)).results) == 3
    status = daemon.wait_status(lambda s: s["quarantined"], "the damaged job", patience_s=10)
    assert (status["quarantined"], status["status"]) == ([damaged], "degraded")
    assert [j["status"] for j in status["recent"] if j["name"] == "bad"] == ["damaged"]
    assert [event["job"] for event in daemon.events("job_damaged")] == ["bad"]
    shutil.rmtree(daemon.spool / "quarantine" / damaged)
    daemon.wait_status(lambda s: not s["quarantined"], "an empty quarantine", patience_s=10)


def test_many_kinds_of_failure_end_each_in_its_place(start_daemon: MakeDaemon) -> None:
    """Dead letters among 200 requests leave both files in input order, and retry.jsonl exact."""
    daemon = start_daemon("--slots", "16", "--latency", "0.005", "--jitter", "0.9")
    marks = dict.fromkeys(range(0, 200, 10), "[[400]]")
    marks |= dict.fromkeys(range(5, 200, 50), "[[500]]")
    marks |= dict.fromkeys(range(7, 200, 50), "[[429x2]]")
    outputs = daemon.run_job("many", chats(200, marks))
    reasons = outputs.reasons()
    assert len(reasons) == 24
    assert [c for c, reason in reasons.items() if reason == "max_attempts"] == [
        f"r{n}" for n in range(5, 200, 50)
    ]


def test_dead_letters_are_dropped_back_until_none_is_left(start_daemon: MakeDaemon) -> None:
    """retry.jsonl can be dropped as a job again and again until it is empty."""
    daemon = start_daemon()
    lines = chats(6, {1: "[[400x1]]", 4: "[[400x2]]"})
    left = daemon.run_job("round0", lines)
    assert list(left.errors) == ["r1", "r4"]
    for number in (1, 2):
        retry = (daemon.spool / "outbox" / f"round{number - 1}" / "retry.jsonl").read_bytes()
        left = daemon.run_job(f"round{number}", retry.splitlines(keepends=True))
    assert (list(left.results), left.errors) == (["r4"], {})


def test_failed_attempts_survive_a_restart(start_daemon: MakeDaemon) -> None:
    """Attempts made before a kill -9 count: a failing request is not tried without end."""
    daemon = start_daemon()
    lines = chats(3, {1: "[[500]]", 2: "[[hangx1]]"})
    daemon.drop("job", lines)
    daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["retrying"] == 1, "a failed attempt")
    before = daemon.tries(1)
    daemon.kill()
    daemon.start()
    outputs = check_outputs(lines, daemon.wait_outcome("job"))
    assert outputs.reasons() == {"r1": "max_attempts"}
    assert daemon.tries(1) <= MAX_ATTEMPTS + 1
    assert before >= 1


def test_outcome_of_each_job_is_in_the_health(start_daemon: MakeDaemon) -> None:
    """The health lists each finished job with its counts."""
    daemon = start_daemon()
    daemon.run_job("counted", chats(5, {3: "[[400]]"}))
    status = daemon.wait_status(lambda s: s["last_finished"], "a finished job")
    finished = status["last_finished"]
    figures = {key: finished[key] for key in ("name", "requests", "completed", "failed")}
    assert figures == {"name": "counted", "requests": 5, "completed": 4, "failed": 1}
    for folder in ("claimed", "queued", "running", "rejected", "quarantine"):
        assert not list((daemon.spool / folder).iterdir())

"""Control by file and by command: cancel, pause, priorities, options, dead letters, proof."""

import json
from typing import Any

import pytest

from daemon_process import DaemonProcess, MakeDaemon, inbox_daemon
from job_files import Json, chats, check_outputs


def command(daemon: DaemonProcess, *words: str, code: int = 0) -> str:
    """Run a command on the daemon's spool, check its exit status, and return its output."""
    found = inbox_daemon(*words, "--config", daemon.config)
    assert found.returncode == code, found.stderr
    return found.stdout or found.stderr


def letters(daemon: DaemonProcess, *words: str) -> list[Json]:
    """The dead letters, as `dead list --json` has them: one JSON object a line."""
    return [
        json.loads(line)
        for line in command(daemon, "dead", "list", "--json", *words).split("\n")
        if line
    ]


def hanging(daemon: DaemonProcess, name: str) -> list[bytes]:
    """Run a job of ten requests until all are answered but three that hang."""
    lines = chats(10, dict.fromkeys((2, 5, 9), "[[hangx1]]"))
    daemon.drop(name, lines)
    daemon.wait_status(lambda s: any(j["completed"] == 7 for j in s["jobs"]), "seven answers")
    return lines


@pytest.mark.parametrize("by_file", [True, False], ids=["file", "command"])
def test_cancelled_job_publishes_what_is_finished(
    start_daemon: MakeDaemon,
    by_file: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A cancelled job keeps its answers so far, and retry.jsonl has the rest."""
    daemon = start_daemon()
    lines = hanging(daemon, "job")
    if by_file:
        (daemon.spool / "inbox" / "job.cancel").touch()
    else:
        command(daemon, "cancel", "job")
    folder = daemon.wait_outcome("job")
    outputs = check_outputs(lines, folder, "cancelled")
    assert outputs.reasons() == dict.fromkeys(("r2", "r5", "r9"), "cancelled")
    assert outputs.status["cancelled_at"] >= outputs.status["created_at"]
    daemon.wait_empty_inbox()
    again = daemon.run_job("again", (folder / "retry.jsonl").read_bytes().splitlines(keepends=True))
    assert list(again.results) == ["r2", "r5", "r9"]


@pytest.mark.parametrize("name", ["held", "ALL"])
def test_a_file_that_waits_for_room_can_be_cancelled(start_daemon: MakeDaemon, name: str) -> None:
    """It never runs, and its sender finds out why."""
    daemon = start_daemon(intake={"on_full": "hold"}, limits={"max_queue_depth": 1})
    hanging(daemon, "job")
    daemon.drop("held", chats(3))
    daemon.wait_status(lambda s: [d["name"] for d in s["waiting"]] == ["held.jsonl"], "the file")
    command(daemon, "cancel", name)
    assert daemon.wait_refusal("held")["code"] == "cancelled"
    assert daemon.notice("held")["status"] == "failed"
    if name == "held":
        command(daemon, "cancel", "job")
    daemon.wait_outcome("job")
    assert daemon.execution_count() == 10


def test_names_of_any_letters_are_shown_on_any_terminal(start_daemon: MakeDaemon) -> None:
    """Where the encoding lacks a letter it is escaped, and no command ends with a traceback."""
    daemon = start_daemon()
    lines = [chats(1, {0: "[[400]]"})[0].replace(b'"r0"', '"größe"'.encode())]
    daemon.drop("job", lines)
    daemon.wait((daemon.spool / "outbox" / "job" / "errors.jsonl").exists, "the dead letter")
    for words in (["dead", "list"], ["dead", "list", "--json"], ["jobs"], ["status"]):
        found = inbox_daemon(*words, "--config", daemon.config, PYTHONIOENCODING="ascii:strict")
        assert (found.returncode, "Traceback" in found.stderr) == (0, False)
    assert (
        "gr\\xf6"
        in inbox_daemon(
            "dead", "list", "--config", daemon.config, PYTHONIOENCODING="ascii:strict"
        ).stdout
    )


def test_order_for_an_unknown_job_is_refused(start_daemon: MakeDaemon) -> None:
    """A command for a job that is not active ends with 1 and says so."""
    daemon = start_daemon()
    assert "absent" in command(daemon, "cancel", "absent", code=1)
    assert "absent" in command(daemon, "pause", "absent", code=1)


def test_pause_of_all_outlives_a_restart(start_daemon: MakeDaemon) -> None:
    """While all is paused, jobs are accepted and none is run, after a restart too."""
    daemon = start_daemon()
    command(daemon, "pause")
    daemon.drop("job", chats(5))
    daemon.wait_active("job")
    daemon.stop()
    daemon.start()
    status = daemon.wait_status(lambda s: s["jobs"] and s["worker"]["reason"], "the pause")
    assert status["worker"]["state"] == "paused"
    daemon.wait_writings(2)
    assert daemon.execution_count() == 0
    command(daemon, "resume")
    assert len(daemon.check_results("job", chats(5)).results) == 5


def test_paused_job_lets_the_others_run(make_daemon: MakeDaemon) -> None:
    """NAME.pause stops that job only, and NAME.resume lets it go on."""
    daemon = make_daemon()
    flag = daemon.hold_engine()
    daemon.start(ready=False)
    daemon.drop("first", chats(5))
    daemon.wait_active("first")
    (daemon.spool / "inbox" / "first.pause").touch()
    daemon.wait_status(lambda s: s["jobs"][0]["paused"], "the pause")
    flag.touch()
    assert len(daemon.run_job("second", chats(4)).results) == 4
    assert daemon.wait_active("first")["completed"] == 0
    (daemon.spool / "inbox" / "first.resume").touch()
    assert len(daemon.check_results("first", chats(5)).results) == 5


def test_folder_of_a_drop_is_its_priority(make_daemon: MakeDaemon) -> None:
    """Jobs of inbox/high run first and those of inbox/low last, in whatever order they came."""
    daemon = make_daemon()
    flag = daemon.hold_engine()
    daemon.start(ready=False)
    for name, lane in (("later", "low"), ("usual", "."), ("urgent", "high")):
        daemon.drop(f"{lane}/{name}", chats(3))
        assert daemon.wait_active(name)["priority"] == {".": "normal"}.get(lane, lane)
    flag.touch()
    for name in ("later", "usual", "urgent"):
        daemon.check_results(name, chats(3))
    started = [event["job"] for event in daemon.events("job_started")]
    assert started == ["urgent", "usual", "later"]


def test_options_of_a_job_count(start_daemon: MakeDaemon) -> None:
    """NAME.options.json sets how often a request is tried, and its metadata is echoed."""
    daemon = start_daemon()
    options = {"max_attempts": 1, "metadata": {"customer": "4711"}}
    (daemon.spool / "inbox" / "job.options.json").write_text(json.dumps(options))
    outputs = daemon.run_job("job", chats(3, {1: "[[500]]"}))
    assert (daemon.tries(1), outputs.status["metadata"]) == (1, {"customer": "4711"})
    daemon.wait_empty_inbox()


def test_job_whose_time_is_over_publishes_what_is_finished(start_daemon: MakeDaemon) -> None:
    """A job that expires keeps its answers so far, and lists the rest as expired."""
    daemon = start_daemon()
    (daemon.spool / "inbox" / "job.options.json").write_text('{"expires_in_s": 3}')
    lines = hanging(daemon, "job")
    outputs = check_outputs(lines, daemon.wait_outcome("job"), "expired")
    assert outputs.reasons() == dict.fromkeys(("r2", "r5", "r9"), "expired")
    assert outputs.status["expired_at"] >= outputs.status["created_at"] + 2


def test_dead_letters_are_listed_and_shown(start_daemon: MakeDaemon) -> None:
    """`dead list` and `dead show` print the reason, the history and the request of each."""
    daemon = start_daemon()
    daemon.run_job("job", chats(4, {1: "[[400]]", 3: "[[500]]"}))
    daemon.run_job("other", chats(2, {0: "[[400]]"}))
    found = [(letter["job"], letter["custom_id"], letter["reason"]) for letter in letters(daemon)]
    assert sorted(found) == [
        ("job", "r1", "invalid_request"),
        ("job", "r3", "max_attempts"),
        ("other", "r0", "invalid_request"),
    ]
    assert len(letters(daemon, "--job", "job")) == 2
    assert len(letters(daemon, "--reason", "invalid_request")) == 2
    shown: Any = json.loads(command(daemon, "dead", "show", "job", "r3"))
    assert (shown["line"], shown["http_status"], shown["retry_count"]) == (4, 500, 2)
    assert shown["request"] == json.loads(chats(4, {3: "[[500]]"})[3])
    assert shown["first_at"] <= shown["last_at"]
    command(daemon, "dead", "show", "job", "r0", code=1)


def test_redriven_letters_are_a_job_of_their_own(start_daemon: MakeDaemon) -> None:
    """`dead redrive` runs dead letters as a new job, linked to the old, and removes them."""
    daemon = start_daemon()
    lines = chats(4, {1: "[[400x1]]", 3: "[[500x3]]"})
    before = daemon.run_job("job", lines)
    assert len(letters(daemon)) == 2
    command(daemon, "dead", "redrive", "job")
    outputs = check_outputs([lines[1], lines[3]], daemon.wait_outcome("job.redrive-1"))
    assert list(outputs.results) == ["r1", "r3"]
    assert outputs.status["redrive_of"] == before.status["id"]
    daemon.wait(lambda: not letters(daemon), "no dead letter")
    command(daemon, "dead", "redrive", "job", code=1)


def test_purged_letters_are_gone(start_daemon: MakeDaemon) -> None:
    """`dead purge` removes the chosen letters only, and requires a choice."""
    daemon = start_daemon()
    daemon.run_job("job", chats(4, {1: "[[400]]", 3: "[[500]]"}))
    command(daemon, "dead", "purge", code=2)
    command(daemon, "dead", "purge", "job", "--reason", "max_attempts")
    assert [letter["custom_id"] for letter in letters(daemon)] == ["r1"]
    command(daemon, "dead", "purge", "--all")
    assert letters(daemon) == []


def test_verify_proves_a_job_or_names_what_is_wrong(start_daemon: MakeDaemon) -> None:
    """A finished and a running job are each verified in one sentence; a changed answer is found."""
    daemon = start_daemon()
    daemon.run_job("done", chats(5, {1: "[[400]]"}))
    hanging(daemon, "running")
    assert len(command(daemon, "verify", "done").splitlines()) == 1
    assert len(command(daemon, "verify", "running").splitlines()) == 1
    output = daemon.spool / "outbox" / "done" / "output.jsonl"
    data = output.read_bytes()
    for damage in (data.replace(b"r3", b"r0"), b"".join(data.splitlines(keepends=True)[:-1])):
        output.write_bytes(damage)
        assert command(daemon, "verify", "done", code=1)
    command(daemon, "verify", "absent", code=1)


def test_compact_needs_a_stopped_daemon(start_daemon: MakeDaemon) -> None:
    """`compact` is refused beside a running daemon, and loses nothing once it has stopped."""
    daemon = start_daemon()
    daemon.run_job("job", chats(50, {1: "[[400]]"}))
    assert inbox_daemon("compact", "--config", daemon.config).returncode != 0
    daemon.stop()
    command(daemon, "compact")
    assert len(letters(daemon)) == 1
    command(daemon, "verify", "job")
    daemon.start()
    assert len(daemon.run_job("after", chats(3)).results) == 3


# -- a job and its model ------------------------------------------------------------


def serve(daemon: DaemonProcess, model: str) -> None:
    """Restart the daemon with another model in its configuration."""
    daemon.stop()
    daemon.sections["engine"] = {"command": daemon.standin("--model", model)}
    daemon.start()


@pytest.mark.parametrize("named", [{}, {"model": "standin"}], ids=["unnamed", "named"])
def test_a_job_waits_while_another_model_is_served(start_daemon: MakeDaemon, named: Json) -> None:
    """It shows why and how it goes on, others pass, and its owner binds it to the new model."""
    daemon = start_daemon(run={"drain_s": 0.2})
    lines = chats(10, dict.fromkeys((2, 5, 9), "[[hangx1]]"), **named)
    daemon.drop("job", lines)
    daemon.wait_status(lambda s: any(j["completed"] == 7 for j in s["jobs"]), "seven answers")
    serve(daemon, "other")
    shown = daemon.wait_status(
        lambda s: s["worker"]["code"] == "model_not_served", "the job that waits"
    )
    assert (shown["status"], shown["worker"]["state"]) == ("degraded", "paused")
    (job,) = shown["jobs"]
    assert (job["model"], job["code"]) == ("standin", "model_not_served")
    assert "job job --model" in job["reason"]
    assert job["reason"] in shown["reasons"]
    assert job["reason"] in command(daemon, "status")
    assert job["reason"][:60] in command(daemon, "job", "job")
    assert len(daemon.run_job("meanwhile", chats(3)).results) == 3
    assert "not served here" in command(daemon, "job", "job", "--model", "typo", code=1)
    assert "rebind job: done" in command(daemon, "job", "job", "--model", "other")
    outputs = check_outputs(lines, daemon.wait_outcome("job"))
    models = [outputs.results[f"r{i}"]["response"]["body"]["model"] for i in range(10)]
    assert [i for i, model in enumerate(models) if model == "other"] == [2, 5, 9]
    assert (outputs.status["model"], outputs.status["earlier_models"]) == ("other", ["standin"])
    assert "standin, then other" in command(daemon, "job", "job")
    assert command(daemon, "verify", "job")

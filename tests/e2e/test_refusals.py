"""Refused files: each reason has its code, in rejected/ and in outbox/."""

import json
from dataclasses import dataclass

import pytest

from daemon_process import DaemonProcess, MakeDaemon
from job_files import Json, chat, chats, request, schema

LIMITS: Json = {
    "max_file_bytes": 4000,
    "max_line_bytes": 600,
    "max_requests_per_job": 5,
    "max_json_depth": 8,
}
GOOD = chat("good", "hello")


@dataclass(frozen=True)
class Bad:
    """A file that must be refused: with which code, and for which line."""

    code: str
    lines: list[bytes]
    line: int | None = None
    retryable: bool = False
    name: str = "bad"
    served: str = ""


def nested(depth: int) -> Json:
    """A body of this many levels."""
    return {"metadata": nested(depth - 1)} if depth else {}


BAD = [
    Bad("too_large", [chat(f"r{n}", "x" * 400) for n in range(10)]),
    Bad("too_many_requests", chats(6)),
    Bad("line_too_long", [GOOD, chat("long", "x" * 600)], line=2),
    Bad("too_deep", [GOOD, request("deep", nested(8))], line=2),
    Bad("invalid_json", [GOOD, b'{"custom_id": bare}\n'], line=2),
    Bad("invalid_request", [GOOD, request("get", {}, url="/v1/files")], line=2),
    Bad("duplicate_custom_id", [GOOD, chat("other", "hi"), GOOD], line=3),
    Bad("mixed_models", [chat("a", "hi", model="standin"), chat("b", "hi", model="c")], line=2),
    Bad("unknown_model", [chat("a", "hi", model="other")], line=1, served="standin"),
    Bad("empty", []),
    Bad("empty", [b"\n", b" \n"]),
    Bad("truncated", [GOOD, GOOD[:40]], retryable=True),
    Bad("bad_name", [GOOD], name="bad name"),
    Bad("bad_name", [GOOD], name="-bäd"),
]


def check_refusal(daemon: DaemonProcess, bad: Bad, name: str) -> Json:
    """Check that the file is in rejected/ unchanged, with its reason, and a notice in outbox/."""
    reason = daemon.wait_refusal(name)
    fault = reason["faults"][0]
    assert (reason["code"], fault["code"], fault["line"]) == (bad.code, bad.code, bad.line)
    assert reason["retryable"] == bad.retryable
    assert (daemon.spool / "rejected" / reason["file"]).read_bytes() == b"".join(bad.lines)
    notice = daemon.notice(name)
    assert (notice["status"], notice["id"]) == ("failed", reason["id"])
    assert notice["errors"]["data"] == reason["faults"]
    assert notice["message"] == reason["message"]
    daemon.wait_empty_inbox()
    return reason


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.code}-{bad.name}-{len(bad.lines)}")
def test_bad_file_is_refused_with_its_reason(make_daemon: MakeDaemon, bad: Bad) -> None:
    """A file that can never run is in rejected/ with its code, line and sentence."""
    daemon = make_daemon(
        "--start-delay",
        "600",
        limits=LIMITS,
        intake={"incomplete_s": 0.5},
        engine={"served_model_name": bad.served},
    ).start(ready=False)
    daemon.drop(bad.name, bad.lines)
    stem = {"bad name": "bad_name", "-bäd": "b_d"}.get(bad.name, bad.name)
    check_refusal(daemon, bad, stem)
    status = daemon.wait_status(lambda s: s["last_rejected"], "the refusal in the health")
    assert status["last_rejected"]["message"].startswith(bad.code)
    assert status["jobs"] == []


def test_every_fault_of_a_file_is_listed(make_daemon: MakeDaemon) -> None:
    """All bad lines are listed with their numbers, up to a hundred, and all are counted."""
    daemon = make_daemon("--start-delay", "600").start(ready=False)
    daemon.drop("many", [GOOD, *[b"{}\n"] * 150])
    reason = daemon.wait_refusal("many")
    assert reason["fault_count"] == 150
    assert [fault["line"] for fault in reason["faults"]] == list(range(2, 102))


def test_second_refusal_lies_beside_the_first(start_daemon: MakeDaemon) -> None:
    """Nothing in rejected/ is overwritten, and a corrected file then runs under the name."""
    daemon = start_daemon()
    daemon.drop("name", [b"first\n"])
    first = daemon.wait_refusal("name")
    daemon.drop("name", [b"second\n"])
    found = (daemon.spool / "rejected").glob
    daemon.wait(lambda: len(list(found("name.*.reason.json"))) == 1, "a second refusal")
    second = json.loads(next(found("name.*.reason.json")).read_bytes())
    schema("reason").validate(second)
    assert second["file"] == f"name.{second['id']}.jsonl"
    assert (daemon.spool / "rejected" / second["file"]).read_bytes() == b"second\n"
    assert (daemon.spool / "rejected" / first["file"]).read_bytes() == b"first\n"
    daemon.wait(lambda: daemon.notice("name")["id"] == second["id"], "the newer notice")
    outputs = daemon.run_job("name", chats(2))
    assert len(outputs.results) == 2
    assert len(list(found("name*"))) == 4


def test_full_queue_refuses_for_now(make_daemon: MakeDaemon) -> None:
    """A job beyond max_queue_depth is refused as retryable, and runs when sent later."""
    daemon = make_daemon(limits={"max_queue_depth": 1})
    flag = daemon.hold_engine()
    daemon.start(ready=False)
    daemon.drop("first", chats(1))
    daemon.wait_status(lambda s: s["queue"]["queue_available"] == 0, "a full queue")
    daemon.drop("second", chats(2))
    reason = daemon.wait_refusal("second")
    assert (reason["code"], reason["retryable"]) == ("queue_full", True)
    flag.touch()
    daemon.wait_outcome("first")
    daemon.wait_status(lambda s: s["queue"]["queue_available"] == 1, "room in the queue")
    assert len(daemon.run_job("second", chats(2)).results) == 2


def test_too_many_queued_requests_are_refused_for_now(make_daemon: MakeDaemon) -> None:
    """A job whose requests do not fit beside those queued is refused as retryable."""
    daemon = make_daemon("--start-delay", "600", limits={"max_total_queued_requests": 5})
    daemon.start(ready=False)
    daemon.drop("first", chats(4))
    daemon.wait_status(lambda s: s["queue"]["total_queued_requests"] == 4, "four requests")
    daemon.drop("second", chats(2))
    reason = daemon.wait_refusal("second")
    assert (reason["code"], reason["retryable"]) == ("too_many_queued_requests", True)
    assert daemon.notice("second")["retryable"] is True


def test_name_of_a_published_job_is_in_use(start_daemon: MakeDaemon) -> None:
    """Other bytes under a name whose results are in outbox/ are refused, and the results stay."""
    daemon = start_daemon()
    lines = chats(2)
    before = daemon.run_job("taken", lines).status
    daemon.drop("taken", chats(3))
    reason = daemon.wait_refusal("taken")
    assert (reason["code"], reason["retryable"]) == ("name_in_use", True)
    assert daemon.notice("taken") == before
    assert len(daemon.executions()) == 2


def test_name_of_an_active_job_is_in_use(make_daemon: MakeDaemon) -> None:
    """Other bytes under the name of an active job are refused, and that job goes on."""
    daemon = make_daemon()
    flag = daemon.hold_engine()
    daemon.start(ready=False)
    lines = chats(2)
    daemon.drop("taken", lines)
    daemon.wait_status(lambda s: s["jobs"], "the first job")
    daemon.drop("taken", chats(3))
    assert daemon.wait_refusal("taken")["code"] == "name_in_use"
    assert not (daemon.spool / "outbox" / "taken").exists()
    flag.touch()
    daemon.check_results("taken", lines)

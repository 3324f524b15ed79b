"""Files are taken out of inbox/ when they are complete and there is room."""

import json
import os
import shutil
from pathlib import Path

from daemon_process import DaemonProcess, MakeDaemon
from job_files import chats, check_outputs, parsed_lines, schema


def wait_waiting(daemon: DaemonProcess, name: str, why: str) -> None:
    """Wait until the health shows why a file is not taken."""

    def shown(status: dict[str, list[dict[str, str]]]) -> bool:
        return any(drop["name"] == name and why in drop["why"] for drop in status["waiting"])

    daemon.wait_status(shown, f"{name} waiting because {why!r}")


def test_file_that_is_being_written_is_not_taken(start_daemon: MakeDaemon) -> None:
    """A file is left in inbox/ until its writer has closed it, however complete it looks."""
    daemon = start_daemon()
    lines = chats(4)
    with (daemon.spool / "inbox" / "live.jsonl").open("wb") as file:
        file.writelines(lines[:2])
        file.flush()
        wait_waiting(daemon, "live.jsonl", "open for writing")
        file.writelines(lines[2:])
    outputs = check_outputs(lines, daemon.wait_outcome("live"))
    assert len(outputs.results) == 4


def test_file_of_an_interrupted_transfer_is_not_taken(start_daemon: MakeDaemon) -> None:
    """A file with mtime 0, as a killed rsync leaves it, waits for the rest of it."""
    daemon = start_daemon()
    lines = chats(4)
    path = daemon.spool / "inbox" / "cut.jsonl"
    hidden = path.with_name(".cut")
    hidden.write_bytes(b"".join(lines[:2]))
    os.utime(hidden, (0, 0))
    hidden.rename(path)
    wait_waiting(daemon, "cut.jsonl", "mtime is 0")
    daemon.drop("cut", lines)
    assert len(check_outputs(lines, daemon.wait_outcome("cut")).results) == 4


def test_file_with_a_cut_line_is_taken_once_complete(start_daemon: MakeDaemon) -> None:
    """A file that ends in the middle of a line waits for the rest, and then runs whole."""
    daemon = start_daemon()
    lines = chats(2)
    data = b"".join(lines)
    daemon.drop("cut", [data[:-20]])
    wait_waiting(daemon, "cut.jsonl", "last line is cut")
    with (daemon.spool / "inbox" / "cut.jsonl").open("ab") as file:
        file.write(data[-20:])
    assert len(check_outputs(lines, daemon.wait_outcome("cut")).results) == 2


def test_abandoned_transfer_is_refused_in_the_end(make_daemon: MakeDaemon) -> None:
    """An interrupted file that is never completed is refused as truncated after incomplete_s."""
    intake = {"incomplete_s": 1.0}
    daemon = make_daemon("--start-delay", "600", intake=intake).start(ready=False)
    path = daemon.spool / "inbox" / "cut.jsonl"
    path.write_bytes(b"".join(chats(2)))
    os.utime(path, (0, 0))
    reason = daemon.wait_refusal("cut")
    assert (reason["code"], reason["retryable"]) == ("truncated", True)


def test_wrong_marker_holds_a_file_back(make_daemon: MakeDaemon) -> None:
    """A file that does not match its marker waits, and is then refused."""
    intake = {"incomplete_s": 2.0}
    daemon = make_daemon("--start-delay", "600", intake=intake).start(ready=False)
    lines = chats(2)
    daemon.drop_marker("short", b"".join(lines) + b" ")
    daemon.drop("short", lines)
    wait_waiting(daemon, "short.jsonl", "the marker promises")
    other = b"".join(lines).replace(b"question", b"Question")
    daemon.drop_marker("other", other)
    daemon.drop("other", lines)
    wait_waiting(daemon, "other.jsonl", "sha256")
    assert daemon.wait_refusal("short")["code"] == "truncated"
    assert daemon.wait_refusal("other")["code"] == "truncated"


def test_what_is_no_plain_file_stays(start_daemon: MakeDaemon, tmp_path: Path) -> None:
    """Links, folders, pipes and hidden files are left alone and named; others run beside them."""
    daemon = start_daemon()
    inbox = daemon.spool / "inbox"
    target = tmp_path / "elsewhere.jsonl"
    target.write_bytes(b"".join(chats(1)))
    (inbox / "symlink.jsonl").symlink_to(target)
    (inbox / "hardlink.jsonl").hardlink_to(target)
    (inbox / "folder.jsonl").mkdir()
    os.mkfifo(inbox / "pipe.jsonl")
    (inbox / ".hidden.jsonl").write_bytes(b"".join(chats(1)))
    names = daemon.dropped()
    status = daemon.wait_status(
        lambda s: {drop["name"] for drop in s["waiting"]} == names, "all five waiting"
    )
    assert all(drop["why"] for drop in status["waiting"])
    assert len(daemon.run_job("plain", chats(2)).results) == 2
    assert daemon.dropped() == names
    assert target.exists()


def test_full_queue_can_hold_files_back(make_daemon: MakeDaemon) -> None:
    """With on_full = "hold" a file stays in inbox/ until there is room, and then runs."""
    intake = {"on_full": "hold"}
    daemon = make_daemon(intake=intake, limits={"max_queue_depth": 1})
    flag = daemon.hold_engine()
    daemon.start(ready=False)
    daemon.drop("first", chats(1))
    daemon.wait_status(lambda s: s["jobs"], "the first job")
    daemon.drop("second", chats(2))
    wait_waiting(daemon, "second.jsonl", "the limit is 1")
    assert not list((daemon.spool / "rejected").iterdir())
    flag.touch()
    daemon.check_results("first", chats(1))
    daemon.check_results("second", chats(2))


def test_requests_beyond_the_limit_can_be_held_back(make_daemon: MakeDaemon) -> None:
    """With on_full = "hold" a job that does not fit beside the queued ones waits for room."""
    intake = {"on_full": "hold"}
    daemon = make_daemon(intake=intake, limits={"max_total_queued_requests": 5})
    flag = daemon.hold_engine()
    daemon.start(ready=False)
    daemon.drop("first", chats(4))
    daemon.wait_status(lambda s: s["jobs"], "the first job")
    daemon.drop("second", chats(3))
    status = daemon.wait_status(lambda s: s["waiting"] or s["last_rejected"], "an answer")
    assert status["last_rejected"] is None
    wait_waiting(daemon, "second.jsonl", "room for 1")
    flag.touch()
    daemon.check_results("second", chats(3))


def test_invalid_lines_can_become_dead_letters(make_daemon: MakeDaemon) -> None:
    """With on_invalid_line = "dead_letter" the good lines run and the bad ones are listed."""
    intake = {"on_invalid_line": "dead_letter"}
    daemon = make_daemon(intake=intake).start()
    lines = chats(4)
    lines[1:2] = [b"no JSON\n", b'{"custom_id": "shapeless"}\n', lines[0]]
    daemon.drop("partly", lines)
    folder = daemon.wait_outcome("partly")
    results, errors = parsed_lines(folder / "output.jsonl"), parsed_lines(folder / "errors.jsonl")
    assert [line["custom_id"] for line in results] == ["r0", "r2", "r3"]
    assert [line["custom_id"] for line in errors] == [None, "shapeless", "r0"]
    assert [line["id"].rpartition("_")[2] for line in errors] == ["2", "3", "4"]
    for line in (*results, *errors):
        schema("output").validate(line)
    status = json.loads((folder / "status.json").read_bytes())
    assert status["request_counts"] == {"total": 6, "completed": 3, "failed": 3}
    assert status["retry_file"] is None
    assert not (folder / "retry.jsonl").exists()


def test_inbox_that_was_removed_is_watched_again(start_daemon: MakeDaemon) -> None:
    """An inbox/ that was removed is made again, with its lanes, and is watched."""
    daemon = start_daemon()
    inbox = daemon.spool / "inbox"
    shutil.rmtree(inbox)
    daemon.wait(lambda: (inbox / "high").is_dir() and (inbox / "low").is_dir(), "inbox/ again")
    assert len(daemon.run_job("after", chats(2)).results) == 2
    daemon.wait_status(lambda s: s["status"] == "healthy", "a healthy daemon")

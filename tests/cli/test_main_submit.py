"""`submit` drops files as a careful sender does, and `--wait` tells how they ended."""

from pathlib import Path

import pytest

from daemon_process import DaemonProcess, MakeDaemon, inbox_daemon
from job_files import chats, check_outputs


def write(daemon: DaemonProcess, name: str, lines: list[bytes]) -> Path:
    """Write a file to be submitted, beside the spool."""
    path = daemon.folder / f"{name}.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def test_submit_and_wait_ends_with_0_when_all_is_answered(start_daemon: MakeDaemon) -> None:
    """With every request answered, `submit --wait` says where the answers lie and ends with 0."""
    daemon = start_daemon()
    lines = chats(5)
    path = write(daemon, "job", lines)
    found = inbox_daemon("submit", path, "--wait", "--config", daemon.config)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr
    folder = daemon.spool / "outbox" / "job"
    assert "5 of 5 requests were answered" in found.stderr
    assert str(folder) in found.stderr
    assert len(check_outputs(lines, folder).results) == 5
    assert path.exists()


def test_submit_and_wait_ends_with_3_for_dead_letters(start_daemon: MakeDaemon) -> None:
    """With some requests set aside it ends with 3 and says how many."""
    daemon = start_daemon()
    path = write(daemon, "job", chats(5, {2: "[[400]]"}))
    found = inbox_daemon("submit", path, "--wait", "--config", daemon.config)
    assert found.returncode == 3, found.stderr
    assert "4 of 5 requests were answered; 1 was not" in found.stderr


def test_submit_and_wait_ends_with_1_for_a_refusal(start_daemon: MakeDaemon) -> None:
    """A refused file ends it with 1, with the fault, its line and where the file lies."""
    daemon = start_daemon()
    path = write(daemon, "job", [*chats(2), b"no\n"])
    found = inbox_daemon("submit", path, "--wait", "--config", daemon.config)
    assert found.returncode == 1
    assert "line 3: invalid_json" in found.stderr
    assert str(daemon.spool / "rejected" / "job.jsonl") in found.stderr


def test_submit_of_several_files_ends_with_the_worst(start_daemon: MakeDaemon) -> None:
    """Several files are waited for together, and the worst outcome is the exit status."""
    daemon = start_daemon()
    good = write(daemon, "good", chats(5))
    partly = write(daemon, "partly", chats(5, {2: "[[400]]"}))
    found = inbox_daemon("submit", good, partly, "--wait", "--config", daemon.config)
    assert found.returncode == 3
    assert daemon.notice("good")["request_counts"]["completed"] == 5


def test_submit_again_after_a_correction(start_daemon: MakeDaemon) -> None:
    """An earlier refusal of the name is not taken for the outcome of the corrected file."""
    daemon = start_daemon()
    bad = write(daemon, "job", [b"no\n"])
    assert inbox_daemon("submit", bad, "--wait", "--config", daemon.config).returncode == 1
    good = write(daemon, "job", chats(3))
    assert inbox_daemon("submit", good, "--wait", "--config", daemon.config).returncode == 0


def test_submit_of_the_same_file_finds_the_first_outcome(start_daemon: MakeDaemon) -> None:
    """A file that was answered before is not run again, and ends as it did."""
    daemon = start_daemon()
    path = write(daemon, "job", chats(3))
    for _ in range(2):
        found = inbox_daemon("submit", path, "--wait", "--config", daemon.config)
        assert found.returncode == 0, found.stderr
    assert daemon.execution_count() == 3


def test_submit_without_a_daemon_leaves_the_drop(make_daemon: MakeDaemon) -> None:
    """Without --wait a file is dropped for whichever daemon comes, and taken by the next one."""
    daemon = make_daemon()
    daemon.write_config()
    assert inbox_daemon("init", "--config", daemon.config).returncode == 0
    lines = chats(3)
    found = inbox_daemon("submit", write(daemon, "job", lines), "--config", daemon.config)
    assert found.returncode == 0
    assert daemon.dropped() == {"job.jsonl", "job.jsonl.ready"}
    daemon.start()
    assert len(daemon.check_results("job", lines).results) == 3
    daemon.wait_empty_inbox()


@pytest.mark.parametrize("name", ["bad name", "status.json"])
def test_submit_refuses_a_name_that_is_no_jobs(make_daemon: MakeDaemon, name: str) -> None:
    """A file whose name would be refused is not dropped; it ends with 1."""
    daemon = make_daemon()
    daemon.write_config()
    inbox_daemon("init", "--config", daemon.config)
    found = inbox_daemon("submit", write(daemon, name, chats(1)), "--config", daemon.config)
    assert found.returncode == 1
    assert not daemon.dropped()


def test_submit_does_not_replace_a_waiting_file(make_daemon: MakeDaemon) -> None:
    """While a file of the name waits in inbox/ a second one is refused and the first kept."""
    daemon = make_daemon()
    daemon.write_config()
    inbox_daemon("init", "--config", daemon.config)
    inbox_daemon("submit", write(daemon, "job", chats(1)), "--config", daemon.config)
    found = inbox_daemon("submit", write(daemon, "job", chats(2)), "--config", daemon.config)
    assert found.returncode == 1
    assert "waits in" in found.stderr
    assert (daemon.spool / "inbox" / "job.jsonl").read_bytes() == b"".join(chats(1))


def test_submit_without_a_spool_says_what_to_do(tmp_path: Path) -> None:
    """Where there is no inbox/ it ends with 1 and names `init`."""
    path = tmp_path / "job.jsonl"
    path.write_bytes(b"".join(chats(1)))
    found = inbox_daemon("submit", path, "--spool", tmp_path / "none")
    assert found.returncode == 1
    assert "init" in found.stderr


def test_submit_says_that_no_daemon_runs(tmp_path: Path) -> None:
    """Without a running daemon the file is dropped, and submit prints how to start one."""
    spool, path = tmp_path / "spool", tmp_path / "job.jsonl"
    path.write_bytes(b"".join(chats(1)))
    assert inbox_daemon("init", "--spool", spool).returncode == 0
    found = inbox_daemon("submit", path, "--spool", spool)
    assert found.returncode == 0
    assert f"no daemon runs on {spool}, so the files wait" in found.stderr
    assert f"inbox-daemon run --spool {spool}" in found.stderr

"""A disk that is too small for what lies on it: work waits, and goes on by itself."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon_process import DaemonProcess, MakeDaemon
from job_files import chats

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]

DISK_BYTES = 64 << 20
FLOOR = {"min_free_bytes": 4 << 20, "min_free_inodes": 0}
ANSWER_BYTES = 1 << 20


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Iterator[DaemonProcess]:
    """A daemon that runs on a filesystem of DISK_BYTES."""
    daemon = make_daemon(disk=FLOOR)
    daemon.spool.mkdir(parents=True)
    size = f"size={DISK_BYTES},mode=755"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "inbox-daemon-test", daemon.spool], check=True
    )
    try:
        yield daemon.start()
        daemon.close()
    finally:
        subprocess.run(["umount", "--lazy", daemon.spool], check=True)


def fill(spool: Path, leave: int, name: str = "ballast") -> Path:
    """Let something else take the disk's room but for `leave` bytes; return it."""
    ballast = spool / name
    with ballast.open("wb") as file:
        size = shutil.disk_usage(spool).free - leave
        while size > 0:
            size -= file.write(bytes(min(size, 1 << 20)))
    return ballast


def test_results_that_do_not_fit_twice_wait_and_the_next_job_runs(daemon: DaemonProcess) -> None:
    """The results are on the disk once; their folder is built when there is room for it too."""
    large, small = chats(16, dict.fromkeys(range(16), f"[[big={ANSWER_BYTES}]]")), chats(3)
    daemon.drop("warm", small)
    daemon.wait_outcome("warm")
    ballast = fill(daemon.spool, leave=28 << 20)
    pid = daemon.status_now()["pid"]
    daemon.drop("large", large)
    shown = daemon.wait_status(
        lambda s: s["worker"]["code"] == "jobs_held", "the results that wait"
    )
    assert (shown["status"], shown["worker"]["state"]) == ("unhealthy", "paused")
    assert "the results of large wait: they need 1" in shown["worker"]["reason"]
    daemon.drop("small", small)
    assert len(daemon.check_results("small", small).results) == 3
    assert not (daemon.spool / "outbox" / "large").exists()
    assert daemon.status_now()["pid"] == pid
    ballast.unlink()
    assert len(daemon.check_results("large", large).results) == 16
    daemon.wait_status(lambda s: s["status"] == "healthy", "a healthy daemon")
    assert daemon.status_now()["pid"] == pid


def test_orders_and_refusals_wait_while_the_disk_is_full(daemon: DaemonProcess) -> None:
    """Not even they are carried out, the health goes on being true, and then all is answered."""
    pid = daemon.status_now()["pid"]
    ballast = fill(daemon.spool, leave=1 << 20)
    daemon.wait_status(lambda s: s["worker"]["code"] == "disk_short", "the disk's reading")
    (daemon.spool / "inbox" / "night.cancel").touch()
    daemon.drop("bad", [b"no json\n"])
    shown = daemon.wait_status(
        lambda s: {drop["name"] for drop in s["waiting"]} == {"night.cancel", "bad.jsonl"},
        "both among what waits",
    )
    assert "the disk is full" in str(shown["waiting"])
    rest = fill(daemon.spool, leave=0, name="rest")
    full = daemon.status_now()["seq"]
    shown = daemon.wait_status(
        lambda s: s["seq"] > full + 1 and s["disk"]["free_bytes"] == 0, "a health on a full disk"
    )
    assert (shown["pid"], shown["worker"]["code"]) == (pid, "disk_short")
    ballast.unlink()
    rest.unlink()
    daemon.wait_empty_inbox()
    daemon.wait_status(lambda s: s["last_rejected"] is not None, "the refusals")
    refused = {path.name for path in (daemon.spool / "rejected").iterdir()}
    assert refused >= {"night.cancel", "night.cancel.reason.json", "bad.jsonl", "bad.reason.json"}
    assert daemon.status_now()["pid"] == pid

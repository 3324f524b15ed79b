"""Watching from outside: a running daemon misses no file when hints fail, and idles cheaply."""

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import cast

import pytest

from builders import config, request
from daemon_process import DaemonProcess, MakeDaemon
from inbox_daemon.intake.control import Controller
from inbox_daemon.intake.loop import Intake
from inbox_daemon.intake.watch import Watcher
from job_files import chats
from miniature import Miniature

QUIET = {
    "intake": {"settle_s": 2.0, "scan_interval_s": 2.0},
    "run": {"commit_interval_s": 1.0},
    "status": {"interval_s": 5},
}
MAX_BYTES = (20 << 20) + (100 << 20)  # 20 times max_line_bytes and 100 MiB
TICKS = os.sysconf("SC_CLK_TCK")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


def cpu_s(daemon: DaemonProcess) -> float:
    """The CPU time of the daemon's own process so far, its engine's left out."""
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def idle_share(daemon: DaemonProcess, writings: int) -> float:
    """Return the share of a core that it uses while its health is written this many times."""
    daemon.wait_writings(1)  # the effects of what the test did are over
    began, before = time.monotonic(), cpu_s(daemon)
    daemon.wait_writings(writings)
    return (cpu_s(daemon) - before) / (time.monotonic() - began)


@pytest.mark.slow
def test_a_quiet_daemon_uses_next_to_nothing(make_daemon: MakeDaemon) -> None:
    """With the default settings and a ready engine it takes less than 1 % of a core."""
    daemon = make_daemon(**QUIET).start()
    assert len(daemon.run_job("before", chats(2)).results) == 2
    assert idle_share(daemon, 2) < 0.01


@pytest.mark.slow
def test_a_flood_of_a_hundred_thousand_files_hides_none(make_daemon: MakeDaemon) -> None:
    """More events than the kernel keeps lose no file and cost no memory or lasting work."""
    daemon = make_daemon(**QUIET).start()
    inbox = daemon.spool / "inbox"
    for number in range(100_000):
        if number == 50_000:
            daemon.drop("amid", chats(2))
        os.mknod(inbox / f".{number}.jsonl")
    try:
        daemon.drop("after", chats(3))
        daemon.check_results("amid", chats(2))
        daemon.check_results("after", chats(3))
        assert len(daemon.dropped()) == 100_000
        assert daemon.process.rss_bytes < MAX_BYTES
        daemon.wait_status(lambda s: s["status"] == "healthy", "a healthy daemon")
    finally:
        daemon.close()
        shutil.rmtree(inbox)


def test_files_that_were_there_before_the_start_are_taken(make_daemon: MakeDaemon) -> None:
    """No event announces them, and they are taken from every lane."""
    daemon = make_daemon()
    for lane in (".", "high", "low"):
        folder = daemon.spool / "inbox" / lane
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"early-{lane.strip('.')}.jsonl").write_bytes(b"".join(chats(2)))
    daemon.start()
    for name in ("early-", "early-high", "early-low"):
        daemon.check_results(name, chats(2))


def test_an_inbox_that_was_renamed_and_replaced_is_still_watched(start_daemon: MakeDaemon) -> None:
    """The folder that has the name now is watched, and files already in it are taken."""
    daemon = start_daemon()
    inbox = daemon.spool / "inbox"
    new = daemon.spool / "new"
    for lane in ("high", "low"):
        (new / lane).mkdir(parents=True)
    (new / "ahead.jsonl").write_bytes(b"".join(chats(2)))
    inbox.rename(daemon.spool / "old")
    new.rename(inbox)
    daemon.check_results("ahead", chats(2))
    assert len(daemon.run_job("later", chats(2)).results) == 2


@pytest.mark.root
@needs_root
def test_an_inbox_that_is_mounted_over_is_reported_and_comes_back(start_daemon: MakeDaemon) -> None:
    """While it is covered the health says so, and the files below are taken afterwards."""
    daemon = start_daemon()
    inbox = daemon.spool / "inbox"
    subprocess.run(["mount", "-t", "tmpfs", "inbox-daemon-test", inbox], check=True)
    try:
        (inbox / "above.jsonl").write_bytes(b"".join(chats(1)))
        status = daemon.wait_status(
            lambda s: "another filesystem" in str(s["reasons"]), "the reason in words"
        )
        assert status["status"] == "unhealthy"
        assert (inbox / "above.jsonl").exists()
    finally:
        subprocess.run(["umount", "--lazy", inbox], check=True)
    assert len(daemon.run_job("below", chats(2)).results) == 2
    assert not (daemon.spool / "outbox" / "above").exists()
    daemon.wait_status(lambda s: s["status"] == "healthy", "a healthy daemon")


@pytest.mark.parametrize("hints", [True, False], ids=["hints", "silence"])
@pytest.mark.parametrize("settle_s", [0.05, 0.25])
async def test_a_renamed_file_is_queued_by_the_second_scan_after_it_settled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hints: bool,  # noqa: FBT001 - both ways
    settle_s: float,
) -> None:
    """The time counts in scans, not seconds, with hints and without."""
    if not hints:
        monkeypatch.setattr(Watcher, "_build", lambda self: setattr(self, "_problem", "silent"))
    desk = Miniature(
        tmp_path / "spool", config(intake={"settle_s": settle_s, "scan_interval_s": 0.1})
    )
    intake = Intake(
        desk.config,
        desk.spool,
        desk.queue,
        desk.admission,
        cast("Controller", None),
        lambda: None,
    )
    scans: list[tuple[float, float]] = []
    scan_all = Intake._scan_all

    async def note_and_scan(self: Intake, watcher: Watcher) -> None:
        began, queued = time.monotonic(), bool(desk.queue.entries)
        await scan_all(self, watcher)
        if not queued:
            scans.append((began, time.monotonic()))

    monkeypatch.setattr(Intake, "_scan_all", note_and_scan)
    loop = asyncio.create_task(intake.run())
    try:
        for number in range(5):
            hidden = tmp_path / "spool" / "job"
            hidden.write_bytes(request("a") + b"\n")
            hidden.rename(desk.spool.inbox / f"job{number}.jsonl")
            delivered = time.monotonic()
            while not desk.queue.entries and not loop.done():
                await asyncio.sleep(0.001)
            # The first scan sees it; of those that begin after it settled the first takes it.
            sights = [end for begin, end in scans if begin > delivered]
            late = [begin for begin, _ in scans if begin > sights[0] + settle_s] if sights else []
            assert len(late) <= 1
            desk.queue.entries.clear()
    finally:
        intake.stop()
        await loop
        desk.close()

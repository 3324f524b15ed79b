"""What is another user's, immutable or mounted in the spool: left whole, told, in no one's way."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon_process import DaemonProcess, MakeDaemon, inbox_daemon
from job_files import chats, check_outputs

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these files"),
]

# Without root's powers, so that another user's files are another's.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
OTHER_USER = 65534
DAY_S = 86400
LONG_AGO = time.time() - 10 * DAY_S
CLAIM = "01J0000000000000000000000C"


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> DaemonProcess:
    """A daemon without root's powers, with a spool; not started."""
    daemon = make_daemon(retention={"outbox_days": 1, "rejected_days": 1})
    daemon.prefix = POWERLESS
    daemon.write_config()
    inbox_daemon("init", "--config", daemon.config)
    return daemon


def fill(folder: Path, *names: str) -> Path:
    """Make a folder with some files, as old as a published one that retention removes."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"{}\n")
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    return folder


def give(path: Path, user: int = OTHER_USER, mode: int = 0o700) -> Path:
    """Give a folder, and all that is in it, to another user."""
    for inner in (path, *path.rglob("*")):
        os.chown(inner, user, user)
    path.chmod(mode)
    return path


def holds(folder: Path) -> set[str]:
    """What lies in a folder, below it included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def wait_reasons(daemon: DaemonProcess, *wanted: str) -> list[str]:
    """Wait until the health gives all these reasons."""

    def look(status: dict[str, object]) -> bool:
        return all(words in "\n".join(status["reasons"]) for words in wanted)  # type: ignore[arg-type]

    reasons: list[str] = daemon.wait_status(look, f"the reasons {wanted}")["reasons"]
    return reasons


def test_another_users_folders_are_in_no_ones_way(daemon: DaemonProcess) -> None:
    """In each folder of the spool: the start, the jobs of those names and retention go on."""
    spool = daemon.spool
    theirs = [
        give(fill(spool / "outbox" / "theirs", "output.jsonl", "status.json")),
        give(fill(spool / "outbox" / "shown", "output.jsonl", "status.json"), mode=0o755),
        give(fill(spool / "outbox" / "notice", "status.json"), mode=0o755),
        give(fill(spool / "rejected" / "old.reason.json", "file"), mode=0o755),
        give(fill(spool / "quarantine" / "kept", "file")),
        give(fill(spool / "queued" / "unknown.jsonl", "file"), mode=0o755),
        give(fill(spool / "running" / "unknown", "file"), mode=0o755),
        give(fill(spool / "claimed" / "unknown", "file"), mode=0o755),
        give(fill(spool / "claimed" / f"{CLAIM}.normal.drop", "other.jsonl"), mode=0o755),
    ]
    before = [holds(path) for path in theirs]
    os.utime(spool / "rejected" / "old.reason.json", (LONG_AGO, LONG_AGO))
    give(fill(spool / "outbox" / "empty"), mode=0o755)
    ours = fill(spool / "outbox" / "zz-ours", "output.jsonl", "status.json")
    daemon.start()
    wait_reasons(
        daemon,
        "outbox/theirs cannot be looked at: Permission denied; give it to the daemon's user",
        "outbox/shown cannot be removed: Permission denied",
        "outbox/notice cannot be removed: Permission denied",
        "rejected/old.reason.json cannot be removed: Permission denied",
        "queued/unknown.jsonl cannot be moved to quarantine/: Permission denied",
        "running/unknown cannot be moved to quarantine/: Permission denied",
        "claimed/unknown cannot be removed: Permission denied",
        f"claimed/{CLAIM}.normal.drop cannot be put back into inbox/: Permission denied",
    )
    daemon.wait(lambda: not ours.exists(), "retention after what it could not remove")
    for name in ("theirs", "shown"):
        daemon.drop(name, chats(2))
        assert daemon.wait_refusal(name)["code"] == "name_in_use"
    for name in ("notice", "empty"):
        daemon.drop(name, chats(2))
    daemon.check_results("empty", chats(2))
    daemon.wait(lambda: list(spool.glob("outbox/notice.*/output.jsonl")), "the results beside it")
    assert [holds(path) for path in theirs] == before
    named = {event["path"] for event in daemon.events("left_in_place")}
    assert named == {str(path) for path in theirs if path.parent.name != "quarantine"}
    assert not daemon.events("loop_ended")


def test_what_cannot_be_removed_whole_is_not_begun(daemon: DaemonProcess) -> None:
    """One file of another user deep in a folder keeps all of it in place, and is no one else's."""
    spool = daemon.spool
    mixed = fill(spool / "outbox" / "mixed", "errors.jsonl", "output.jsonl", "status.json")
    give(fill(mixed / "deep" / "theirs", "file"), mode=0o755)
    ours = fill(spool / "outbox" / "ours", "output.jsonl", "status.json")
    before = holds(mixed)
    daemon.start()
    wait_reasons(daemon, "outbox/mixed cannot be removed: Permission denied")
    daemon.wait(lambda: not ours.exists(), "the removal of the others")
    assert holds(mixed) == before
    daemon.kill()
    daemon.start()
    wait_reasons(daemon, "outbox/mixed cannot be removed: Permission denied")
    assert holds(mixed) == before
    daemon.stop()
    give(mixed, user=0)
    daemon.start()
    daemon.wait(lambda: not mixed.exists(), "its removal once it is the daemon's")
    assert not daemon.status_now()["reasons"]


@pytest.fixture
def fixed() -> Iterator[Callable[[Path], None]]:
    """Make a file immutable, until the test is over."""
    files: list[Path] = []

    def fix(path: Path) -> None:
        done = subprocess.run(["chattr", "+i", path], check=False, capture_output=True)
        if done.returncode:
            pytest.skip(f"this filesystem knows no immutable files: {done.stderr.decode()}")
        files.append(path)

    yield fix
    for path in files:
        subprocess.run(["chattr", "-i", path], check=True)


def test_immutable_files_are_left_whole(
    daemon: DaemonProcess, fixed: Callable[[Path], None]
) -> None:
    """A folder with one is not removed in part, nor are its file and reason of a refusal."""
    spool = daemon.spool
    kept = fill(spool / "outbox" / "kept", "errors.jsonl", "output.jsonl", "status.json")
    fill(spool / "rejected" / "tmp", "bad.jsonl", "bad.reason.json")
    for path in (spool / "rejected" / "tmp").iterdir():
        path.rename(spool / "rejected" / path.name)
    (spool / "rejected" / "tmp").rmdir()
    claimed = spool / "claimed" / f"{CLAIM}.jsonl"
    claimed.write_bytes(chats(1)[0])
    for path in (kept / "output.jsonl", spool / "rejected" / "bad.reason.json", claimed):
        fixed(path)
    before = holds(kept), holds(spool / "rejected")
    daemon.start()
    wait_reasons(
        daemon,
        "outbox/kept cannot be removed: Operation not permitted",
        "rejected/bad.reason.json cannot be removed: Operation not permitted",
        f"claimed/{CLAIM}.jsonl cannot be removed: Operation not permitted",
    )
    assert daemon.run_job("other", chats(2)).results
    assert (holds(kept), holds(spool / "rejected")) == before


@pytest.fixture
def mounted(daemon: DaemonProcess) -> Iterator[Path]:
    """A folder of outbox/ in which something is mounted."""
    folder = fill(daemon.spool / "outbox" / "mounted", "output.jsonl", "status.json")
    inner = fill(folder / "inner")
    subprocess.run(["mount", "-t", "tmpfs", "inbox-daemon-test", inner], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", inner], check=True)


def test_a_mounted_folder_is_left_whole(daemon: DaemonProcess, mounted: Path) -> None:
    """Nothing of a folder goes in which something is mounted."""
    (mounted / "inner" / "theirs").write_bytes(b"x")
    before = holds(mounted)
    daemon.start()
    wait_reasons(daemon, "outbox/mounted cannot be removed: Device or resource busy")
    assert daemon.run_job("other", chats(2)).results
    assert holds(mounted) == before


def test_a_running_job_that_became_another_users_waits(daemon: DaemonProcess) -> None:
    """The start goes on without it, the others run, and it goes on once it is ours again."""
    daemon.start()
    daemon.drop("taken", chats(3, {1: "[[hang]]"}))
    job = daemon.wait_status(
        lambda s: [j for j in s["jobs"] if j["name"] == "taken" and j["completed"] == 2],
        "two answers",
    )["jobs"][0]
    daemon.kill()
    folder = give(daemon.spool / "running" / job["id"])
    daemon.start()
    wait_reasons(daemon, "taken cannot be started: Permission denied")
    assert daemon.run_job("other", chats(2)).results
    give(folder, user=0)
    (daemon.spool / "inbox" / "taken.cancel").touch()
    folder = daemon.wait_outcome("taken")
    outputs = check_outputs(chats(3, {1: "[[hang]]"}), folder, "cancelled")
    assert (set(outputs.results), outputs.reasons()) == ({"r0", "r2"}, {"r1": "cancelled"})
    assert daemon.tries(2) == 1  # the other job has none of that number
    assert not daemon.events("loop_ended")
    daemon.wait_status(lambda s: not s["reasons"], "a health without a reason")


def test_an_order_and_a_refusal_are_not_held_up(daemon: DaemonProcess) -> None:
    """A refusal whose notice another user's folder keeps out is in rejected/ all the same."""
    give(fill(daemon.spool / "outbox" / "bad", "status.json"), mode=0o755)
    daemon.start()
    daemon.drop("bad", [b"no json\n"])
    path = daemon.spool / "rejected" / "bad.reason.json"
    daemon.wait(path.exists, "the refusal")
    assert json.loads(path.read_bytes())["code"] == "invalid_json"
    daemon.wait_empty_inbox()
    shutil.rmtree(daemon.spool / "outbox" / "bad")
    assert daemon.run_job("other", chats(2)).results

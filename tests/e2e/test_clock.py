"""A clock that is set: nothing is lost by a wrong time, and in the end the new one counts."""

import json
import shutil
from pathlib import Path

import pytest

from daemon_process import DaemonProcess, MakeDaemon, inbox_daemon
from job_files import chats, check_outputs
from wall_clock import WallClock, needs_compiler

pytestmark = needs_compiler

LONG = {"hold_s": 3600}
SHORT = {"hold_s": 1}
DAYS = {"outbox_days": 30, "rejected_days": 30, "dead_letter_days": 30}
LINES = chats(3)


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    """A clock that is right at first."""
    return WallClock(tmp_path)


def start_with_job(daemon: DaemonProcess, clock: WallClock, expires_in_s: int) -> Path:
    """Start it with a job that waits for its engine; return the file that lets that start."""
    flag = daemon.hold_engine()
    daemon.env |= clock.env
    daemon.start(ready=False)
    options = {"expires_in_s": expires_in_s}
    (daemon.spool / "inbox" / "job.options.json").write_text(json.dumps(options))
    daemon.drop("job", LINES)
    daemon.wait_active("job")
    return flag


def wait_doubt(daemon: DaemonProcess, words: str) -> None:
    """Wait until the health says that the clock is in doubt, and some turns more."""
    daemon.wait_status(lambda s: any(words in reason for reason in s["reasons"]), words)
    assert daemon.status_now()["status"] in {"degraded", "unhealthy"}
    daemon.wait_writings(4)


def wait_trust(daemon: DaemonProcess) -> float:
    """Wait until the clock is trusted again; return what was added to the time."""
    daemon.wait(lambda: daemon.events("clock_trusted"), "a clock that is trusted")
    daemon.wait_status(lambda s: not any("clock" in reason for reason in s["reasons"]), "no doubt")
    by_s: float = daemon.events("clock_trusted")[-1]["by_s"]
    return by_s


def letters(daemon: DaemonProcess) -> int:
    """How many dead letters the daemon's status counts."""
    count: int = daemon.status_now()["dead_letters"]
    return count


def test_two_days_ahead_for_a_moment_expire_nothing(
    make_daemon: MakeDaemon, clock: WallClock
) -> None:
    """A job with an hour left is answered once the clock is right again."""
    daemon = make_daemon(clock=LONG)
    flag = start_with_job(daemon, clock, 3600)
    clock.set(days=2)
    wait_doubt(daemon, "the clock was set 2 days ahead")
    clock.set()
    assert wait_trust(daemon) == 0.0
    flag.touch()
    daemon.check_results("job", LINES)
    assert not daemon.events("job_ending")
    assert [round(event["by_s"] / 86400) for event in daemon.events("clock_jumped")] == [2]


@pytest.mark.parametrize("days", [2, -2])
def test_a_new_time_that_holds_leaves_each_job_the_time_it_had(
    make_daemon: MakeDaemon, clock: WallClock, days: int
) -> None:
    """An hour of waiting is an hour, whichever way the clock is corrected."""
    daemon = make_daemon(clock=SHORT)
    flag = start_with_job(daemon, clock, 3600)
    clock.set(days=days)
    assert round(wait_trust(daemon) / 86400) == days
    daemon.wait_writings(4)
    flag.touch()
    status = daemon.check_results("job", LINES).status
    assert 3590 < status["expires_at"] - status["created_at"] < 3610
    assert abs(status["completed_at"] - status["created_at"]) < 600
    assert not daemon.events("job_ending")


def test_a_clock_set_back_lets_no_job_outlive_its_time(
    make_daemon: MakeDaemon, clock: WallClock
) -> None:
    """A job expires after its seconds, not an hour later."""
    daemon = make_daemon(clock=SHORT)
    start_with_job(daemon, clock, 5)
    clock.set(hours=-1)
    check_outputs(LINES, daemon.wait_outcome("job"), "expired")
    assert round(wait_trust(daemon) / 3600) == -1


def test_a_file_sent_again_under_a_wrong_clock_is_not_run_again(
    make_daemon: MakeDaemon, clock: WallClock
) -> None:
    """A job that ended today is known, although the clock says that dedup_days are over."""
    daemon = make_daemon(clock=LONG)
    daemon.env |= clock.env
    daemon.start()
    daemon.run_job("job", LINES)
    shutil.rmtree(daemon.spool / "outbox" / "job")
    clock.set(days=10)
    daemon.drop("job", LINES)
    daemon.wait(lambda: daemon.events("job_redelivered"), "a redelivery")
    assert len(daemon.executions()) == 3


def test_a_start_far_ahead_removes_nothing_until_its_time_has_held(
    make_daemon: MakeDaemon, clock: WallClock
) -> None:
    """Results, refusals and dead letters stay in doubt, and go by age once there is none."""
    daemon = make_daemon(clock=LONG, retention=DAYS)
    daemon.env |= clock.env
    daemon.start()
    daemon.run_job("job", chats(3, {1: "[[400]]"}))
    daemon.drop("bad", [b"no JSON\n"])
    daemon.wait_refusal("bad")
    daemon.stop()
    clock.set(days=100)
    daemon.start()
    wait_doubt(daemon, "the clock was set 100 days ahead")
    kept = [daemon.spool / name for name in ("outbox/job/output.jsonl", "rejected/bad.jsonl")]
    assert all(path.exists() for path in kept)
    assert letters(daemon) == 1
    assert inbox_daemon("verify", "job", "--config", daemon.config).returncode == 0
    daemon.stop()
    daemon.sections["clock"] = SHORT
    daemon.start()
    daemon.wait(lambda: not any(path.exists() for path in kept), "what is 100 days old to go")
    daemon.wait_status(lambda s: s["dead_letters"] == 0, "no dead letter")

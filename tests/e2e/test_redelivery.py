"""The same name with the same bytes is one job, however often it is sent."""

import shutil

import pytest

from daemon_process import DaemonProcess, MakeDaemon
from job_files import chats

LINES = chats(3)


def deliver_again(daemon: DaemonProcess) -> None:
    """Send the job again and wait until the daemon has recognised it."""
    count = len(daemon.events("job_redelivered"))
    daemon.drop("job", LINES)
    daemon.wait(lambda: len(daemon.events("job_redelivered")) > count, "a re-delivery")
    daemon.wait_empty_inbox()


def test_active_job_delivered_again_is_not_run_again(make_daemon: MakeDaemon) -> None:
    """Rsync run twice while a job waits gives one job, and no notice in its place."""
    daemon = make_daemon()
    flag = daemon.hold_engine()
    daemon.start(ready=False)
    daemon.drop("job", LINES)
    daemon.wait_status(lambda s: s["jobs"], "the job")
    deliver_again(daemon)
    status = daemon.wait_status(lambda s: s["recent"], "the re-delivery in the health")
    assert (status["recent"][0]["status"], len(status["jobs"])) == ("redelivered", 1)
    assert not (daemon.spool / "outbox" / "job").exists()
    flag.touch()
    daemon.check_results("job", LINES)
    assert len(daemon.executions()) == 3


def test_published_job_delivered_again_is_not_run_again(start_daemon: MakeDaemon) -> None:
    """A job whose results are in outbox/ keeps them unchanged when it is sent again."""
    daemon = start_daemon()
    before = daemon.run_job("job", LINES)
    deliver_again(daemon)
    assert daemon.check_results("job", LINES) == before
    assert len(daemon.executions()) == 3


@pytest.mark.parametrize("emptied", [False, True], ids=["removed", "emptied"])
def test_collected_job_delivered_again_is_not_run_again(
    start_daemon: MakeDaemon,
    emptied: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A job whose results were collected gets a notice of its end, after a restart too."""
    daemon = start_daemon()
    before = daemon.run_job("job", LINES).status
    daemon.stop()
    daemon.start()
    shutil.rmtree(daemon.spool / "outbox" / "job")
    if emptied:  # as rsync --remove-source-files leaves it
        (daemon.spool / "outbox" / "job").mkdir()
    deliver_again(daemon)
    notice = daemon.notice("job")
    assert notice["redelivered_at"] >= before["completed_at"]
    assert {k: notice[k] for k in ("id", "status", "request_counts")} == {
        k: before[k] for k in ("id", "status", "request_counts")
    }
    assert notice["output_file_id"] is None
    assert len(daemon.executions()) == 3
    assert len(daemon.run_job("other", LINES).results) == 3


def test_collected_job_runs_again_after_dedup_days(make_daemon: MakeDaemon) -> None:
    """With dedup_days = 0 a collected job that is sent again is a new one."""
    intake = {"dedup_days": 0}
    daemon = make_daemon(intake=intake).start()
    before = daemon.run_job("job", LINES).status
    shutil.rmtree(daemon.spool / "outbox" / "job")
    assert daemon.run_job("job", LINES).status["id"] != before["id"]
    assert len(daemon.executions()) == 6

"""The daemon is killed or stopped at any moment: it goes on where it was, nothing twice."""

import json
import random
import signal

import pytest

from daemon_process import STOP_S, DaemonProcess, MakeDaemon, inbox_daemon
from job_files import chats, check_outputs
from processes import wait_until

KILLS = 10
# With these the stand-in begins 533 requests a second at most.
SLOTS, LATENCY = 16, 0.03
# What a kill may cost: all in flight, and what finished in commit_interval_s and a second.
LOST_AT_MOST = SLOTS + 640


def committed(daemon: DaemonProcess, name: str) -> int:
    """Return how many requests of a job are committed, read while no daemon runs."""
    shown = inbox_daemon("job", name, "--json", "--config", daemon.config)
    if shown.returncode:
        return 0
    counts = json.loads(shown.stdout)["request_counts"]
    return int(counts["completed"])


@pytest.mark.slow
def test_killed_daemon_goes_on_where_it_was(make_daemon: MakeDaemon) -> None:
    """Kill -9 at random moments of a job: complete, verified, and little is run twice."""
    moments = random.Random(1)
    daemon = make_daemon("--slots", str(SLOTS), "--latency", str(LATENCY))
    daemon.start()
    lines = chats(2000)
    daemon.drop("job", lines)
    counted = executed = 0
    for _ in range(KILLS):
        daemon.wait_executions(executed + moments.randrange(1, 180))
        daemon.kill()
        count, runs = committed(daemon, "job"), daemon.execution_count()
        assert 0 <= (runs - executed) - (count - counted) <= LOST_AT_MOST
        counted, executed = count, runs
        daemon.start(ready=False)
    outputs = check_outputs(lines, daemon.wait_outcome("job", patience_s=120))
    assert len(outputs.results) == 2000
    assert daemon.execution_count() - executed == 2000 - counted
    assert daemon.verify("job") == 0
    daemon.stop()


@pytest.mark.slow
def test_daemon_killed_between_drop_and_start_keeps_the_job(make_daemon: MakeDaemon) -> None:
    """Kill -9 at random moments before a request has run: taken once, answered once."""
    moments = random.Random(3)
    daemon = make_daemon()
    daemon.start(ready=False)
    lines = chats(2000)
    daemon.drop("job", lines)
    for _ in range(KILLS):
        daemon.wait_writings(moments.randrange(3))
        daemon.kill()
        daemon.start(ready=False)
    assert len(daemon.check_results("job", lines).results) == 2000
    assert not daemon.dropped()
    assert len(list((daemon.spool / "outbox").iterdir())) == 2


def test_engine_dies_with_its_daemon(start_daemon: MakeDaemon) -> None:
    """Kill -9 of the daemon alone ends the engine that it has started."""
    daemon = start_daemon()
    below = daemon.kill()
    assert below
    wait_until(lambda: not any(child.alive for child in below), "the end of the engine")


def test_orphans_of_an_engine_are_ended_by_the_next_daemon(start_daemon: MakeDaemon) -> None:
    """Processes left by a killed engine are ended before the next engine starts."""
    daemon = start_daemon("--helper")
    below = daemon.kill()
    assert len(below) == 2
    wait_until(lambda: sum(child.alive for child in below) == 1, "the end of the engine")
    daemon.start()
    assert not any(child.alive for child in below)
    assert daemon.events("engine_orphans_killed")
    daemon.stop()


def test_queue_outlives_the_daemon(make_daemon: MakeDaemon) -> None:
    """Jobs that wait in the queue run in their order after a restart."""
    daemon = make_daemon()
    flag = daemon.hold_engine()
    daemon.start(ready=False)
    names = [f"job{number}" for number in range(3)]
    for name in names:
        daemon.drop(name, chats(5))
        daemon.wait_active(name)
    daemon.stop()
    flag.touch()
    daemon.start()
    for name in names:
        daemon.check_results(name, chats(5))
    status = daemon.wait_status(lambda s: len(s["recent"]) == 3, "three finished jobs")
    assert {job["name"] for job in status["recent"]} == set(names)


@pytest.mark.slow
def test_drained_daemon_goes_on_after_a_restart(start_daemon: MakeDaemon) -> None:
    """SIGTERM lets what is in flight finish, commits it and exits with 0; nothing runs twice."""
    daemon = start_daemon("--slots", "16", "--latency", "0.02")
    lines = chats(1000)
    daemon.drop("job", lines)
    daemon.wait_executions(200)
    daemon.stop()
    status = daemon.status_now()
    assert status["reasons"] == ["the daemon is stopping, or was stopped"]
    assert status["engine"]["state"] == "stopped"
    drained = daemon.execution_count()
    assert committed(daemon, "job") == drained < 1000
    daemon.start()
    assert len(daemon.check_results("job", lines).results) == 1000
    assert daemon.execution_count() == 1000


@pytest.mark.slow
def test_drain_gives_up_what_does_not_finish(make_daemon: MakeDaemon) -> None:
    """A request that hangs does not delay the stop; it is run again after the restart."""
    daemon = make_daemon(run={"drain_s": 1.0}).start()
    lines = chats(20, {3: "[[hangx1]]"})
    daemon.drop("job", lines)
    daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["completed"] == 19, "19 answers")
    daemon.stop()
    assert committed(daemon, "job") == 19
    daemon.start()
    assert len(daemon.check_results("job", lines).results) == 20
    assert daemon.tries(3) == 2


@pytest.mark.slow
def test_second_signal_leaves_at_once(start_daemon: MakeDaemon) -> None:
    """The second SIGTERM does not wait for what is in flight, and leaves no process."""
    daemon = start_daemon("--helper")
    lines = chats(20, {3: "[[hangx1]]"})
    daemon.drop("job", lines)
    daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["completed"] == 19, "19 answers")
    below = daemon.engine_processes()
    daemon.signal(signal.SIGTERM)
    daemon.wait(lambda: daemon.events("draining"), "the drain")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait_exit(STOP_S) == 3
    wait_until(lambda: not any(child.alive for child in below), "no process of the engine")
    daemon.start()
    assert len(daemon.check_results("job", lines).results) == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_interrupt_and_hang_up_stop_as_well(
    start_daemon: MakeDaemon, number: signal.Signals
) -> None:
    """Ctrl-C in the foreground, and a terminal that is closed, drain like SIGTERM."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run under nohup, and so does the daemon")
    daemon = start_daemon()
    daemon.signal(number)
    assert daemon.wait_exit(STOP_S) == 0


def test_second_daemon_is_refused(start_daemon: MakeDaemon) -> None:
    """A second daemon on a spool ends at once and names the holder, and the first goes on."""
    daemon = start_daemon()
    second = inbox_daemon("run", "--config", daemon.config)
    assert second.returncode == 2
    assert f"process {daemon.process.pid}" in second.stderr
    assert len(daemon.run_job("job", chats(3)).results) == 3
    assert len(daemon.engine_starts()) == 1


def test_next_daemon_takes_the_lock_of_a_killed_one(start_daemon: MakeDaemon) -> None:
    """The lock of a killed daemon does not keep the next one out."""
    daemon = start_daemon()
    daemon.kill()
    daemon.start()
    assert len(daemon.run_job("job", chats(3)).results) == 3

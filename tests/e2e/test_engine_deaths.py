"""The engine dies in the middle of work: everything is answered, and only poison is set aside."""

import math
import os
import signal

import pytest

from daemon_process import DaemonProcess, MakeDaemon
from job_files import chats, check_outputs
from status_watch import StatusWatch

LATENCY = ("--latency", "0.05")


def kill_engine(daemon: DaemonProcess) -> None:
    """Kill the stand-in, as the system's out-of-memory killer does."""
    os.kill(daemon.engine_starts()[-1], signal.SIGKILL)


def starts_allowed(watch: StatusWatch) -> float:
    """Return how many engine starts a hunt may take, for the largest window that was seen."""
    window = max(status["worker"]["window"] for status in watch.seen)
    return 2 * math.log2(window) + 4


@pytest.mark.slow
def test_killed_engine_costs_no_request(start_daemon: MakeDaemon) -> None:
    """Requests in flight under a kill -9 of the engine are answered by the next one."""
    daemon = start_daemon()
    lines = chats(200, dict.fromkeys(range(0, 200, 4), "[[slow=1.5]]"))
    daemon.drop("job", lines)
    daemon.wait_executions(100)
    kill_engine(daemon)
    outputs = daemon.check_results("job", lines)
    assert len(outputs.results) == 200
    status = daemon.status_now()
    assert (status["engine"]["restarts"], status["engine"]["deaths"]) == (1, 1)
    assert status["status"] == "degraded"
    assert len(daemon.engine_starts()) == 2
    daemon.stop()


@pytest.mark.slow
def test_engine_killed_again_and_again_costs_no_request(start_daemon: MakeDaemon) -> None:
    """Deaths that no request causes set no request aside, however many there are."""
    daemon = start_daemon("--slots", "16", *LATENCY)
    lines = chats(600)
    daemon.drop("job", lines)
    for number in range(1, 5):
        daemon.wait_executions(100 * number)
        daemon.wait_starts(number)
        daemon.wait_status(lambda s: s["worker"]["in_flight"] > 1, "several in flight")
        kill_engine(daemon)
    outputs = daemon.check_results("job", lines)
    assert len(outputs.results) == 600


@pytest.mark.slow
def test_poison_alone_is_set_aside(start_daemon: MakeDaemon) -> None:
    """The one request that kills the engine is found among 300; every other is answered."""
    daemon = start_daemon(*LATENCY)
    lines = chats(300, {150: "[[crash]]"})
    with StatusWatch(daemon.spool / "outbox" / "status.json") as watch:
        daemon.drop("job", lines)
        outputs = check_outputs(lines, daemon.wait_outcome("job", patience_s=200))
    assert outputs.reasons() == {"r150": "poison"}
    assert watch.seen[-1]["engine"]["restarts"] + 1 <= starts_allowed(watch)
    assert len(daemon.engine_starts()) <= starts_allowed(watch)
    letter = outputs.errors["r150"]
    assert (letter["response"], "died" in letter["error"]["message"]) == (None, True)
    assert len(daemon.run_job("after", chats(3)).results) == 3


@pytest.mark.slow
def test_several_poison_requests_are_set_aside(start_daemon: MakeDaemon) -> None:
    """Requests that kill the engine with and without an error message are all found."""
    daemon = start_daemon("--slots", "8", *LATENCY)
    lines = chats(40, {3: "[[kill]]", 30: "[[crash]]"})
    daemon.drop("job", lines)
    outputs = check_outputs(lines, daemon.wait_outcome("job", patience_s=200))
    assert outputs.reasons() == {"r3": "poison", "r30": "poison"}


@pytest.mark.slow
def test_hunt_goes_on_after_a_killed_daemon(start_daemon: MakeDaemon) -> None:
    """A kill -9 of the daemon in the middle of a hunt does not start it over."""
    daemon = start_daemon(*LATENCY)
    lines = chats(100, {50: "[[crash]]"})
    with StatusWatch(daemon.spool / "outbox" / "status.json") as watch:
        daemon.drop("job", lines)
        daemon.wait_starts(4)
        daemon.kill()
        watch.may_be_old = True
        daemon.start(ready=False)
        outputs = check_outputs(lines, daemon.wait_outcome("job", patience_s=200))
    assert outputs.reasons() == {"r50": "poison"}
    assert len(daemon.engine_starts()) <= starts_allowed(watch) + 1


@pytest.mark.slow
def test_request_that_killed_once_is_no_poison(start_daemon: MakeDaemon) -> None:
    """A request under which the engine died once, by chance, is answered."""
    daemon = start_daemon(*LATENCY)
    outputs = daemon.run_job("job", chats(20, {7: "[[crashx1]]", 9: "[[killx1]]"}))
    assert len(outputs.results) == 20


@pytest.mark.slow
def test_frozen_engine_is_killed_and_replaced(make_daemon: MakeDaemon) -> None:
    """An engine that lives and answers nothing is taken for dead after hang_s."""
    daemon = make_daemon()
    daemon.sections["engine"]["hang_s"] = 2
    daemon.start()
    lines = chats(10, {5: "[[freezex1]]"})
    daemon.drop("job", lines)
    outputs = daemon.check_results("job", lines)
    assert len(outputs.results) == 10
    assert len(daemon.engine_starts()) == 2


@pytest.mark.slow
def test_engine_whose_socket_is_gone_is_replaced(start_daemon: MakeDaemon) -> None:
    """An engine whose socket is gone is replaced, and no request is charged."""
    daemon = start_daemon("--slots", "4", *LATENCY)
    lines = chats(300)
    daemon.drop("job", lines)
    daemon.wait_executions(20)
    daemon.engine_socket().unlink()
    outputs = daemon.check_results("job", lines)
    assert len(outputs.results) == 300
    assert len(daemon.engine_starts()) == 2


@pytest.mark.slow
def test_engine_that_cannot_start_is_tried_after_pauses(make_daemon: MakeDaemon) -> None:
    """The job waits, the health quotes the engine's last line, and starts are some time apart."""
    daemon = make_daemon("--die-starts", "1")
    daemon.start(ready=False)
    lines = chats(3)
    daemon.drop("job", lines)
    status = daemon.wait_status(lambda s: s["engine"]["retry_in_s"] and s["jobs"], "a pause")
    assert (status["engine"]["state"], status["status"]) == ("backoff", "unhealthy")
    assert "this start was asked to fail" in status["engine"]["last_error"]
    assert "this start was asked to fail" in status["engine"]["last_lines"][-1]
    assert sum("does not run" in reason for reason in status["reasons"]) == 1
    assert status["engine"]["retry_in_s"] > 1
    assert len(daemon.engine_starts()) == 1
    assert len(daemon.check_results("job", lines).results) == 3
    assert len(daemon.engine_starts()) == 2
    assert len(daemon.events("engine_failed")) == 1


def test_engine_that_dies_idle_is_started_after_a_pause(start_daemon: MakeDaemon) -> None:
    """An engine that ends soon after it was ready, with nothing to do, is not restarted at once."""
    daemon = start_daemon()
    kill_engine(daemon)
    status = daemon.wait_status(lambda s: s["engine"]["retry_in_s"], "a pause")
    assert status["engine"]["retry_in_s"] > 2


@pytest.mark.slow
def test_model_that_is_loaded_later_is_known(make_daemon: MakeDaemon) -> None:
    """The health lists a model that the engine loads at run time, and the log reports it."""
    daemon = make_daemon()
    models = daemon.folder / "models"
    command = daemon.standin("--model", "base", "--models-file", str(models))
    daemon.sections["engine"]["command"] = command
    daemon.start()
    models.write_text("adapter")
    daemon.wait_status(lambda s: s["engine"]["models"] == ["base", "adapter"], "the adapter")
    [change] = daemon.events("models_changed")
    assert (change["before"], change["models"]) == (["base"], ["base", "adapter"])


def test_command_that_does_not_exist_is_named(make_daemon: MakeDaemon) -> None:
    """The health names a command that does not exist."""
    daemon = make_daemon(engine={"command": ["no-such-engine", "{socket}"]}).start(ready=False)
    status = daemon.wait_status(lambda s: s["engine"]["last_error"], "the error")
    assert "no-such-engine: command not found" in status["engine"]["last_error"]
    assert "[engine] command names a program that does not exist" in status["engine"]["last_error"]
    daemon.stop()


def test_daemon_without_an_engine_says_so(make_daemon: MakeDaemon) -> None:
    """Without any engine configured the health is unhealthy and names the keys to set."""
    daemon = make_daemon(engine={"model": ""}).start(ready=False)
    status = daemon.wait_status(lambda s: s["status"] == "unhealthy", "an unhealthy service")
    assert any("[engine] model" in reason for reason in status["reasons"])
    daemon.stop()

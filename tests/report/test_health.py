"""Health: each thing that is wrong in words, and what the worker does."""

from dataclasses import replace
from typing import Any

import pytest

from builders import config, job_record
from inbox_daemon.contract.facts import (
    DiskFacts,
    GovernorFacts,
    IntakeFacts,
    JobFacts,
    QueueFacts,
    RunFacts,
)
from inbox_daemon.contract.hindrances import Hindrance, HindranceCode
from inbox_daemon.contract.records import Progress
from inbox_daemon.engine.base import EngineInfo, EngineState
from inbox_daemon.gpu.nvml import GpuSample
from inbox_daemon.report import health
from inbox_daemon.report.facts import Facts
from inbox_daemon.report.health import RECENT_DEATH_S

READY = EngineInfo(state=EngineState.READY, models=("m",))
STARTING = replace(READY, state=EngineState.STARTING)
BACKOFF = replace(READY, state=EngineState.BACKOFF, last_error="no such model")
JOB = JobFacts(job_record(), False, Progress(), False, 0)  # noqa: FBT003 - neither paused nor running
WORK = QueueFacts(active=1, open_requests=1, jobs=(JOB,))
C = HindranceCode


def facts(**fields: Any) -> Facts:  # noqa: ANN401 - any field
    """An idle daemon, but for `fields`."""
    return replace(Facts(config(), READY), **fields)


def hindered(code: HindranceCode, words: str = "it is so", **fields: Any) -> RunFacts:  # noqa: ANN401 - any field
    """A runner that stands still."""
    return RunFacts(hindrance=Hindrance(code, words), **fields)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ({"engine": BACKOFF}, "no such model"),
        ({"run": hindered(C.ENGINE_BACKOFF, "the engine does not run: x")}, "does not run: x"),
        ({"run": hindered(C.DISK_SHORT, "the disk is full")}, "the disk is full"),
        ({"run": hindered(C.SERVER_REFUSES, "the engine answers 401")}, "answers 401"),
        ({"run": hindered(C.ENGINE_DOUBTED, "it died under each")}, "died under each"),
        ({"run": RunFacts(problem="the engine answers 401")}, "answers 401"),
        ({"intake": IntakeFacts(problem="inbox/ cannot be read")}, "inbox/ cannot be read"),
        ({"gpu": GpuSample("card", healthy=False, problem="it fell off the bus")}, "off the bus"),
        ({"gpu": GpuSample("card", healthy=False)}, "does not answer"),
        ({"stopping": True}, "stopping"),
    ],
)
def test_what_keeps_the_work_from_going_on_is_unhealthy(harm: dict[str, Any], words: str) -> None:
    """Each such state is shown in words."""
    assert any(words in reason for reason in health.unhealthy(facts(**harm)))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ({"engine": STARTING}, "starting"),
        ({"engine": replace(READY, state=EngineState.STOPPED)}, "starting"),
        ({"disk": DiskFacts(1, 1, ("x",))}, "1 thing lies in quarantine/"),
        ({"disk": DiskFacts(1, 1, ("x", "y"))}, "2 things lie in quarantine/"),
        ({"disk": DiskFacts(1, 1, (), ("outbox/x cannot be removed",))}, "x cannot be removed"),
        ({"disk": DiskFacts(1, 1, (), tuple("abcdefghijkl"))}, "2 more things in the spool"),
        ({"intake": IntakeFacts(hints_missing="no inotify")}, "no inotify"),
        ({"governor": GovernorFacts(reasons=("the GPU is warm",))}, "is warm"),
        ({"run": RunFacts(bisecting=True)}, "tried in groups"),
        ({"died_s_ago": 1.0}, "10 minutes"),
        ({"clock_doubt": "the clock was set 2 days ahead"}, "2 days ahead"),
    ],
)
def test_what_only_slows_the_work_is_degraded(harm: dict[str, Any], words: str) -> None:
    """Such a state is shown too, and the service still counts as working."""
    found = facts(**harm)
    assert health.unhealthy(found) == []
    assert any(words in reason for reason in health.degraded(found))


def test_a_death_of_the_engine_is_shown_for_ten_minutes() -> None:
    """After that it is history."""
    assert health.degraded(facts(died_s_ago=RECENT_DEATH_S - 1))
    assert health.degraded(facts(died_s_ago=RECENT_DEATH_S)) == []


def test_one_thing_that_is_wrong_does_not_hide_another() -> None:
    """All reasons are shown, each once."""
    run = hindered(C.DISK_SHORT, "no room", problem="the engine answers 401")
    found = facts(engine=BACKOFF, run=run, died_s_ago=1.0)
    assert len(health.unhealthy(found)) == 2
    assert len(health.degraded(found)) == 1
    same = hindered(C.SERVER_REFUSES, "it answers 401", problem="it answers 401")
    assert health.unhealthy(facts(run=same)) == ["it answers 401"]


STATES = {
    C.ENGINE_BACKOFF: "error",
    C.SERVER_REFUSES: "error",
    C.ENGINE_DOUBTED: "error",
    C.BISECTION: "processing",
    C.ENGINE_UNPROVEN: "processing",
    C.ENGINE_LOST: "processing",
}


@pytest.mark.parametrize("code", list(C))
def test_the_worker_says_what_it_does(code: HindranceCode) -> None:
    """Processing, paused and error are distinct, each for what the runner acts on."""
    hindrance = Hindrance(code, "it is so")
    found = facts(run=RunFacts(hindrance=hindrance), queue=WORK)
    assert health.worker_state(found) == (STATES.get(code, "paused"), hindrance)


def test_without_work_an_engine_that_loads_hinders_nothing() -> None:
    """The worker is idle, whether the engine is up or not."""
    assert health.worker_state(facts()) == ("idle", None)
    assert health.worker_state(facts(run=hindered(C.ENGINE_STARTING))) == ("idle", None)
    assert health.worker_state(facts(run=hindered(C.ENGINE_BACKOFF)))[0] == "error"


def test_a_trial_between_two_pauses_is_still_trouble() -> None:
    """While one request is sent to see whether the server takes it, the state stays."""
    state, hindrance = health.worker_state(
        facts(run=RunFacts(problem="it answers 401"), queue=WORK)
    )
    assert (state, hindrance) == ("error", Hindrance(C.SERVER_REFUSES, "it answers 401"))


@pytest.mark.parametrize("code", sorted(set(C) - {C.BISECTION, C.ENGINE_LOST, C.ENGINE_UNPROVEN}))
def test_work_with_a_reason_to_wait_is_no_work(code: HindranceCode) -> None:
    """The watchdog counts only what could go on: not what waits for something known."""
    assert not health.at_work(facts())
    assert health.at_work(facts(queue=WORK))
    assert not health.at_work(facts(queue=QueueFacts(1, 1, (replace(JOB, paused=True),))))
    assert not health.at_work(facts(queue=WORK, run=hindered(code)))


@pytest.mark.parametrize("code", [C.BISECTION, C.ENGINE_LOST, C.ENGINE_UNPROVEN])
def test_a_bisection_is_work(code: HindranceCode) -> None:
    """Suspects run one group after the other; one that never ends is a hang."""
    assert health.at_work(facts(queue=WORK, run=hindered(code)))


def test_the_headline_fits_on_a_line() -> None:
    """One sentence is what `systemctl status` and people get."""
    assert health.headline(facts(queue=WORK)) == "processing: 1 job, 1 request open, engine ready"
    found = facts(engine=BACKOFF, run=hindered(C.ENGINE_BACKOFF, "no such model"), queue=WORK)
    assert health.headline(found).endswith("; no such model")

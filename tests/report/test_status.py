"""The status: true at every moment, valid by its schema, and never without a reason."""

from dataclasses import replace
from typing import Any

import jsonschema
import orjson
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
from inbox_daemon.contract.health_documents import RecentJob, ServiceStatus, WaitingDrop
from inbox_daemon.contract.hindrances import Hindrance, HindranceCode
from inbox_daemon.contract.job_documents import ended_job, pretty, recent_ended
from inbox_daemon.contract.json_schemas import json_schema
from inbox_daemon.contract.records import Progress
from inbox_daemon.contract.states import BatchStatus, Priority
from inbox_daemon.engine.base import EngineInfo, EngineState, Load
from inbox_daemon.gpu.nvml import GpuSample
from inbox_daemon.report.facts import Facts
from inbox_daemon.report.status import MAX_QUARANTINED, build
from inbox_daemon.report.trends import Speed

READY = EngineInfo(state=EngineState.READY, models=("m",), version="0.33", since=40.0)
SCHEMA = jsonschema.Draft202012Validator(json_schema("status"))
FIRST, SECOND = "01J000000000000000000000A1", "01J000000000000000000000A2"
NOW = 100.0


def facts(**fields: Any) -> Facts:  # noqa: ANN401 - any field
    """An idle daemon, but for `fields`."""
    return replace(Facts(config(), READY, written_at=2000.0), **fields)


def built(**fields: Any) -> ServiceStatus:  # noqa: ANN401 - any field
    """The document of such a moment, after it was held to its schema as it is written."""
    status = build(facts(**fields), NOW)
    found = orjson.loads(pretty(status))
    SCHEMA.validate(found)
    assert ServiceStatus.model_validate(found) == status
    return status


def job(
    *,
    running: bool = True,
    paused: bool = False,
    retrying: int = 0,
    **fields: Any,  # noqa: ANN401 - any field
) -> JobFacts:
    """An active job of three requests, of which two have their outcome."""
    progress = Progress(completed=1, failed=1, input_tokens=1, output_tokens=2)
    known: dict[str, Any] = {"requests": 3, "job_id": FIRST, "name": "first"}
    record = job_record(**known | fields)
    return JobFacts(record, paused, progress if running else Progress(), running, retrying)


def test_an_idle_daemon_is_healthy() -> None:
    """With nothing to do and nothing wrong there is no reason to give."""
    status = built()
    assert (status.status, status.reasons, status.gpu) == ("healthy", [], None)
    assert (status.worker.state, status.worker.code, status.worker.reason) == ("idle", None, None)
    assert (status.engine.state, status.engine.models) == ("ready", ["m"])
    assert (status.queue.active_jobs, status.queue.queue_available) == (0, 5)
    assert status.limits.max_requests_per_job == 50_000


def test_the_same_facts_make_the_same_document() -> None:
    """Nothing is read or remembered, so a document can be built again."""
    found = facts(queue=QueueFacts(1, 3, (job(),)), run=RunFacts(in_flight=1))
    assert build(found, NOW) == build(found, NOW)


def test_a_document_says_how_long_it_counts() -> None:
    """A reader can tell a daemon that is gone from one that has nothing new."""
    assert built().stale_after_s >= 2 * config().status.interval_s


def test_who_writes_it_and_when_is_shown() -> None:
    """The number, the moments and the process are those of the facts."""
    status = built(seq=7, started_at=1500.0, pid=12, python="3.13.0")
    assert (status.seq, status.written_at, status.started_at, status.pid) == (7, 2000.0, 1500.0, 12)
    assert status.versions.python == "3.13.0"


@pytest.mark.parametrize("code", list(HindranceCode))
def test_each_hindrance_is_shown_under_its_code(code: HindranceCode) -> None:
    """Whatever the runner stands still for, the worker shows, in the same words."""
    status = built(
        run=RunFacts(hindrance=Hindrance(code, "it is so")), queue=QueueFacts(1, 3, (job(),))
    )
    assert (status.worker.code, status.worker.reason) == (code, "it is so")


# -- jobs ---------------------------------------------------------------------------


def test_active_jobs_are_listed_with_their_figures() -> None:
    """Queued and running jobs, their priority, pause, counts and retries."""
    second = job(
        running=False, paused=True, job_id=SECOND, name="second", priority=Priority.LOW, requests=1
    )
    status = built(
        queue=QueueFacts(2, 2, (job(retrying=1), second)),
        run=RunFacts(in_flight=1),
        governor=GovernorFacts(window=4),
    )
    running, queued = status.jobs
    assert (running.id, running.name, running.state) == (FIRST, "first", "running")
    assert (running.requests, running.completed, running.failed) == (3, 1, 1)
    assert (running.input_tokens, running.output_tokens, running.retrying) == (1, 2, 1)
    assert (queued.name, queued.state) == ("second", "queued")
    assert (queued.priority, queued.paused) == ("low", True)
    assert (status.worker.current_job, status.worker.open_retries) == ("first", 1)
    assert (status.worker.in_flight, status.worker.window) == (1, 4)
    assert (status.queue.active_jobs, status.queue.total_queued_requests) == (2, 2)


def test_a_queue_that_is_overfull_takes_no_further_job() -> None:
    """Limits that were lowered since do not make the number of free places negative."""
    assert built(queue=QueueFacts(active=9)).queue.queue_available == 0


def test_the_age_of_the_last_outcome_is_shown_while_a_job_runs() -> None:
    """It is the time since an outcome, and null while none is to be expected."""
    run = RunFacts(last_outcome_at=NOW - 7.5)
    assert built(run=run, queue=QueueFacts(1, 3, (job(),))).worker.age_seconds == 7.5
    assert built(run=run, queue=QueueFacts(1, 3, (job(running=False),))).worker.age_seconds is None


def test_a_running_jobs_energy_is_shown_with_its_tokens() -> None:
    """What was committed together makes the joules for 1,000 tokens."""
    found = replace(job(), progress=Progress(completed=2, output_tokens=4, energy_j=8.5))
    shown = built(queue=QueueFacts(1, 1, (found,))).jobs[0]
    assert (shown.energy_j, shown.output_tokens) == (8.5, 4)
    assert shown.energy_j_per_1000_output_tokens == 2125.0


def test_a_jobs_speed_gives_its_time_left() -> None:
    """Without a speed, or with none at all, no time is promised."""
    queue = QueueFacts(1, 1, (job(),))
    shown = built(queue=queue, speeds={FIRST: Speed(2.0, 4.0)}).jobs[0]
    assert (shown.requests_per_s, shown.output_tokens_per_s, shown.seconds_left) == (2.0, 4.0, 0.5)
    assert built(queue=queue, speeds={FIRST: Speed(0.0, 0.0)}).jobs[0].seconds_left is None
    assert built(queue=queue).jobs[0].requests_per_s is None


def test_recent_ends_are_listed_with_the_last_of_each_kind() -> None:
    """The last finished and the last refused job have their own place."""
    record = job_record(status=BatchStatus.COMPLETED, finished_at=5.0)
    ended = recent_ended(ended_job(record))
    refused = RecentJob(id=SECOND, name="bad", status="rejected", at=6, message="no")
    status = built(queue=QueueFacts(recent=(refused, ended), last_finished=ended))
    assert [shown.name for shown in status.recent] == ["bad", "job"]
    assert status.last_finished is not None
    assert (status.last_finished.name, status.last_rejected) == ("job", None)


# -- the rest -----------------------------------------------------------------------


def test_the_engines_figures_are_shown_as_they_are() -> None:
    """Load, restarts, deaths and the end of the last one come from the engine itself."""
    info = replace(
        READY,
        generation=2,
        restarts=3,
        last_error="it died",
        last_lines=("one", "two"),
        load=Load(running=5, waiting=1, kv_cache_use=0.251),
    )
    engine = built(engine=info).engine
    assert (engine.running, engine.waiting, engine.kv_cache_percent) == (5, 1, 25.1)
    assert (engine.restarts, engine.deaths) == (3, 2)
    assert (engine.last_error, engine.last_lines) == ("it died", ["one", "two"])
    assert engine.state_seconds == 60.0
    assert built(engine=info, run=RunFacts(deaths=4)).engine.deaths == 4


@pytest.mark.parametrize("use", [None, 0.0, 1.0, 1.7, -0.5])
def test_odd_figures_of_the_engine_break_nothing(use: float | None) -> None:
    """A share outside of its bounds is shown inside of them."""
    percent = built(engine=replace(READY, load=Load(kv_cache_use=use))).engine.kv_cache_percent
    assert percent is None or 0 <= percent <= 100


def test_the_disk_and_the_dead_letters_are_shown() -> None:
    """What an operator has to look after stands in the document."""
    status = built(disk=DiskFacts(10, 20, ("x",) * 30), dead_letters=7)
    assert status.disk is not None
    assert (status.disk.free_bytes, status.disk.free_inodes) == (10, 20)
    assert status.disk.min_free_bytes == config().disk.min_free_bytes
    assert (status.dead_letters, len(status.quarantined)) == (7, MAX_QUARANTINED)
    assert built().disk is None


def test_what_waits_in_inbox_is_shown() -> None:
    """Each file that was not taken yet, with the reason."""
    drop = WaitingDrop(name="a.jsonl", why="it has just changed", since_s=1.0)
    assert built(intake=IntakeFacts(waiting=(drop,))).waiting == [drop]


def test_the_governors_word_is_shown_with_its_reasons() -> None:
    """What the card allows is a word of the worker's, and each reason a sentence."""
    status = built(governor=GovernorFacts(4, 500, "shrink", ("the GPU is warm", "others use 95 %")))
    assert (status.status, status.worker.governor, status.worker.chunk_size) == (
        "degraded",
        "shrink",
        500,
    )
    assert status.reasons == ["the GPU is warm", "others use 95 %"]


def test_the_card_is_shown_with_what_it_says() -> None:
    """A sensor that the card lacks is null, and the rest is there."""
    gpu = built(gpu=GpuSample("card", temperature_c=60, power_w=None)).gpu
    assert gpu is not None
    assert (gpu.temperature_c, gpu.power_w, gpu.healthy) == (60, None, True)

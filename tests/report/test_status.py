"""The status: true at every moment, valid by its schema, and never without a reason."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jsonschema
import orjson
import pytest

from inbox_daemon.contract.health_documents import ServiceStatus
from inbox_daemon.contract.job_documents import pretty, recent_finished
from inbox_daemon.contract.json_schemas import json_schema
from inbox_daemon.engine.base import EngineInfo, EngineState, Load
from inbox_daemon.gpu.nvml import GpuSample
from inbox_daemon.intake.loop import Intake
from inbox_daemon.report.status import RATE_WINDOW_S, RECENT_DEATH_S, Rate, Reporter
from scripted_runner import Bench, line

READY = EngineInfo(state=EngineState.READY, models=("m",), version="0.33", since=1000.0)
SCHEMA = jsonschema.Draft202012Validator(json_schema("status"))


class StillIntake:
    """An intake that does nothing, and says so."""

    def __init__(self) -> None:
        """Nothing waits and nothing is wrong."""
        self.waiting: list[Any] = []
        self.problem: str | None = None
        self.hints_missing: str | None = None


class Desk:
    """A reporter over real parts."""

    def __init__(self, root: Path) -> None:
        """Start idle."""
        self.bench = Bench(root, window=4)
        self.intake = StillIntake()
        bench = self.bench
        self.reporter = Reporter(
            bench.config, bench.queue, bench.runner, cast("Intake", self.intake), bench.governor
        )

    def build(self, info: EngineInfo = READY, now: float = 100.0) -> ServiceStatus:
        """The document of a moment, after it was held to its schema as it is written."""
        status = self.reporter.build(info, now)
        found = orjson.loads(pretty(status))
        SCHEMA.validate(found)
        assert ServiceStatus.model_validate(found) == status
        return status


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """An idle daemon."""
    desk = Desk(tmp_path)
    yield desk
    await desk.bench.crash()


# -- health -------------------------------------------------------------------------


async def test_an_idle_daemon_is_healthy(desk: Desk) -> None:
    """With nothing to do and nothing wrong there is nothing to tell."""
    status = desk.build()
    assert (status.status, status.reasons, status.gpu) == ("healthy", [], None)
    assert (status.worker.state, status.worker.reason) == ("idle", None)
    assert (status.engine.state, status.engine.models) == ("ready", ["m"])
    assert (status.queue.active_jobs, status.queue.queue_available) == (0, 5)
    assert status.limits.max_requests_per_job == 50_000


async def test_each_document_has_the_next_number(desk: Desk) -> None:
    """A reader sees by `seq` whether it has missed one."""
    assert [desk.build().seq for _ in range(3)] == [1, 2, 3]


async def test_a_document_says_how_long_it_counts(desk: Desk) -> None:
    """A reader can tell a daemon that is gone from one that has nothing new."""
    assert desk.build().stale_after_s >= 2 * desk.bench.config.status.interval_s


Break = Callable[[Desk], EngineInfo]


def _backoff(_: Desk) -> EngineInfo:
    return replace(READY, state=EngineState.BACKOFF, last_error="no such model", retry_in_s=5.0)


def _paused(desk: Desk) -> EngineInfo:
    desk.bench.runner.paused = "the disk is full"
    return READY


def _refused(desk: Desk) -> EngineInfo:
    desk.bench.runner.collector.problem = "the engine answers 401"
    return READY


def _no_inbox(desk: Desk) -> EngineInfo:
    desk.intake.problem = "inbox/ cannot be read"
    return READY


def _sick_gpu(desk: Desk) -> EngineInfo:
    desk.reporter.gpu = GpuSample(name="card", healthy=False, problem="it fell off the bus")
    return READY


def _stopping(desk: Desk) -> EngineInfo:
    desk.reporter.stopping = True
    return READY


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_backoff, "no such model"),
        (_paused, "the disk is full"),
        (_refused, "answers 401"),
        (_no_inbox, "inbox/ cannot be read"),
        (_sick_gpu, "fell off the bus"),
        (_stopping, "stopping"),
    ],
)
async def test_what_keeps_the_work_from_going_on_is_unhealthy(
    desk: Desk, harm: Break, words: str
) -> None:
    """Each such state is told in words."""
    status = desk.build(harm(desk))
    assert status.status == "unhealthy"
    assert any(words in reason for reason in status.reasons)


def _starting(_: Desk) -> EngineInfo:
    return replace(READY, state=EngineState.STARTING)


def _quarantined(desk: Desk) -> EngineInfo:
    desk.reporter.quarantined = ["x"]
    return READY


def _no_hints(desk: Desk) -> EngineInfo:
    desk.intake.hints_missing = "no inotify"
    return READY


def _died(_: Desk) -> EngineInfo:
    return replace(READY, generation=1)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_starting, "starting"),
        (_quarantined, "quarantine"),
        (_no_hints, "no inotify"),
        (_died, "10 minutes"),
    ],
)
async def test_what_only_slows_the_work_is_degraded(desk: Desk, harm: Break, words: str) -> None:
    """Such a state is told too, and the service still counts as working."""
    status = desk.build(harm(desk))
    assert status.status == "degraded"
    assert any(words in reason for reason in status.reasons)


async def test_a_death_of_the_engine_is_told_for_ten_minutes(desk: Desk) -> None:
    """After that it is history, until the next one."""
    once, twice = replace(READY, generation=1), replace(READY, generation=2)
    assert desk.build(once, 100.0).status == "degraded"
    assert desk.build(once, 100.0 + RECENT_DEATH_S).status == "healthy"
    assert desk.build(twice, 100.0 + RECENT_DEATH_S).status == "degraded"


async def test_the_worst_decides_and_all_reasons_are_told(desk: Desk) -> None:
    """One thing that is wrong does not hide another."""
    status = desk.build(replace(_backoff(desk), generation=3))
    assert status.status == "unhealthy"
    assert len(status.reasons) == 2


# -- the worker ---------------------------------------------------------------------


async def test_the_worker_says_what_it_does(desk: Desk) -> None:
    """Processing, paused and error are told from idle, each with its reason."""
    desk.bench.add(line("a"))
    assert desk.build().worker.state == "processing"
    assert desk.build(_starting(desk)).worker.reason == "the engine is loading"
    assert desk.build(_backoff(desk)).worker.state == "error"
    desk.bench.queue.paused = {"ALL"}
    worker = desk.build().worker
    assert (worker.state, "resume" in str(worker.reason)) == ("paused", True)
    desk.bench.governor.fixed = 0
    assert desk.build().worker.state == "paused"


@pytest.mark.parametrize("harm", [_backoff, _paused, _refused, _starting])
async def test_work_with_a_reason_to_wait_is_no_work(desk: Desk, harm: Break) -> None:
    """The watchdog counts only what could go on: not what waits for something known."""
    assert not desk.reporter.at_work(READY)
    job = desk.bench.add(line("a"))
    assert desk.reporter.at_work(READY)
    desk.bench.queue.paused = {job}
    assert not desk.reporter.at_work(READY)
    desk.bench.queue.paused = set()
    assert not desk.reporter.at_work(harm(desk))


async def test_the_headline_fits_on_a_line(desk: Desk) -> None:
    """One sentence is what `systemctl status` and people get."""
    desk.bench.add(line("a"))
    assert desk.reporter.headline(READY) == "processing: 1 job, 1 request open, engine ready"
    assert desk.reporter.headline(_backoff(desk)).endswith("; no such model")


# -- jobs ---------------------------------------------------------------------------


async def test_active_jobs_are_listed_with_their_figures(desk: Desk) -> None:
    """Queued and running jobs, their priority, pause, counts and retries."""
    bench = desk.bench
    first = bench.add(line("a", 400), line("b"), line("c", "wait"), name="first", number=1)
    async with bench.running():
        await bench.until(lambda: bench.queue.runs() and bench.queue.runs()[0].progress.ended == 2)
        bench.add(line("d"), name="second", number=2, priority="low")
        bench.queue.paused = {bench.queue.named("second").id}  # type: ignore[union-attr] # just added
        status = desk.build(bench.engine.info)
        running, queued = status.jobs
        assert (running.id, running.name, running.state) == (first, "first", "running")
        assert (running.requests, running.completed, running.failed) == (3, 1, 1)
        assert (running.input_tokens, running.output_tokens) == (1, 2)
        assert (queued.name, queued.state) == ("second", "queued")
        assert (queued.priority, queued.paused) == ("low", True)
        assert status.worker.current_job == "first"
        assert (status.worker.in_flight, status.worker.window) == (1, 4)
        assert (status.queue.active_jobs, status.queue.total_queued_requests) == (2, 2)
        bench.queue.paused = set()
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert desk.build().jobs == []


async def test_a_running_jobs_energy_is_told_with_its_tokens(desk: Desk) -> None:
    """What was committed together makes the joules for 1,000 tokens."""
    bench = desk.bench
    bench.add(line("a"), line("b"), line("c", "wait"))
    async with bench.running():
        await bench.until(bench.queue.runs)
        bench.queue.runs()[0].use_energy(8.5)
        await bench.until(lambda: bench.queue.runs()[0].progress.ended == 2)
        job = desk.build().jobs[0]
        assert (job.energy_j, job.output_tokens) == (8.5, 4)
        assert job.energy_j_per_1000_output_tokens == 2125.0


async def test_a_jobs_speed_gives_its_time_left(desk: Desk) -> None:
    """Rate and time left come from the progress of the last minute."""
    bench = desk.bench
    bench.add(*(line(f"r{n}") for n in range(10)), line("slow", "wait"))
    async with bench.running():
        await bench.until(bench.queue.runs)
        before = desk.build(now=100.0).jobs[0]
        assert (before.requests_per_s, before.seconds_left) == (None, None)
        await bench.until(lambda: bench.queue.runs()[0].progress.ended == 10)
        ended = 10 - before.completed
        job = desk.build(now=105.0).jobs[0]
        assert job.requests_per_s == ended / 5
        assert job.output_tokens_per_s == 2 * ended / 5
        assert job.seconds_left == round(5 / ended, 1)


async def test_recent_ends_are_listed_newest_first(desk: Desk) -> None:
    """The last finished and the last refused job have their own place."""
    bench = desk.bench
    for number in (1, 2):
        bench.add(line("a"), name=f"job{number}", number=number)
    await bench.finish()
    for record in bench.ledger.jobs():
        bench.queue.note(recent_finished(record))
    status = desk.build()
    assert [job.name for job in status.recent] == ["job2", "job1"]
    assert status.last_finished is not None
    assert (status.last_finished.name, status.last_rejected) == ("job2", None)


def test_a_rate_needs_two_moments() -> None:
    """One sample, or two of the same moment, tell no speed."""
    rate = Rate()
    rate.add(10.0, 5, 50)
    assert rate.per_second() is None
    rate.add(10.0, 6, 60)
    assert rate.per_second() is None
    rate.add(12.0, 9, 150)
    assert rate.per_second() == (2.0, 50.0)


def test_a_rate_forgets_what_is_older_than_its_window() -> None:
    """A job that was slow an hour ago is told by its last minute."""
    rate = Rate()
    rate.add(0.0, 0, 0)
    rate.add(1000.0, 1, 1)
    rate.add(1000.0 + RATE_WINDOW_S, 61, 121)
    assert rate.per_second() == (1.0, 2.0)


# -- the rest -----------------------------------------------------------------------


async def test_the_engines_figures_are_shown_as_they_are(desk: Desk) -> None:
    """Load, restarts, deaths and last words come from the engine itself."""
    info = replace(
        READY,
        generation=2,
        restarts=3,
        last_error="it died",
        last_lines=("one", "two"),
        load=Load(running=5, waiting=1, kv_cache_use=0.251),
    )
    engine = desk.build(info).engine
    assert (engine.running, engine.waiting, engine.kv_cache_percent) == (5, 1, 25.1)
    assert (engine.restarts, engine.deaths) == (3, 2)
    assert (engine.last_error, engine.last_lines) == ("it died", ["one", "two"])


@pytest.mark.parametrize("use", [None, 0.0, 1.0, 1.7, -0.5])
async def test_odd_figures_of_the_engine_break_nothing(desk: Desk, use: float | None) -> None:
    """A share outside of its bounds is shown inside of them."""
    percent = desk.build(replace(READY, load=Load(kv_cache_use=use))).engine.kv_cache_percent
    assert percent is None or 0 <= percent <= 100


async def test_the_disk_and_the_dead_letters_are_told(desk: Desk) -> None:
    """What an operator has to look after stands in the document."""
    desk.reporter.disk, desk.reporter.dead_letters = (10, 20), 7
    status = desk.build()
    assert status.disk is not None
    assert (status.disk.free_bytes, status.disk.free_inodes) == (10, 20)
    assert status.disk.min_free_bytes == desk.bench.config.disk.min_free_bytes
    assert status.dead_letters == 7


async def test_the_governors_word_is_told_with_its_reasons(desk: Desk) -> None:
    """What the card allows is a word of the worker's, and each reason a sentence."""
    assert desk.build().worker.governor == "open"
    crowded = GpuSample("card", others_percent=95, temperature_c=84)
    desk.bench.governor.read_gpu(crowded)
    status = desk.build()
    assert (status.status, status.worker.governor) == ("degraded", "shrink")
    assert [reason.partition(" ")[0] for reason in status.reasons] == ["the", "others"]


async def test_the_card_is_shown_with_what_it_tells(desk: Desk) -> None:
    """A sensor that the card lacks is null, and the rest is there."""
    desk.reporter.gpu = GpuSample(name="card", healthy=True, temperature_c=60, power_w=None)
    gpu = desk.build().gpu
    assert gpu is not None
    assert (gpu.name, gpu.temperature_c, gpu.power_w) == ("card", 60, None)

"""Why nothing is sent: each reason keeps requests back, under its code, until it is over."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inbox_daemon.contract.hindrances import Hindrance, HindranceCode
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.engine.base import EngineState
from inbox_daemon.run import suspects
from scripted_runner import Bench, line

C = HindranceCode
Act = Callable[[Bench], Any]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A runner with one queued job, which does not run yet."""
    bench = Bench(tmp_path)
    bench.add(line("a"), line("b"))
    yield bench
    await bench.crash()


def engine(state: EngineState) -> Act:
    """Put the engine into a state."""

    def act(bench: Bench) -> None:
        bench.engine.info = replace(bench.engine.info, state=state, last_error="no such model")
        bench.runner.wake()

    return act


def disk(words: str | None) -> Act:
    """Make the disk short of room, or not."""

    def act(bench: Bench) -> None:
        bench.runner.disk_short = words
        bench.runner.wake()

    return act


def window(size: int) -> Act:
    """Set the window that the governor allows."""

    def act(bench: Bench) -> None:
        bench.governor.fixed = size
        bench.runner.wake()

    return act


def refuse(bench: Bench) -> None:
    """Act as if the server had just refused us."""
    bench.runner._arrivals.hold_until = time.monotonic() + 600
    bench.runner._arrivals.problem = "the engine answers 401"


def accept(bench: Bench) -> None:
    """End the pause after a refusal."""
    bench.runner._arrivals.hold_until = 0.0
    bench.runner._arrivals.problem = None
    bench.runner.wake()


def doubt(bench: Bench) -> None:
    """Act as if the engine had died under too many requests."""
    bench.suspects.hold_until = time.monotonic() + 600
    bench.suspects.problem = "the engine died under each of the last 4 requests"


def trust(bench: Bench) -> None:
    """End the pause after too many deaths."""
    bench.suspects.hold_until = 0.0
    bench.suspects.problem = None
    bench.runner.wake()


def first(bench: Bench) -> str:
    """The id of the oldest active job."""
    return min(bench.queue.entries)


CASES: dict[HindranceCode, tuple[Act, Act, str]] = {
    C.DISK_SHORT: (disk("1 MB is free"), disk(None), "1 MB is free"),
    C.ENGINE_BACKOFF: (engine(EngineState.BACKOFF), engine(EngineState.READY), "no such model"),
    C.ENGINE_STOPPED: (engine(EngineState.STOPPED), engine(EngineState.READY), "not running"),
    C.ENGINE_STARTING: (engine(EngineState.STARTING), engine(EngineState.READY), "loading"),
    C.SERVER_REFUSES: (refuse, accept, "answers 401"),
    C.ENGINE_DOUBTED: (doubt, trust, "died under each"),
    C.GOVERNOR_CLOSED: (window(0), window(8), ""),
    C.ALL_PAUSED: (lambda b: b.queue.pause("ALL"), lambda b: b.queue.resume("ALL"), "resume"),
    C.JOBS_PAUSED: (
        lambda b: b.queue.pause(first(b)),
        lambda b: b.queue.resume(first(b)),
        "resume NAME",
    ),
}


@pytest.mark.parametrize("code", sorted(CASES))
async def test_a_hindrance_keeps_requests_back_until_it_is_over(
    bench: Bench, code: HindranceCode
) -> None:
    """While a hindrance is shown nothing is sent, and everything once it is over."""
    begin, end, words = CASES[code]
    await _act(begin, bench)
    found = bench.runner.hindrance()
    assert found is not None
    assert (found.code, words in found.words) == (code, True)
    async with bench.running():
        await bench.some_turns()
        assert bench.engine.sent == []
        assert bench.runner.facts().hindrance == found
        await _act(end, bench)
        await bench.until(lambda: not bench.queue.entries)
    assert sorted(bench.engine.sent) == ["a", "b"]
    assert bench.runner.hindrance() is None


async def _act(act: Act, bench: Bench) -> None:
    done = act(bench)
    if done is not None:
        await done


async def test_a_drain_keeps_everything_back(bench: Bench) -> None:
    """Once a drain has begun nothing more is sent, and it is shown before any other reason."""
    disk("no room")(bench)
    async with bench.running():
        await bench.runner.drain(0)
        assert bench.runner.hindrance() == Hindrance(
            C.DRAINING, "the daemon is stopping: what runs may finish"
        )
    assert bench.engine.sent == []


async def test_a_full_window_is_no_hindrance(tmp_path: Path) -> None:
    """Requests are running: there is nothing to explain."""
    bench = Bench(tmp_path, window=1)
    bench.add(line("a", "wait"), line("b"))
    async with bench.running():
        await bench.until(lambda: bench.runner.limited)
        assert bench.runner.hindrance() is None
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    await bench.crash()


async def test_an_idle_runner_has_no_hindrance(tmp_path: Path) -> None:
    """A runner without jobs has no hindrance until all is paused."""
    bench = Bench(tmp_path)
    assert bench.runner.hindrance() is None
    await bench.queue.pause("ALL")
    assert bench.runner.hindrance() is not None
    await bench.crash()


async def test_one_paused_job_beside_another_hinders_nothing(bench: Bench) -> None:
    """Pauses are a hindrance only if every job is paused."""
    bench.add(line("c"), name="second", number=1)
    await bench.queue.pause(first(bench))
    assert bench.runner.hindrance() is None
    async with bench.running():
        await bench.until(lambda: bench.published == ["second"])
        found = bench.runner.hindrance()
        assert found is not None
        assert found.code is C.JOBS_PAUSED


async def test_a_paused_job_that_is_cancelled_needs_no_resume(bench: Bench) -> None:
    """The pause of a job that is ending is no hindrance."""
    await bench.queue.pause(first(bench))
    await bench.queue.end(first(bench), DeadReason.CANCELLED)
    assert bench.runner.hindrance() is None


async def test_after_a_death_suspects_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the bisection is over the runner shows it, and sends only suspects."""
    monkeypatch.setattr(suspects, "DOUBT_BASE_S", 0.001)
    bench = Bench(tmp_path, window=4)
    bench.add(line("a", "die"), line("b"), line("c"), line("d", "wait"))
    seen: set[HindranceCode | None] = set()
    async with bench.running():

        def look() -> bool:
            found = bench.runner.hindrance()
            seen.add(found.code if found else None)
            return not bench.queue.entries

        await bench.until(lambda: bench.suspects.deaths)
        bench.engine.released.set()
        await bench.until(look)
    assert {C.BISECTION, None} <= seen
    assert seen <= {C.BISECTION, C.ENGINE_LOST, C.ENGINE_BACKOFF, None}
    await bench.crash()


async def test_an_engine_that_does_not_run_says_when_it_is_tried_again(bench: Bench) -> None:
    """The operator reads how long the pause lasts, besides what is wrong."""
    info = bench.engine.info
    bench.engine.info = replace(
        info, state=EngineState.BACKOFF, last_error="no such model", retry_in_s=41.6
    )
    found = bench.runner.hindrance()
    assert found is not None
    assert found.words == ("the engine does not run: no such model; it is tried again in 42 s")

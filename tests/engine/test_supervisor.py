"""One engine kept up: every kind of death, with the stand-in as a real process."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from inbox_daemon.engine import RECORD_NAME, Timing
from inbox_daemon.engine.base import EngineState, NoReply, NoReplyKind, Reply
from inbox_daemon.engine.client import Client, ModelList
from inbox_daemon.engine.health import StartedEngine
from inbox_daemon.engine.process.session import reap_orphans
from standin_process import (
    CHAT,
    LONG_S,
    QUICK,
    Watched,
    alive,
    ample_room,
    ask,
    chat,
    echoed,
    ready,
    standin_config,
    supervised,
)


def states(watched: Watched) -> list[EngineState]:
    """Return the states that were shown, without repetitions."""
    shown = [info.state for info in watched.seen]
    return [state for state, before in zip(shown, [None, *shown], strict=False) if state != before]


def starts_of(path: Path) -> int:
    """Return the number of starts that the stand-ins have noted."""
    return len(path.read_text().splitlines())


async def test_an_engine_becomes_ready_and_answers(tmp_path: Path) -> None:
    """Once it is ready the facts of the server are known, and a request is answered."""
    async with supervised(standin_config(tmp_path), tmp_path) as watched:
        await watched.engine.wait_ready()
        info = watched.engine.info
        assert (info.models, info.max_model_len) == (("standin",), 2048)
        assert (info.version, info.restarts, info.last_error) == ("0.0.standin", 0, None)
        assert len(info.pids) == 1
        reply = await ask(watched, "hello")
        assert isinstance(reply, Reply)
        assert echoed(reply.body) == "echo: hello"
    assert watched.engine.info.state is EngineState.STOPPED
    assert states(watched) == [EngineState.STARTING, EngineState.READY, EngineState.STOPPED]


async def test_stopping_leaves_nothing_behind(tmp_path: Path) -> None:
    """After the end there is no process, no note and no socket's folder."""
    async with supervised(standin_config(tmp_path, "--helper"), tmp_path) as watched:
        pids = (await ready(watched)).pids
        assert len(pids) == 2
    assert not [pid for pid in pids if alive(pid)]
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - the same as above


async def test_a_request_before_ready_is_a_fault_at_once(tmp_path: Path) -> None:
    """Nothing is sent to an engine that is not ready."""
    async with supervised(standin_config(tmp_path, "--start-delay", "1000"), tmp_path) as watched:
        await watched.until(lambda info: info.state is EngineState.STARTING)
        fault = await ask(watched, "early")
        assert fault == NoReply(NoReplyKind.CONNECTION, "the engine is starting")


async def test_an_engine_that_loads_is_ours_already(tmp_path: Path) -> None:
    """Its processes are known before it is ready, or its memory would count as others'."""
    async with supervised(standin_config(tmp_path, "--start-delay", "1000"), tmp_path) as watched:
        await watched.until(lambda info: info.state is EngineState.STARTING)
        while not watched.engine.pids():
            await asyncio.sleep(0.01)
        assert watched.engine.info.pids == ()


async def test_a_ready_engine_has_figures(tmp_path: Path) -> None:
    """The first facts of a ready engine have its figures, before they are next read."""
    timing = replace(QUICK, poll_s=1000)
    async with supervised(standin_config(tmp_path), tmp_path, timing) as watched:
        await ready(watched)
        first = next(info for info in watched.seen if info.state is EngineState.READY)
        assert (first.load.running, first.load.waiting, first.load.kv_cache_use) == (0, 0, 0.0)


async def test_the_load_is_sampled_while_ready(tmp_path: Path) -> None:
    """The engine's own figures appear in the info while requests run and wait."""
    async with supervised(standin_config(tmp_path, "--slots", "2"), tmp_path) as watched:
        await ready(watched)
        tasks = [asyncio.create_task(ask(watched, "[[hang]]")) for _ in range(5)]
        while watched.engine.info.load.waiting != 3:
            await asyncio.sleep(0.01)
        assert watched.engine.info.load.running == 2
        assert watched.engine.info.load.kv_cache_use == 1.0
        for task in tasks:
            task.cancel()


async def test_the_death_of_vllm_is_not_taken_for_an_error_of_the_request(tmp_path: Path) -> None:
    """All in flight get 500 and `lost` is True for each; after a single 500 it is False."""
    async with supervised(standin_config(tmp_path), tmp_path) as watched:
        await ready(watched)
        reply = await ask(watched, "[[500]]")
        assert isinstance(reply, Reply)
        assert reply.status == 500
        assert not await watched.engine.lost(0)

        others = [asyncio.create_task(ask(watched, "[[slow=1000]]")) for _ in range(20)]
        replies = [await ask(watched, "[[crash]]"), *await asyncio.gather(*others)]
        assert {reply.status for reply in replies if isinstance(reply, Reply)} == {500}
        assert all(await asyncio.gather(*(watched.engine.lost(0) for _ in replies)))
        info = await ready(watched, generation=1)
        assert info.restarts == 1
        assert "EngineCore encountered an issue" in str(info.last_error)
        assert isinstance(await ask(watched, "again"), Reply)


async def test_a_killed_engine_is_lost_and_started_again(tmp_path: Path) -> None:
    """Kill -9 ends what is in flight, and the next engine gets ready by itself."""
    async with supervised(standin_config(tmp_path, "--helper"), tmp_path) as watched:
        first = await ready(watched)
        waiting = asyncio.create_task(ask(watched, "[[hang]]"))
        fault = await ask(watched, "[[kill]]")
        assert isinstance(fault, NoReply)
        assert isinstance(await waiting, NoReply)
        assert await watched.engine.lost(0)
        second = await ready(watched, generation=1)
        assert not set(first.pids) & set(second.pids)
        assert "killed by SIGKILL" in str(second.last_error)
        assert not [pid for pid in first.pids if alive(pid)]


async def test_a_killed_engine_is_noticed_without_a_request(tmp_path: Path) -> None:
    """The end of an idle engine's process is noticed without a request or a health check."""
    timing = replace(QUICK, poll_s=1000)
    async with supervised(standin_config(tmp_path), tmp_path, timing) as watched:
        pid = (await ready(watched)).pids[0]
        os.kill(pid, signal.SIGKILL)
        await watched.until(lambda info: info.generation == 1)
        await ready(watched, generation=1)


async def test_an_earlier_generation_stays_lost(tmp_path: Path) -> None:
    """An engine that has been replaced is lost, without a health check."""
    async with supervised(standin_config(tmp_path), tmp_path) as watched:
        await ready(watched)
        await watched.engine.restart("a test wants it")
        assert await watched.engine.lost(0)
        await ready(watched, generation=1)
        assert await watched.engine.lost(0)
        assert not await watched.engine.lost(1)


async def test_a_hung_engine_is_killed_on_request(tmp_path: Path) -> None:
    """An engine that is healthy but answers nothing is not lost until restart is called."""
    async with supervised(standin_config(tmp_path), tmp_path) as watched:
        await ready(watched)
        hung = asyncio.create_task(ask(watched, "[[freeze]]"))
        while watched.engine.info.load.running != 1:
            await asyncio.sleep(0.01)
        assert not await watched.engine.lost(0)
        await watched.engine.restart("no answer for a minute")
        assert watched.engine.info.generation == 1
        assert watched.engine.info.state is EngineState.BACKOFF
        fault = await hung
        assert isinstance(fault, NoReply)
        info = await ready(watched, generation=1)
        assert "no answer for a minute" in str(info.last_error)
        assert isinstance(await ask(watched, "again"), Reply)


async def test_a_stopped_process_counts_as_busy_not_as_dead(tmp_path: Path) -> None:
    """A server that does not answer the health check in time is not taken for dead."""
    async with supervised(standin_config(tmp_path), tmp_path) as watched:
        pid = (await ready(watched)).pids[0]
        os.kill(pid, signal.SIGSTOP)
        looking = asyncio.create_task(watched.engine.lost(0))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGCONT)
        assert not await looking


async def test_failing_starts_back_off_and_tell_why(tmp_path: Path) -> None:
    """An engine that ends while it starts is tried again after growing pauses."""
    starts = tmp_path / "starts"
    config = standin_config(tmp_path, "--starts", str(starts), "--die-starts", "3")
    async with supervised(config, tmp_path) as watched:
        info = await watched.until(lambda info: info.retry_in_s is not None)
        assert info.state is EngineState.BACKOFF
        assert info.last_lines[-1] == "RuntimeError: this start was asked to fail"
        assert str(info.last_error) == (
            "the engine ended (exit status 1);"
            " it printed: RuntimeError: this start was asked to fail"
        )
        info = await ready(watched)
        assert (info.restarts, info.generation) == (3, 0)
        pauses = [info.retry_in_s for info in watched.seen if info.retry_in_s is not None]
        assert [round(pause, 2) for pause in pauses] == [0.05, 0.1, 0.2]
    assert starts_of(starts) == 4


async def test_the_pause_has_an_upper_limit(tmp_path: Path) -> None:
    """However often the start fails, the pause stays within its limit."""
    config = standin_config(tmp_path, "--die-at-start", "no")
    timing = Timing(backoff_s=0.001, backoff_max_s=0.002, restart_s=0)
    async with supervised(config, tmp_path, timing) as watched:
        await watched.until(lambda info: info.restarts == 4)
        pauses = [info.retry_in_s for info in watched.seen if info.retry_in_s is not None]
        assert max(pauses) <= 0.002


def pauses(watched: Watched) -> list[float]:
    """Return the pauses before the starts after the first, as they were shown, in order."""
    shown = [info.retry_in_s for info in watched.seen if info.retry_in_s is not None]
    return [round(pause, 2) for pause in shown]


async def kill_ready(watched: Watched, generation: int) -> None:
    """Kill the engine of that generation once it is ready, and wait until its end is known."""
    os.kill((await ready(watched, generation)).pids[0], signal.SIGKILL)
    await watched.until(lambda info: info.generation == generation + 1)


PAUSES = replace(QUICK, restart_s=0.01, backoff_s=0.05, backoff_max_s=10)


async def test_an_engine_that_dies_idle_again_and_again_backs_off(tmp_path: Path) -> None:
    """Ends soon after it was ready, with no request sent, are followed by growing pauses."""
    async with supervised(standin_config(tmp_path), tmp_path, PAUSES) as watched:
        for generation in range(4):
            await kill_ready(watched, generation)
        await ready(watched, 4)
        assert pauses(watched) == [0.05, 0.1, 0.2, 0.4]


async def test_an_answer_ends_the_backing_off(tmp_path: Path) -> None:
    """An engine that has answered is replaced at once, and the pauses begin at the shortest."""
    async with supervised(standin_config(tmp_path), tmp_path, PAUSES) as watched:
        await kill_ready(watched, 0)
        await kill_ready(watched, 1)
        await ready(watched, 2)
        await ask(watched, "hello")
        await kill_ready(watched, 2)
        await kill_ready(watched, 3)
        await ready(watched, 4)
        assert pauses(watched) == [0.05, 0.1, 0.01, 0.05]


async def test_an_engine_that_lasts_has_shown_that_it_works(tmp_path: Path) -> None:
    """An idle engine that was ready for long enough is replaced at once."""
    timing = replace(PAUSES, proven_s=0)
    async with supervised(standin_config(tmp_path), tmp_path, timing) as watched:
        await kill_ready(watched, 0)
        await kill_ready(watched, 1)
        await ready(watched, 2)
        assert pauses(watched) == [0.01, 0.01]


async def test_deaths_under_requests_have_no_growing_pauses(tmp_path: Path) -> None:
    """A bisection needs engines quickly: a death with requests sent is followed by a start."""
    async with supervised(standin_config(tmp_path), tmp_path, PAUSES) as watched:
        for generation in range(3):
            await ready(watched, generation)
            await ask(watched, "[[kill]]")
            await watched.until(lambda info, last=generation: info.generation > last)  # type: ignore[misc]
        await ready(watched, 3)
        assert pauses(watched) == [0.01, 0.01, 0.01]


async def test_models_that_come_later_are_known(tmp_path: Path) -> None:
    """The list of models is read again now and then, and a change is shown and reported."""
    models = tmp_path / "models"
    timing = replace(QUICK, models_s=0.05, models_gap_s=0)
    config = standin_config(tmp_path, "--models-file", str(models))
    async with supervised(config, tmp_path, timing) as watched:
        assert (await ready(watched)).models == ("standin",)
        models.write_text("adapter")
        await watched.until(lambda info: info.models == ("standin", "adapter"))
        models.write_text("")
        await watched.until(lambda info: info.models == ("standin",))
        shown = [info.models for info in watched.seen if info.state is EngineState.READY]
        assert shown == [("standin",), ("standin", "adapter"), ("standin",)]


async def test_an_unknown_model_has_the_list_read_at_once(tmp_path: Path) -> None:
    """An answer that knows no such model is a reason to ask which there are."""
    models = tmp_path / "models"
    timing = replace(QUICK, models_s=1000)
    config = standin_config(tmp_path, "--models-file", str(models))
    async with supervised(config, tmp_path, timing) as watched:
        await ready(watched)
        models.write_text("adapter")
        body = chat("hello", model="gone")
        reply = await watched.engine.send(CHAT, body, "r-1", LONG_S, ample_room())
        assert isinstance(reply, Reply)
        assert reply.status == 404
        await watched.until(lambda info: info.models == ("standin", "adapter"))


async def test_a_list_that_cannot_be_read_changes_nothing() -> None:
    """A server that does not say its models now is asked again, and no list is made of that."""
    answers = iter([None, None, ModelList(("a",))])

    class Listing(Client):
        async def models(self) -> ModelList | None:
            return next(answers)

    timing = replace(QUICK, models_s=0, models_gap_s=0)
    engine = StartedEngine(Listing("unix:/nowhere"), timing, substitutable=False)
    assert await anext(engine.follow_models()) == ModelList(("a",))
    await engine.close()


async def test_an_engine_that_is_not_ready_in_time_is_killed(tmp_path: Path) -> None:
    """A start that takes too long is ended with its processes, and the limit is named."""
    config = standin_config(tmp_path, "--start-delay", "1000")
    timing = Timing(start_timeout_s=0.3, loss_grace_s=1)
    async with supervised(config, tmp_path, timing) as watched:
        info = await watched.until(lambda info: info.retry_in_s is not None)
        assert str(info.last_error).startswith("the engine was not ready within 0.3 s")
        assert info.retry_in_s == pytest.approx(5, abs=1)


async def test_a_note_of_an_earlier_engine_is_dealt_with_first(tmp_path: Path) -> None:
    """The engine that a killed daemon left is ended before the next one starts."""
    first = standin_config(tmp_path, "--helper")
    async with supervised(first, tmp_path) as watched:
        pids = (await ready(watched)).pids
        note = (tmp_path / RECORD_NAME).read_bytes()
        (tmp_path / "copy").write_bytes(note)
        os.kill(min(pids), signal.SIGSTOP)
        assert sorted(await reap_orphans(tmp_path / "copy")) == sorted(pids)
        await ready(watched, generation=1)


async def test_several_in_a_row_may_be_lost(tmp_path: Path) -> None:
    """Engines killed again and again are each replaced, and each raises the generation."""
    log = tmp_path / "log"
    async with supervised(standin_config(tmp_path, "--log", str(log)), tmp_path) as watched:
        for generation in range(4):
            await ready(watched, generation)
            await ask(watched, "[[killx4]]")
            assert await watched.engine.lost(generation)
        await ready(watched, 4)
        reply = await ask(watched, "[[killx4]]")
        assert isinstance(reply, Reply)
        assert reply.status == 200
    lines = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    assert len({line["pid"] for line in lines}) == 5

"""Suspects of an engine's death: the one that causes it is found, the others are answered."""

import math

import pytest

from builders import JOB_ID
from inbox_daemon.engine.base import EngineState
from inbox_daemon.run import suspects
from inbox_daemon.run.poison import Bisection
from inbox_daemon.run.suspects import STATE
from run_checks import Make, ids, prove
from scripted_runner import Bench, line

# -- engine deaths ------------------------------------------------------------------


async def test_a_dead_engine_is_charged_to_no_request(make: Make) -> None:
    """Requests that were in flight run again on the next engine, and none is set aside."""
    bench = make(window=8, chunk=50, run={"max_attempts": 1})
    bench.add(*(line(name, "wait") for name in ids(8)), *map(line, ["x", "y"]))
    async with bench.running():
        await bench.until(lambda: len(bench.engine.flying) == 8)
        bench.engine.die()
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.ids() == [*ids(8), "x", "y"]
    assert list(bench.ledger.dead_letters()) == []
    stored = Bisection.load(bench.ledger.get_state(STATE))
    assert (stored.suspects, len(stored.chances)) == (set(), 1)


async def test_nothing_is_sent_while_the_engine_is_away(make: Make) -> None:
    """Jobs wait for an engine that does not run, and none is lost."""
    bench = make()
    ready = bench.engine.info
    bench.engine.info = ready.__class__(state=EngineState.STARTING)
    bench.add(*map(line, ids(3)))
    async with bench.running():
        await bench.some_turns()
        assert bench.engine.sent == []
        bench.engine.info = ready
        bench.runner.wake()
        await bench.until(lambda: not bench.queue.entries)


@pytest.mark.parametrize(("count", "window"), [(1, 4), (2, 2), (16, 16), (60, 32), (200, 128)])
async def test_a_poison_request_is_found_and_all_others_answered(
    make: Make, count: int, window: int
) -> None:
    """Whatever else was in flight, the one that kills the engine is set aside, in few starts."""
    bench = make(window=window, chunk=64)
    lines = list(map(line, ids(count)))
    lines.insert(count // 2, line("poison", *["die"] * 50))
    bench.add(*lines)
    await bench.finish()
    assert bench.codes() == {"poison": "poison"}
    assert bench.ids() == ids(count)
    assert bench.engine.starts <= 2 * math.log2(window) + 4
    assert bench.ids("retry.jsonl") == ["poison"]
    assert bench.ledger.get_state(STATE) is None
    prove(bench)


async def test_several_poison_requests_are_all_found(make: Make) -> None:
    """Three poison requests in one job and two in another are found, and all others answered."""
    bench = make(window=16, chunk=16)
    for number in (1, 2):
        lines = [line(f"{number}-{name}") for name in ids(20)]
        for place in (3, 9, 18)[: 4 - number]:
            lines[place] = line(f"{number}-p{place}", *["die"] * 50)
        bench.add(*lines, name=f"job{number}", number=number)
    await bench.finish()
    assert set(bench.codes("job1")) == {"1-p3", "1-p9", "1-p18"}
    assert set(bench.codes("job2")) == {"2-p3", "2-p9"}
    assert len(bench.ids(name="job1")) == 17
    assert len(bench.ids(name="job2")) == 18


async def live_until_a_death(bench: Bench) -> None:
    """Run until the engine has died once more and that is on the disk, or all is done."""
    async with bench.running():
        await bench.until(lambda: bench.suspects.deaths or not bench.queue.entries)
        await bench.until(lambda: not bench.runner._commit.further_unsaved)


async def test_the_hunt_survives_the_daemon(make: Make) -> None:
    """A daemon that dies in the middle of the hunt goes on with it where it was."""
    bench = make(window=32, chunk=64)
    lines = list(map(line, ids(31)))
    lines.insert(20, line("poison", *["die"] * 99))
    bench.add(*lines)
    starts = 0
    for _ in range(40):
        await live_until_a_death(bench)
        starts += bench.engine.starts
        if not bench.queue.entries:
            break
        await bench.crash()
        bench = make(window=32, chunk=64)
    assert bench.codes() == {"poison": "poison"}
    assert bench.ids() == ids(31)
    assert starts <= 2 * (2 * math.log2(32) + 4)


async def test_suspects_keep_to_the_window(make: Make) -> None:
    """A window that gets smaller during a hunt holds for suspects too."""
    bench = make(window=16, chunk=64)
    lines = [line(name, "wait") for name in ids(15)]
    bench.add(*lines, line("poison", *["die"] * 50))
    async with bench.running():
        await bench.until(lambda: bench.suspects.bisecting)
        bench.governor.fixed = 2
        bench.engine.most = 0
        bench.engine.released.set()
        bench.runner.wake()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.codes() == {"poison": "poison"}


async def test_a_slow_request_under_chance_deaths_is_answered(make: Make) -> None:
    """A request that was alone at each death waits until the others are done."""
    bench = make(window=4, chunk=64)
    bench.add(line("slow", *["die"] * 5), *map(line, ids(20)))
    await bench.finish()
    assert bench.codes() == {}
    assert bench.engine.sent.count("slow") == 6
    assert bench.engine.sent[-3:] == ["slow"] * 3


async def test_a_suspect_that_was_put_off_is_tried_with_nothing_beside(make: Make) -> None:
    """Another job's requests end before it is tried, and no more are sent until it is."""
    bench = make(window=4, chunk=64)
    bench.add(line("poison", *["die"] * 50), name="a", number=1)
    bench.add(line("long", "wait"), *map(line, ids(8)), name="b", number=2)
    async with bench.running():
        await bench.until(lambda: bench.queue.entries[f"{JOB_ID[:-1]}1"].run is not None)
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.codes("a") == {"poison": "poison"}
    assert len(bench.ids(name="b")) == 9


async def test_many_poison_requests_do_not_put_the_engine_in_doubt(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If others are answered in between, the engine is not doubted and no pause is made."""
    monkeypatch.setattr(suspects, "DOUBT_BASE_S", 600)
    monkeypatch.setattr(suspects, "DOUBT_CAP_S", 600)
    bench = make(window=4, chunk=64)
    for number in range(6):
        bench.add(
            line(f"p{number}", *["die"] * 50), *map(line, ids(3)), name=f"j{number}", number=number
        )
    await bench.finish()
    assert [bench.codes(f"j{number}") for number in range(6)] == [
        {f"p{number}": "poison"} for number in range(6)
    ]


async def test_the_suspects_of_a_paused_job_do_not_delay_others(make: Make) -> None:
    """A pause counts in a hunt too: other jobs go on, and the suspects wait for the resume."""
    bench = make(window=4, chunk=64)
    paused = bench.add(*(line(name, "wait") for name in ids(4)), name="a", number=1)
    async with bench.running():
        await bench.until(lambda: len(bench.engine.flying) == 4)
        bench.queue.paused = {paused}
        bench.engine.die()
        await bench.until(lambda: bench.suspects.deaths)
        bench.add(*map(line, ids(9)), name="b", number=2)
        await bench.until(lambda: bench.published == ["b"])
        assert len(bench.engine.sent) == 4 + 9
        bench.queue.paused = set()
        bench.engine.released.set()
        bench.runner.wake()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.ids(name="a") == ids(4)


async def test_a_pause_of_all_counts_in_a_hunt(make: Make) -> None:
    """No suspect is sent before the resume, and all are answered after it."""
    bench = make(window=4, chunk=64)
    for number, name in enumerate("ab"):
        bench.add(line(f"{name}0", "wait"), line(f"{name}1", "wait"), name=name, number=number)
    async with bench.running():
        await bench.until(lambda: len(bench.engine.flying) == 4)
        bench.queue.paused = {"ALL"}
        bench.engine.die()
        await bench.until(lambda: bench.suspects.deaths and not bench.suspects.bisecting)
        await bench.some_turns()
        assert len(bench.engine.sent) == 4
        bench.queue.paused = set()
        bench.engine.released.set()
        bench.runner.wake()
        await bench.until(lambda: not bench.queue.entries)
    assert sorted(bench.published) == ["a", "b"]


async def test_a_suspect_that_was_put_off_waits_after_a_restart_too(make: Make) -> None:
    """After a kill -9 of the daemon it still waits until the others are done."""
    bench = make(window=2, chunk=64)
    bench.add(line("poison", *["die"] * 50), *map(line, ids(3)), line("last", "wait"))
    async with bench.running():
        await bench.until(lambda: "last" in bench.engine.flying and not bench.suspects.bisecting)
    await bench.crash()
    bench = make(window=2, chunk=64)
    async with bench.running():
        await bench.until(lambda: "last" in bench.engine.flying)
        await bench.some_turns()
        assert "poison" not in bench.engine.sent
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.codes() == {"poison": "poison"}


async def test_an_engine_that_every_request_kills_is_doubted(make: Make) -> None:
    """If one request after the other is poison, the engine is in doubt and work pauses."""
    bench = make(window=4, chunk=64)
    bench.add(*(line(name, *["die"] * 99) for name in ids(12)))
    async with bench.running():
        await bench.until(lambda: bench.problem)
    assert len(list(bench.ledger.dead_letters())) < 12

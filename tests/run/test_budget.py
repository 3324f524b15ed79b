"""The budget: what is held stays within its bound, and nothing stops for good."""

import asyncio
from collections.abc import Awaitable
from random import Random

import pytest

from inbox_daemon.run.budget import Budget, Holding
from run_checks import Make, ids, prove
from scripted_runner import Bench, line

BOUND = 1000


async def is_held_up(wait: Awaitable[None] | None) -> asyncio.Future[None] | None:
    """Begin to wait, if there is anything to wait for."""
    if wait is None:
        return None
    task = asyncio.ensure_future(wait)
    await asyncio.sleep(0)
    return task


def test_requests_are_sent_while_they_fit() -> None:
    """A body counts from its sending to its answer."""
    budget = Budget(BOUND)
    first = budget.hold(600)
    assert (budget.held, budget.allows(400), budget.allows(401)) == (600, True, False)
    first.land(0)
    assert (budget.held, budget.allows(1000)) == (0, True)


def test_a_request_larger_than_the_budget_goes_alone() -> None:
    """One that never fits is sent once nothing else is held."""
    budget = Budget(BOUND)
    small = budget.hold(1)
    assert not budget.allows(5000)
    small.land(0)
    assert budget.allows(5000)


def test_what_is_not_committed_counts() -> None:
    """An answer is held from its first byte to its commit."""
    budget = Budget(BOUND)
    flight = budget.hold(10)
    assert flight.take(700) is None
    assert budget.held == 700  # the body is sent by now
    flight.land(700)
    budget.settle(750)
    assert (budget.held, budget.allows(251)) == (750, False)
    budget.settle(0)
    assert (budget.held, budget.allows(251)) == (0, True)


async def test_an_answer_waits_for_a_commit() -> None:
    """An answer that does not fit is read once there is room; no request is sent before."""
    budget = Budget(BOUND)
    one, other = budget.hold(10), budget.hold(10)
    assert one.take(700) is None
    waiting = await is_held_up(other.take(600))
    assert waiting is not None
    assert (budget.waiting, budget.allows(1)) == (1, False)
    one.land(700)
    budget.settle(700)
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.settle(0)
    await waiting
    assert (budget.waiting, budget.held) == (0, 600)


async def test_an_answer_larger_than_the_budget_is_read_alone() -> None:
    """It waits until nothing else can make room, and then is read whatever its size."""
    budget = Budget(BOUND)
    one, large = budget.hold(10), budget.hold(10)
    assert one.take(5) is None
    waiting = await is_held_up(large.take(9000))
    one.land(5)
    budget.settle(5)
    await asyncio.sleep(0)
    assert waiting is not None
    assert not waiting.done()
    budget.settle(0)
    await waiting
    assert budget.held == 9000


async def test_of_answers_that_all_want_more_one_passes() -> None:
    """Where parts of answers fill the budget, one is read to its end, and then the next."""
    budget = Budget(BOUND)
    one, other = budget.hold(0), budget.hold(0)
    assert one.take(500) is None
    assert other.take(500) is None
    first = await is_held_up(one.take(300))
    second = await is_held_up(other.take(300))
    assert first is not None
    assert second is not None
    await first
    assert one.take(300) is None  # it needs not wait again
    assert not second.done()
    assert budget.held <= BOUND + 1100
    one.land(1100)
    budget.settle(0)
    await second
    assert budget.held == 800


async def test_an_abandoned_answer_gives_its_place_back() -> None:
    """A flight that is cancelled while it waits, or as it may go on, holds nothing."""
    budget = Budget(BOUND)
    one, two, three = budget.hold(0), budget.hold(0), budget.hold(0)
    assert one.take(900) is None
    waits = [await is_held_up(flight.take(200)) for flight in (two, three)]
    assert waits[0] is not None
    assert waits[1] is not None
    waits[0].cancel()
    await asyncio.sleep(0)
    two.land(0)
    assert budget.waiting == 1
    waits[1].cancel()
    one.land(0)  # makes room for the one that is being cancelled
    await asyncio.gather(*filter(None, waits), return_exceptions=True)
    three.land(0)
    assert (budget.held, budget.waiting) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_comes_the_bound_holds_and_all_is_read(seed: int) -> None:
    """Answers of any size, with and without a length, exceed the bound by one at most."""
    rng, budget, most = Random(seed), Budget(BOUND), 0
    uncommitted: list[int] = []

    async def fly(held: Holding, parts: list[int]) -> None:
        for part in parts:
            await asyncio.sleep(0)
            wait = held.take(part)
            if wait is not None:
                await wait
        held.land(sum(parts))
        uncommitted.append(sum(parts))

    tasks: set[asyncio.Task[None]] = set()
    left, largest = 200, 0
    while left or tasks or uncommitted:
        body = rng.randint(1, 300)
        if left and len(tasks) < 16 and budget.allows(body):
            left -= 1
            parts = [rng.randint(1, 500) for _ in range(rng.choice([1, 1, 4]))]
            largest = max(largest, sum(parts))
            tasks.add(asyncio.create_task(fly(budget.hold(body), parts)))
        await asyncio.sleep(0)
        most = max(most, budget.held)
        tasks = {task for task in tasks if not task.done()}
        if rng.random() < 0.2:  # a commit
            uncommitted.clear()
        budget.settle(sum(uncommitted))
    assert budget.held == 0
    assert most <= BOUND + largest


# -- in the runner ------------------------------------------------------------------


class Most:
    """The most that a bench holds at any moment."""

    def __init__(self, bench: Bench) -> None:
        """Look whenever something is taken or comes."""
        self.bytes = 0
        budget = bench.runner._budget
        take, settle = budget.take, budget.settle

        def look() -> None:
            self.bytes = max(self.bytes, budget.held)

        def watch_take(holding: Holding, count: int) -> Awaitable[None] | None:
            wait = take(holding, count)
            look()
            return wait

        def watch_settle(uncommitted: int) -> None:
            settle(uncommitted)
            look()

        budget.take, budget.settle = watch_take, watch_settle  # type: ignore[method-assign]


async def test_large_answers_are_never_held_beyond_the_bound(make: Make) -> None:
    """With a window of 32 and answers of a third of the bound, three are held at a time."""
    bench = make(window=32, chunk=64, run={"max_in_flight_bytes": 300_000})
    bench.add(*(line(name, max_tokens=100_000) for name in ids(40)))
    most = Most(bench)
    await bench.finish()
    assert bench.ids() == ids(40)
    assert 100_000 < most.bytes <= 300_000
    prove(bench)


async def test_an_answer_larger_than_the_bound_goes_through(make: Make) -> None:
    """It is read alone, and the others before and after it."""
    bench = make(window=8, run={"max_in_flight_bytes": 10_000})
    bench.add(line("a"), line("large", max_tokens=500_000), *map(line, ids(6)))
    most = Most(bench)
    await bench.finish()
    assert bench.ids() == ["a", "large", *ids(6)]
    assert most.bytes <= 10_000 + 500_200


async def test_large_requests_are_in_flight_as_they_fit(make: Make) -> None:
    """Bytes and not the window limit what is sent, and that is no hindrance."""
    bench = make(window=32, chunk=64, run={"max_in_flight_bytes": 10_000})
    bench.add(*(line(name, "wait", user="x" * 4000) for name in ids(6)))
    async with bench.running():
        await bench.until(lambda: bench.engine.most == 2)
        await bench.some_turns()
        assert bench.engine.most == 2
        facts = bench.runner.facts()
        assert 8000 < facts.in_flight_bytes <= 10_000
        assert (facts.hindrance, bench.runner.limited) == (None, False)
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.engine.sent == ids(6)


async def test_a_request_larger_than_the_bound_is_sent_alone(make: Make) -> None:
    """Nothing stops for good: it goes once nothing else is held."""
    bench = make(window=8, run={"max_in_flight_bytes": 1000})
    bench.add(line("a"), line("large", user="x" * 4000), line("b"))
    await bench.finish()
    assert bench.ids() == ["a", "large", "b"]


async def test_an_answer_that_is_too_large_is_tried_again_and_set_aside(make: Make) -> None:
    """It is charged like a failure, and its dead letter says which key bounds it."""
    bench = make(run={"max_attempts": 2})
    bench.add(line("large", *["too_large"] * 9), line("once", "too_large"), line("a"))
    await bench.finish()
    assert bench.ids() == ["once", "a"]
    (letter,) = bench.ledger.dead_letters()
    assert (letter.code, letter.retry_count) == ("answer_too_large", 1)
    assert "run.max_answer_bytes" in letter.message

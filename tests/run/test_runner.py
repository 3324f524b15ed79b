"""The runner: every request gets one outcome, whatever dies on the way."""

import asyncio
import time
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from inbox_daemon.engine.base import NoReply, Reply, Room
from inbox_daemon.jobs import commit
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.request.line import parse_request
from inbox_daemon.run.attempts import Attempts
from inbox_daemon.run.budget import Budget
from run_checks import Make, ids, prove
from scripted_runner import Bench, line

# -- answers ------------------------------------------------------------------------


async def test_every_request_is_answered_in_input_order(make: Make) -> None:
    """The output is in input order, whatever order the engine finishes in."""
    bench = make(window=5, chunk=3)
    bench.engine.rng = Random(1)
    bench.add(*map(line, ids(40)))
    await bench.finish()
    assert bench.ids() == ids(40)
    assert [out["response"]["body"]["echo"] for out in bench.lines("output.jsonl")] == ids(40)
    assert bench.status()["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    assert bench.status()["usage"] == {"input_tokens": 40, "output_tokens": 80, "total_tokens": 120}
    assert set(bench.engine.attempts.values()) == {1}
    assert 1 < bench.engine.most <= 5
    prove(bench)


async def test_a_model_that_was_left_out_is_filled_in(make: Make) -> None:
    """A request without a model gets the one that its job is bound to."""
    bench = make()
    bench.add(line("a"), line("b"), name="plain", number=1)
    bench.engine.info = replace(bench.engine.info, models=("m", "mine"))
    bench.add(line("a"), line("b", model="mine"), name="named", number=2)
    await bench.finish()
    for name, model in [("plain", "m"), ("named", "mine")]:
        answers = bench.lines("output.jsonl", name)
        assert [answer["response"]["body"]["model"] for answer in answers] == [model, model]
        assert bench.status(name)["model"] == model


async def test_the_window_is_followed_while_it_changes(make: Make) -> None:
    """A window that closes stops the sending and one that opens lets it go on."""
    bench = make(window=0)
    bench.add(*map(line, ids(6)))
    async with bench.running():
        await bench.some_turns()
        assert bench.engine.sent == []
        bench.governor.fixed = 2
        bench.runner.wake()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.engine.most <= 2


async def test_limits_that_were_lowered_hold_for_jobs_in_the_queue(make: Make) -> None:
    """A request that was accepted under wider limits is refused, and the rest runs."""
    bench = make()
    bench.add(line("a"), line("b", user="x" * 500), line("c"))
    await bench.crash()
    bench = make(limits={"max_line_bytes": 400})
    await bench.finish()
    assert bench.ids() == ["a", "c"]
    (letter,) = bench.ledger.dead_letters()
    assert letter.line == 2
    assert bench.engine.sent == ["a", "c"]


async def test_invalid_lines_end_as_dead_letters(make: Make) -> None:
    """They are listed and never sent, and stay out of what can be run again."""
    bench = make()
    bad = [b"nope\n", b'{"custom_id":"x","url":"/v1/x","body":{}}\n', b"[" * 2000 + b"\n"]
    bench.add(line("a"), bad[0], b"\n", bad[1], line("b"), bad[2], line("a"))
    await bench.finish()
    assert bench.ids() == ["a", "b"]
    letters = list(bench.ledger.dead_letters())
    assert [(letter.line, letter.code) for letter in letters] == [
        (2, "invalid_json"),
        (4, "invalid_request"),
        (6, "invalid_json") if letters[2].code == "invalid_json" else (6, "too_deep"),
        (7, "duplicate_custom_id"),
    ]
    assert not (bench.spool.outbox / "job" / "retry.jsonl").exists()
    assert bench.engine.sent == ["a", "b"]
    prove(bench)


async def test_thousands_of_invalid_lines_are_set_aside(make: Make) -> None:
    """Three thousand invalid lines beside one request all become dead letters."""
    bench = make(window=2, chunk=5000)
    bench.add(line("a"), *[b"nope\n"] * 3000)
    await bench.finish()
    assert bench.status()["request_counts"] == {"total": 3001, "completed": 1, "failed": 3000}


# -- no barrier ---------------------------------------------------------------------


async def test_chunks_follow_each_other_without_a_barrier(make: Make) -> None:
    """A request that takes long does not keep the next chunks from running."""
    bench = make(window=2, chunk=2)
    bench.add(line("slow", "wait"), *map(line, ids(9)))
    async with bench.running():
        await bench.until(lambda: len(bench.engine.sent) == 10)
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.ids() == ["slow", *ids(9)]


async def test_the_next_job_runs_beside_the_last_ones_tail(make: Make) -> None:
    """Two jobs overlap, and the later one may even be published first."""
    bench = make(window=2)
    bench.add(line("slow", "wait"), name="first", number=1)
    bench.add(*map(line, ids(5)), name="second", number=2)
    async with bench.running():
        await bench.until(lambda: bench.published == ["second"])
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.published == ["second", "first"]
    assert bench.ids(name="second") == ids(5)


async def test_an_earlier_job_comes_first(make: Make) -> None:
    """With room for one request at a time the jobs run in the order of their arrival."""
    bench = make(window=1)
    for number in (2, 1, 3):
        bench.add(line(f"r{number}"), name=f"job{number}", number=number)
    await bench.finish()
    assert bench.engine.sent == ["r1", "r2", "r3"]


async def test_a_more_urgent_job_does_not_wait_for_the_others(make: Make) -> None:
    """A job of high priority begins while one of low priority has much left."""
    bench = make(window=2, chunk=100)
    now = 4e9
    bench.add(
        line("l0", "wait"),
        line("l1", "wait"),
        *map(line, ids(60)),
        name="low",
        number=1,
        priority="low",
        created_at=now,
    )
    async with bench.running():
        await bench.until(lambda: len(bench.engine.sent) == 2)
        bench.add(line("urgent"), name="high", number=2, priority="high", created_at=now)
        # It runs once its chunk is admitted on the disk, however long that takes.
        runs = bench.queue.runs
        await bench.until(
            lambda: any(r.record.name == "high" and r.marks.startable for r in runs())
        )
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.engine.sent.index("urgent") == 2


# -- pauses, cancels, expiry --------------------------------------------------------


async def test_nothing_is_sent_while_the_runner_is_paused(make: Make) -> None:
    """Below the floor of free space the work stops and goes on by itself."""
    bench = make()
    bench.runner.disk_short = "no room"
    bench.add(*map(line, ids(3)))
    async with bench.running() as task:
        await bench.some_turns()
        assert (bench.engine.sent, task.done()) == ([], False)
        bench.runner.disk_short = None
        bench.runner.wake()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.ids() == ids(3)


# -- drain --------------------------------------------------------------------------


async def test_a_drain_waits_for_what_is_in_flight(make: Make) -> None:
    """Nothing more is started, what comes in time is committed, and the runner ends."""
    bench = make(window=3, chunk=50)
    bench.add(*(line(name, "wait") for name in ids(10)))
    async with bench.running() as task:
        await bench.until(lambda: len(bench.engine.flying) == 3)
        drain = asyncio.create_task(bench.runner.drain(20.0))
        await asyncio.sleep(0)
        bench.engine.released.set()
        await drain
        await bench.until(task.done)
    assert bench.engine.sent == ids(3)
    (run,) = bench.queue.runs()
    assert bench.ledger.progress(run.record.id).completed == 3


async def test_a_drain_abandons_what_does_not_finish(make: Make) -> None:
    """After the grace the rest is dropped uncharged, and runs again after the next start."""
    bench = make(window=3, chunk=50)
    bench.add(*map(line, ["a", "b"]), *(line(name, "wait") for name in ids(3)))
    async with bench.running() as task:
        await bench.until(lambda: len(bench.engine.flying) == 3)
        await bench.runner.drain(0.0)
        await bench.until(task.done)
    await bench.crash()
    bench = make(window=3)
    (run,) = bench.queue.runs()
    assert (run.progress.completed, run.retries) == (2, {})
    bench.engine.released.set()
    await bench.finish()
    assert bench.ids() == ["a", "b", *ids(3)]
    assert bench.engine.attempts["a"] == 0


async def test_a_drain_with_nothing_to_do_ends_at_once(make: Make) -> None:
    """An idle daemon stops without waiting for anything."""
    bench = make()
    async with bench.running() as task:
        await bench.runner.drain(20.0)
        await bench.until(task.done)


# -- commits ------------------------------------------------------------------------


async def test_a_failed_commit_ends_the_runner(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome that could not be committed does not count."""
    bench = make()
    bench.add(*map(line, ids(3)))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.ledger, "checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        await bench.finish()
    assert (bench.published, bench.engine.sent) == ([], [])


async def test_a_slow_commit_lets_nothing_wait_longer(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval runs from the beginning of the last commit, however long that took."""
    bench = make(run={"commit_interval_s": 10.0})
    clock = [time.monotonic()]
    monkeypatch.setattr(commit, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    committer, checkpoint = bench.runner._commit, bench.ledger.checkpoint

    def slow(*args: Any) -> None:  # noqa: ANN401 - as the ledger takes them
        clock[0] += 7.0
        checkpoint(*args)

    monkeypatch.setattr(bench.ledger, "checkpoint", slow)
    bench.add(line("a"), line("b", "wait"))
    async with bench.running():
        await bench.until(lambda: "b" in bench.engine.flying)
        began = clock[0] - 7.0
        await bench.until(lambda: committer.due_at is not None)
        assert committer.due_at == began + 10.0


async def test_a_retry_starts_after_its_charge_is_on_the_disk(make: Make) -> None:
    """Each further attempt finds the earlier ones in the ledger."""
    bench = make(run={"max_attempts": 4})
    bench.add(line("a", 500, 500, 500))
    seen: list[int] = []
    send = bench.engine.send

    async def watch(
        url: str, body: bytes, request_id: str, timeout_s: float, room: Room
    ) -> Reply | NoReply:
        known = bench.ledger.retries(bench.queue.runs()[0].record.id)
        seen.append(known[1].failures if known else 0)
        return await send(url, body, request_id, timeout_s, room)

    bench.engine.send = watch  # type: ignore[method-assign] # a look at each attempt
    await bench.finish()
    assert seen == [0, 1, 2, 3]


# -- flights ------------------------------------------------------------------------


async def test_every_flight_ends_even_if_it_never_began(make: Make) -> None:
    """A flight that is aborted as it starts is handled like any other."""
    bench = make()
    job_id = bench.add(line("a"))
    bench.spool.start(job_id)
    record = bench.queue.entries[job_id].record
    run = RunningJob(record, bench.spool, bench.ledger)
    woken: list[int] = []
    attempts = Attempts(bench.engine, 1.0, Budget(1 << 20), lambda: woken.append(1))
    request = parse_request(run.input.read(0), bench.config.limits)
    attempts.launch(run, 0, request, 1)
    attempts.abort(run)
    await bench.until(lambda: woken)
    assert [arrival.verdict for arrival in attempts.take()] == [None]
    assert (len(attempts), attempts.stale) == (0, False)
    run.close()


# -- crashes ------------------------------------------------------------------------

FATES: tuple[tuple[tuple[object, ...], str | None], ...] = (
    ((), None),
    ((), None),
    ((), None),
    ((500,), None),
    (("reset", 429), None),
    (("timeout",) * 99, "timeout"),
    ((500,) * 99, "max_attempts"),
    ((400,) * 99, "invalid_request"),
)


def random_job(rng: Random, number: int) -> tuple[list[bytes], dict[str, str | None]]:
    """A job of random requests, and how each of them must end."""
    lines, fates = [], {}
    for index in range(rng.randint(1, 40)):
        name = f"{number}-{index}"
        script, fate = rng.choice(FATES)
        if rng.random() < 0.03:
            script, fate = ("die",) * 99, "poison"
        lines.append(line(name, *script))
        if rng.random() < 0.1:
            lines.append(b" \r\n")
        fates[name] = fate
    return lines, fates


async def live_until_sent(bench: Bench, goal: int) -> None:
    """Run until the engine has been sent this many requests, or all is done."""
    async with bench.running():
        await bench.until(lambda: len(bench.engine.sent) >= goal or not bench.queue.entries)


@pytest.mark.parametrize("seed", range(12))
async def test_each_request_ends_once_whatever_crashes(make: Make, seed: int) -> None:
    """Jobs of all kinds, engines that die and daemons that are killed: one outcome each."""
    rng = Random(seed)
    options = {
        "window": rng.choice([1, 3, 8, 30]),
        "chunk": rng.choice([1, 5, 100]),
        "run": {"max_attempts": 3},
    }
    bench = make(**options)
    fates = {}
    for number in range(3):
        lines, fates[f"job{number}"] = random_job(rng, number)
        bench.add(*lines, name=f"job{number}", number=number)
    for _ in range(6):
        bench.engine.rng = rng
        await live_until_sent(bench, rng.randint(1, 60))
        await bench.crash()
        attempts = bench.engine.attempts
        bench = make(**options)
        bench.engine.attempts = attempts  # a script goes on, whatever runner reads it
    await bench.finish()
    for name, expected in fates.items():
        results = dict.fromkeys(bench.ids(name=name))
        codes = bench.codes(name)
        assert {**results, **codes} == expected
        assert [*bench.ids(name=name)] == [key for key, fate in expected.items() if not fate]
        assert list(codes) == [key for key, fate in expected.items() if fate]
        prove(bench, name)
    assert {letter.custom_id for letter in bench.ledger.dead_letters()} == {
        key for some in fates.values() for key, fate in some.items() if fate
    }
    assert list(bench.spool.running.iterdir()) == list(bench.spool.queued.iterdir()) == []

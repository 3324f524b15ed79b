"""The runner: every request gets its one outcome, whoever dies on the way."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from builders import JOB_ID
from inbox_daemon.cli.views import read_status
from inbox_daemon.contract.json_schemas import json_schema
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.engine.base import EngineState
from inbox_daemon.jobs import commit
from inbox_daemon.jobs.running import RunningJob
from inbox_daemon.publish.verify import verify_published
from inbox_daemon.request.line import parse_request
from inbox_daemon.run import arrivals, suspects
from inbox_daemon.run.attempts import Attempts, Target
from inbox_daemon.run.poison import Bisection
from inbox_daemon.run.suspects import STATE
from scripted_runner import Bench, line

Make = Callable[..., Bench]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the pauses, but make them short."""
    monkeypatch.setattr(arrivals, "BACKOFF_BASE_S", 0.0005)
    monkeypatch.setattr(arrivals, "REFUSED_PAUSE_S", 0.01)
    monkeypatch.setattr(suspects, "DOUBT_BASE_S", 0.01)
    monkeypatch.setattr(suspects, "DOUBT_CAP_S", 0.01)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Make benches on one spool, the last one closed at the end."""
    made: list[Bench] = []

    def make(**options: Any) -> Bench:  # noqa: ANN401 - as Bench takes them
        made.append(Bench(tmp_path, **options))
        return made[-1]

    yield make
    if made:
        await made[-1].crash()


def ids(count: int) -> list[str]:
    """r0, r1 and so on."""
    return [f"r{number}" for number in range(count)]


def prove(bench: Bench, name: str = "job") -> None:
    """Hold a published folder to its own proof and to the schemas."""
    folder = bench.spool.outbox / name
    status = read_status(folder)
    assert status is not None
    (record,) = [record for record in bench.ledger.jobs() if record.name == name]
    assert verify_published(folder, status, record).faults == []
    schema = jsonschema.Draft202012Validator(json_schema("output"))
    for file in ("output.jsonl", "errors.jsonl"):
        for output in bench.lines(file, name):
            schema.validate(output)


# -- answers ------------------------------------------------------------------------


async def test_every_request_is_answered_in_input_order(make: Make) -> None:
    """Whatever order the engine finishes in, the output has the order of the input."""
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


async def test_a_model_that_was_left_out_is_the_engines(make: Make) -> None:
    """The engine gets the name of what it serves, and a named model as it was."""
    bench = make()
    bench.add(line("a"), line("b", model="mine"))
    await bench.finish()
    models = [out["response"]["body"]["model"] for out in bench.lines("output.jsonl")]
    assert models == ["m", "mine"]


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


@pytest.mark.parametrize("step", [500, 503, 408, 429, "timeout", "reset"])
async def test_a_failure_of_the_moment_is_tried_again(make: Make, step: object) -> None:
    """With the engine alive a request may fail, and succeed at a further attempt."""
    bench = make()
    bench.add(line("a", step, step), line("b"))
    await bench.finish()
    assert bench.ids() == ["a", "b"]
    assert bench.engine.attempts["a"] == 3
    assert list(bench.ledger.dead_letters()) == []


@pytest.mark.parametrize(
    ("step", "reason"), [(500, "max_attempts"), ("timeout", "timeout"), (408, "timeout")]
)
async def test_a_request_that_fails_too_often_becomes_a_dead_letter(
    make: Make, step: object, reason: str
) -> None:
    """After max_attempts it is set aside with its history, and can be run again."""
    bench = make(run={"max_attempts": 3})
    bench.add(line("a", *[step] * 9), line("b"))
    await bench.finish()
    assert (bench.ids(), bench.codes()) == (["b"], {"a": reason})
    (letter,) = bench.ledger.dead_letters()
    assert (letter.reason, letter.retry_count) == (reason, 2)
    assert bench.engine.attempts["a"] == 3
    retry = (bench.spool.outbox / "job" / "retry.jsonl").read_bytes()
    assert retry == line("a", *[step] * 9)
    prove(bench)


async def test_a_job_may_choose_its_own_number_of_attempts(make: Make) -> None:
    """The options of a job win over the configuration."""
    bench = make(run={"max_attempts": 3})
    bench.add(line("a", 500), max_attempts=1)
    await bench.finish()
    assert bench.engine.attempts["a"] == 1
    assert bench.codes() == {"a": "max_attempts"}


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_wrong_request_is_a_dead_letter_at_once(make: Make, status: int) -> None:
    """The engine's own words are kept, and nothing is tried again."""
    bench = make()
    bench.add(line("a", status), line("b"))
    await bench.finish()
    assert bench.engine.attempts["a"] == 1
    (letter,) = bench.ledger.dead_letters()
    assert (letter.reason, letter.code) == (DeadReason.INVALID_REQUEST, f"E{status}")
    assert (letter.message, letter.http_status) == (f"status {status}", status)
    assert bench.lines("errors.jsonl")[0]["response"]["body"]["error"]["type"] == f"E{status}"


async def test_a_wrong_request_after_failures_counts_all_attempts(make: Make) -> None:
    """The letter tells how many further attempts there were, of whatever kind."""
    bench = make()
    bench.add(line("a", 500, 500, 400))
    await bench.finish()
    (letter,) = bench.ledger.dead_letters()
    assert letter.retry_count == 2


async def test_a_refusal_of_the_daemon_is_nobodys_fault(make: Make) -> None:
    """401 holds the work until the server accepts us; no request is charged."""
    bench = make(window=2, run={"max_attempts": 1})
    bench.engine.refusing = 401
    bench.add(*map(line, "abc"))
    async with bench.running():
        await bench.until(lambda: len(bench.engine.sent) >= 8)
        bench.engine.refusing = None
        await bench.until(lambda: not bench.queue.entries)
    assert bench.ids() == ["a", "b", "c"]
    assert bench.problem is None


async def test_what_holds_the_work_is_said(make: Make) -> None:
    """While the server refuses us the operator is told to act."""
    bench = make(window=1)
    bench.add(line("a", *[401] * 500))
    async with bench.running():
        await bench.until(lambda: bench.problem)
        assert "401" in str(bench.problem)
    assert list(bench.ledger.dead_letters()) == []


@pytest.mark.parametrize("window", [1, 3])
async def test_a_request_that_alone_is_refused_is_buried(make: Make, window: int) -> None:
    """Where others are answered meanwhile, the refusal is of the request and not of us."""
    bench = make(window=window, run={"max_attempts": 2})
    bench.add(line("forbidden", *[403] * 99), *map(line, ids(6)))
    await bench.finish()
    assert bench.ids() == ids(6)
    assert bench.lines("errors.jsonl")[0]["custom_id"] == "forbidden"
    assert bench.lines("errors.jsonl")[0]["response"]["status_code"] == 403


@pytest.mark.parametrize("status", [401, 403])
async def test_the_last_request_alone_is_refused(make: Make, status: int) -> None:
    """Where nothing else is left that could show it, the server is asked whether it means us."""
    bench = make(run={"max_attempts": 2})
    bench.engine.accepting = True
    bench.add(line("forbidden", *[status] * 99), line("fine"))
    await bench.finish()
    assert bench.ids() == ["fine"]
    assert bench.ids("errors.jsonl") == ["forbidden"]
    assert bench.problem is None


async def test_the_refused_and_the_put_off_do_not_wait_for_each_other(make: Make) -> None:
    """A job that has only such requests left, and cancelled ones beside, comes to its end."""
    bench = make(window=4, run={"max_attempts": 2})
    bench.engine.accepting = True
    other = bench.add(line("gone", *[403] * 99), name="other", number=2)
    bench.add(line("poison", *["die"] * 50), line("forbidden", *[403] * 99), line("fine"))
    async with bench.running():
        await bench.until(lambda: "gone" in bench.engine.sent)
        await bench.queue.end(other, DeadReason.CANCELLED)
        await bench.until(lambda: not bench.queue.entries)
    assert bench.ids() == ["fine"]
    assert bench.codes()["poison"] == "poison"
    assert bench.lines("errors.jsonl")[1]["response"]["status_code"] == 403


@pytest.mark.parametrize(("status", "accepting"), [(403, False), (401, True), (407, True)])
async def test_a_server_that_may_mean_us_is_waited_for(
    make: Make,
    status: int,
    accepting: bool,  # noqa: FBT001 - a table
) -> None:
    """One that does not know us may show its models to everybody: that proves nothing."""
    bench = make(run={"max_attempts": 1})
    bench.engine.accepting, bench.engine.refusing = accepting, status
    bench.add(line("a"), line("b"))
    async with bench.running():
        await bench.until(lambda: len(bench.engine.sent) >= 8)
        assert bench.problem
        bench.engine.refusing = None
        await bench.until(lambda: not bench.queue.entries)
    assert bench.ids() == ["a", "b"]


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


async def test_thousands_of_invalid_lines_are_buried(make: Make) -> None:
    """A file of hardly anything but faults is worked off without an engine."""
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


async def test_a_paused_job_lets_the_others_pass(make: Make) -> None:
    """Only the job that was paused waits."""
    bench = make()
    held = bench.add(line("held"), name="held", number=1)
    bench.queue.paused = {held}
    bench.add(line("free"), name="free", number=2)
    async with bench.running():
        await bench.until(lambda: bench.published == ["free"])
        assert bench.engine.sent == ["free"]
        bench.queue.paused = set()
        bench.runner.wake()
        await bench.until(lambda: not bench.queue.entries)


@pytest.mark.parametrize("reason", [DeadReason.CANCELLED, DeadReason.EXPIRED])
async def test_an_ended_job_publishes_what_is_finished(make: Make, reason: DeadReason) -> None:
    """Results stay, the rest is listed with its reason and can be run again."""
    bench = make(window=2, chunk=2)
    job_id = bench.add(line("a"), line("b", "wait"), *map(line, ids(1200)), line("bad", 400))
    async with bench.running():
        await bench.until(lambda: "b" in bench.engine.flying)
        await bench.queue.end(job_id, reason)
        await bench.until(lambda: not bench.queue.entries)
    assert "a" in bench.ids()
    assert bench.codes()["b"] == reason.value
    assert len(bench.ids()) + len(bench.codes()) == 1203
    assert bench.ids("retry.jsonl") == list(bench.codes())
    assert bench.status()["status"] == reason.value
    assert bench.status()[f"{reason.value}_at"] is not None
    prove(bench)


async def test_a_queued_job_can_be_cancelled_without_an_engine(make: Make) -> None:
    """It is published at once, with every request listed."""
    bench = make(window=0)
    bench.engine.info = bench.engine.info.__class__(state=EngineState.BACKOFF)
    job_id = bench.add(line("a"), b"nope\n", line("b"))
    async with bench.running():
        await bench.queue.end(job_id, DeadReason.CANCELLED)
        await bench.until(lambda: not bench.queue.entries)
    errors = [(e["custom_id"], e["error"]["code"]) for e in bench.lines("errors.jsonl")]
    assert errors == [("a", "cancelled"), (None, "invalid_request"), ("b", "cancelled")]
    assert (bench.ids(), bench.ids("retry.jsonl")) == ([], ["a", "b"])


async def test_a_job_ends_by_itself_when_it_expires(make: Make) -> None:
    """A job whose time is over needs no engine to end."""
    bench = make(window=0)
    bench.add(line("a"), expires_at=1.0)
    await bench.finish()
    assert bench.codes() == {"a": "expired"}


async def test_ending_a_job_that_is_over_changes_nothing(make: Make) -> None:
    """An order that comes too late is no error."""
    bench = make()
    job_id = bench.add(line("a"))
    await bench.finish()
    await bench.queue.end(job_id, DeadReason.CANCELLED)
    assert bench.status()["status"] == "completed"


# -- engine deaths ------------------------------------------------------------------


async def test_a_dead_engine_is_charged_to_nobody(make: Make) -> None:
    """Those that were in flight run again on the next engine, and nobody is buried."""
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
    """Three killers in one job and one in another are told from the innocent."""
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
    """While the hunt is on a smaller window still holds."""
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
    """One that was alone each time that an engine died waits until the others are done."""
    bench = make(window=4, chunk=64)
    bench.add(line("slow", *["die"] * 5), *map(line, ids(20)))
    await bench.finish()
    assert bench.codes() == {}
    assert bench.engine.sent.count("slow") == 6
    assert bench.engine.sent[-3:] == ["slow"] * 3


async def test_who_was_put_off_is_tried_with_nothing_beside(make: Make) -> None:
    """Another job's requests land first, and those after it wait."""
    bench = make(window=4, chunk=64)
    bench.add(line("poison", *["die"] * 50), name="a", number=1)
    bench.add(line("long", "wait"), *map(line, ids(8)), name="b", number=2)
    async with bench.running():
        await bench.until(lambda: bench.queue.entries[f"{JOB_ID[:-1]}1"].run is not None)
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.codes("a") == {"poison": "poison"}
    assert len(bench.ids(name="b")) == 9


async def test_many_poison_requests_are_no_ill_engine(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others are answered between, the engine is not doubted and nobody waits for it."""
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


async def test_the_suspects_of_a_paused_job_hold_nobody_up(make: Make) -> None:
    """A pause counts in a hunt too; the others go on, and these after the resume."""
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
    """Nobody's suspects are sent before the resume, and all are answered after it."""
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


async def test_who_was_put_off_waits_also_after_a_restart(make: Make) -> None:
    """A kill -9 of the daemon brings nobody forward."""
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


async def test_an_engine_that_nobody_survives_is_doubted(make: Make) -> None:
    """When one request after the other is poison, the engine is suspected and work pauses."""
    bench = make(window=4, chunk=64)
    bench.add(*(line(name, *["die"] * 99) for name in ids(12)))
    async with bench.running():
        await bench.until(lambda: bench.problem)
    assert len(list(bench.ledger.dead_letters())) < 12


# -- damage -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["shorter", "gone"])
async def test_a_queued_job_that_is_damaged_is_set_aside(make: Make, damage: str) -> None:
    """The others go on, its name is free, and the health says what became of it."""
    bench = make()
    bad = bench.add(*map(line, ids(3)), name="bad", number=1)
    bench.add(line("a"), name="good", number=2)
    path = bench.spool.queued / f"{bad}.jsonl"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(line("r0"))
    await bench.finish()
    assert bench.published == ["good"]
    kept = [bad] if damage == "shorter" else []
    assert [path.name for path in bench.spool.quarantine.iterdir()] == kept
    assert list(bench.spool.running.iterdir()) == []
    assert [record.name for record in bench.ledger.jobs()] == ["good"]
    recent = [(note.name, note.status) for note in bench.queue.recent]
    assert sorted(recent) == [("bad", "damaged"), ("good", "completed")]
    assert {ended.name: ended.kind for ended in bench.ledger.last_endings(9)} == dict(recent)


async def test_a_running_job_that_is_damaged_is_set_aside(make: Make) -> None:
    """What the disk lost while the job ran ends that job only."""
    bench = make()
    bad = bench.add(line("a", "wait"), line("b"), name="bad", number=1)
    async with bench.running():
        await bench.until(lambda: "a" in bench.engine.flying)
        await bench.until(lambda: bench.ledger.progress(bad).completed == 1)
        bench.spool.results_path(bad).write_bytes(b"")
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
        bench.add(line("c"), name="good", number=2)
        await bench.until(lambda: not bench.queue.entries)
    assert bench.published == ["good"]
    assert [path.name for path in bench.spool.quarantine.iterdir()] == [bad]


# -- drain --------------------------------------------------------------------------


async def test_a_drain_lets_what_flies_land(make: Make) -> None:
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


async def test_a_drain_abandons_what_does_not_land(make: Make) -> None:
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
    """What could not be made to count is never taken for done."""
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

    async def watch(url: str, body: bytes, request_id: str, timeout_s: float) -> Any:  # noqa: ANN401 - a reply
        known = bench.ledger.retries(bench.queue.runs()[0].record.id)
        seen.append(known[1].failures if known else 0)
        return await send(url, body, request_id, timeout_s)

    bench.engine.send = watch  # type: ignore[method-assign] # a look at each attempt
    await bench.finish()
    assert seen == [0, 1, 2, 3]


# -- flights ------------------------------------------------------------------------


async def test_every_flight_arrives_even_if_it_never_began(make: Make) -> None:
    """A flight that is aborted in the moment of its launch comes back like any other."""
    bench = make()
    job_id = bench.add(line("a"))
    bench.spool.start(job_id)
    record = bench.queue.entries[job_id].record
    run = RunningJob(record, bench.spool, bench.ledger)
    woken: list[int] = []
    attempts = Attempts(bench.engine, 1.0, lambda: woken.append(1))
    request = parse_request(run.input.read(0), bench.config.limits)
    attempts.launch(run, 0, request, Target(1, None))
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
    """Run until the engine has been asked so often, or all is done."""
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
        bench.engine.attempts = attempts  # a script goes on, whoever reads it
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

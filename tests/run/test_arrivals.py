"""Arrivals: a result, another attempt, a dead letter, or a wait for the server."""

from dataclasses import replace

import pytest

from inbox_daemon.contract.hindrances import HindranceCode
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.engine.base import EngineState
from run_checks import Make, ids, prove
from scripted_runner import line

# -- answers ------------------------------------------------------------------------


@pytest.mark.parametrize("step", [500, 503, 408, 429, "timeout", "reset"])
async def test_a_failure_of_the_moment_is_tried_again(make: Make, step: object) -> None:
    """While the engine lives, a request that failed may succeed at a further attempt."""
    bench = make()
    bench.add(line("a", step, step), line("b"))
    await bench.finish()
    assert bench.ids() == ["a", "b"]
    assert bench.engine.attempts["a"] == 3
    assert list(bench.ledger.dead_letters()) == []


@pytest.mark.parametrize(
    ("step", "reason"),
    [(500, "max_attempts"), ("timeout", "timeout"), (404, "invalid_request")],
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


@pytest.mark.parametrize("status", [400, 413, 422])
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
    """The letter counts all further attempts, whatever their failures were."""
    bench = make()
    bench.add(line("a", 500, 500, 400))
    await bench.finish()
    (letter,) = bench.ledger.dead_letters()
    assert letter.retry_count == 2


async def test_a_refusal_of_the_daemon_charges_no_request(make: Make) -> None:
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


async def test_a_server_that_refuses_us_is_shown(make: Make) -> None:
    """While the server refuses us, the problem names its status and no request is set aside."""
    bench = make(window=1)
    bench.add(line("a", *[401] * 500))
    async with bench.running():
        await bench.until(lambda: bench.problem)
        assert "401" in str(bench.problem)
    assert list(bench.ledger.dead_letters()) == []


@pytest.mark.parametrize("window", [1, 3])
async def test_a_request_that_alone_is_refused_is_set_aside(make: Make, window: int) -> None:
    """If other requests are answered meanwhile, the refusal concerns the request and not us."""
    bench = make(window=window, run={"max_attempts": 2})
    bench.add(line("forbidden", *[403] * 99), *map(line, ids(6)))
    await bench.finish()
    assert bench.ids() == ids(6)
    assert bench.lines("errors.jsonl")[0]["custom_id"] == "forbidden"
    assert bench.lines("errors.jsonl")[0]["response"]["status_code"] == 403


@pytest.mark.parametrize("status", [401, 403])
async def test_the_last_request_alone_is_refused(make: Make, status: int) -> None:
    """With no other request left to compare with, the server is asked whether it accepts us."""
    bench = make(run={"max_attempts": 2})
    bench.engine.accepting = True
    bench.add(line("forbidden", *[status] * 99), line("fine"))
    await bench.finish()
    assert bench.ids() == ["fine"]
    assert bench.ids("errors.jsonl") == ["forbidden"]
    assert bench.problem is None


async def test_refused_and_postponed_requests_do_not_wait_for_each_other(make: Make) -> None:
    """A job ends though only such requests are left, with a cancelled job beside it."""
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
async def test_a_server_that_may_refuse_us_is_waited_for(
    make: Make,
    status: int,
    accepting: bool,  # noqa: FBT001 - a table
) -> None:
    """While the server may refuse us, work waits, whatever models it lists after 401 or 407."""
    bench = make(run={"max_attempts": 1})
    bench.engine.accepting, bench.engine.refusing = accepting, status
    bench.add(line("a"), line("b"))
    async with bench.running():
        await bench.until(lambda: len(bench.engine.sent) >= 8)
        assert bench.problem
        bench.engine.refusing = None
        await bench.until(lambda: not bench.queue.entries)
    assert bench.ids() == ["a", "b"]


# -- overload and outages -----------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503, 529, 408])
async def test_an_overload_charges_nothing(make: Make, status: int) -> None:
    """However often a server says that it has no room, the request has all its attempts left."""
    bench = make(run={"max_attempts": 1})
    bench.add(line("a", *[status] * 6), line("b"))
    await bench.finish()
    assert (bench.ids(), bench.engine.attempts["a"]) == (["a", "b"], 7)


async def test_an_overload_that_lasts_beside_answers_is_charged(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its budget the request is tried as often as any that fails."""
    bench = make(run={"max_attempts": 2, "overload_s": 1e-9}, window=1)
    bench.add(line("a", *[429] * 1000), *map(line, ids(300)))
    await bench.finish()
    assert bench.codes() == {"a": "max_attempts"}


async def test_a_time_out_behind_others_is_not_the_requests(make: Make) -> None:
    """Where the server shows no queue, only one that was sent to an idle server counts."""
    bench = make(run={"max_attempts": 1}, window=2)
    bench.engine.owned = False
    bench.add(line("slow", "wait"), line("behind", "timeout", "timeout"))
    async with bench.running():
        await bench.until(lambda: bench.engine.attempts["behind"] == 2)
        assert not bench.codes()
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.codes() == {}


@pytest.mark.parametrize("owned", [True, False])
async def test_where_half_fails_a_failure_is_no_attempt(
    make: Make,
    owned: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Behind an endpoint; in an engine of ours that lives, a failure is the request's."""
    bench = make(run={"max_attempts": 2}, window=32)
    bench.runner._arrivals._owned = owned
    failing = [line(f"f{n}", *[500] * 4) for n in range(40)]
    bench.add(*(each for pair in zip(failing, map(line, ids(40)), strict=True) for each in pair))
    await bench.finish()
    assert (len(bench.codes()) > 20) is owned


async def test_a_server_that_has_proven_nothing_gets_one_request_at_a_time(make: Make) -> None:
    """Each job by turns, a small request first; none is charged until one was answered."""
    bench = make(window=8, run={"max_attempts": 1})
    bench.engine.info = replace(bench.engine.info, proven=False)
    bench.add(line("long" * 50, "wait"), line("a", "wait"), name="one", number=1)
    bench.add(line("b", "wait"), name="two", number=2)
    async with bench.running():
        await bench.until(lambda: bench.engine.flying)
        await bench.some_turns()
        assert (list(bench.engine.flying), bench.engine.most) == (["a"], 1)
        found = bench.runner.hindrance()
        assert found is not None
        assert found.code is HindranceCode.ENGINE_UNPROVEN
        while "b" not in bench.engine.flying:  # the second job may not be started at once
            bench.engine.die()
            await bench.until(lambda: bench.engine.info.state is EngineState.READY)
            await bench.until(lambda: bench.engine.flying)
        assert (bench.engine.most, bench.suspects.deaths) == (1, 0)
        bench.engine.info = replace(bench.engine.info, proven=True)
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert (bench.codes("one"), bench.codes("two")) == ({}, {})

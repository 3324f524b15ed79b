"""Control files and redrives: an order is obeyed once, is kept, or is refused in words."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from builders import make_spool
from inbox_daemon.contract.names import Order
from inbox_daemon.contract.records import DeadReason
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake import control
from inbox_daemon.intake.admission import Admission, Answer
from inbox_daemon.intake.control import Command, Controller
from inbox_daemon.intake.gate import Wait
from inbox_daemon.intake.redrive import Redriver
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.request.validation import Served
from inbox_daemon.spool import Spool
from inbox_daemon.spool.entries import scan
from scripted_runner import Bench, line


def read(spool: Spool, name: str, content: bytes = b"") -> Command | Wait:
    """Read a control file as intake does."""
    (spool.inbox / name).write_bytes(content)
    entry = next(item for item in scan(spool.inbox).entries if item.name == name)
    return control.read(spool, entry, Priority.NORMAL)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return make_spool(tmp_path)


# -- reading ------------------------------------------------------------------------


@pytest.mark.parametrize("order", [order for order in Order if order is not Order.REBIND])
def test_an_empty_file_is_an_order(spool: Spool, order: Order) -> None:
    """The name alone says what is to be done with which job."""
    assert read(spool, f"my.job.{order}", b" \n") == Command("my.job", order)


def test_an_order_may_be_narrowed_to_a_reason(spool: Spool) -> None:
    """A redrive of the requests that failed for one reason names it."""
    found = read(spool, "ALL.redrive", b'{"reason": "timeout"}')
    assert found == Command("ALL", Order.REDRIVE, DeadReason.TIMEOUT)


def test_a_rebind_names_the_model(spool: Spool) -> None:
    """Only a rebind has a model, and without one it cannot be obeyed."""
    found = read(spool, "job.rebind", b'{"model": "m"}')
    assert found == Command("job", Order.REBIND, model="m")
    for name, content in [("a.rebind", b""), ("b.rebind", b"{}"), ("c.cancel", b'{"model": "m"}')]:
        refused = read(spool, name, content)
        assert isinstance(refused, Command)
        assert refused.fault is not None
        assert refused.fault.code == "invalid_control"
        assert (".rebind" in refused.fault.message) is name.endswith(".rebind")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"reason": "bad"}', b'{"job": "x"}', b"\xff"])
def test_an_order_that_says_nonsense_is_refused(spool: Spool, content: bytes) -> None:
    """The fault lists the known reasons."""
    found = read(spool, "job.purge", content)
    assert isinstance(found, Command)
    assert found.fault is not None
    assert found.fault.code == "invalid_control"
    assert "poison" in found.fault.message


# -- obeying ------------------------------------------------------------------------


class Desk:
    """A controller over real parts."""

    def __init__(self, root: Path) -> None:
        """Start idle."""
        self.root = root
        self.bench = Bench(root, run={"max_attempts": 1})
        bench = self.bench
        admission = Admission(bench.config, bench.spool, bench.ledger, bench.queue, Served)
        redriver = Redriver(bench.spool, bench.ledger, admission)
        self.served = Served()
        self.controller = Controller(bench.queue, bench.ledger, redriver, lambda: self.served)
        self.answers: list[Answer] = []

    async def obey(
        self,
        name: str,
        order: Order,
        reason: DeadReason | None = None,
        *,
        model: str | None = None,
        given_at: float = 9e9,
    ) -> str | None:
        """Give an order, new or from a given time; return the code of its fault."""
        command = Command(name, order, reason, model, given_at=given_at)
        fault = await self.controller.obey(command, self._note)
        return fault.code if fault else None

    def _note(self, answer: Answer) -> None:
        self.answers.append(answer)
        if answer.queued is not None:
            self.bench.queue.add(answer.queued)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """An idle daemon."""
    desk = Desk(tmp_path)
    yield desk
    await desk.bench.crash()


@pytest.mark.parametrize("order", [Order.CANCEL, Order.PAUSE, Order.RESUME])
async def test_an_order_for_an_unknown_job_is_refused(desk: Desk, order: Order) -> None:
    """A name that no active job has is an error that the sender sees."""
    assert await desk.obey("unknown", order) == "unknown_job"


async def test_a_fault_of_the_file_is_the_answer(desk: Desk) -> None:
    """The fault of a command that could not be read is returned, and nothing is done."""
    found = read(desk.bench.spool, "job.cancel", b"{")
    assert isinstance(found, Command)
    assert await desk.controller.obey(found, desk._note) == found.fault


async def test_a_cancel_ends_a_job_or_all(desk: Desk) -> None:
    """A cancel ends one job or all, lists what was not run, and may be repeated."""
    bench = desk.bench
    for number, name in enumerate("abc"):
        bench.add(line(name), name=name, number=number)
    bench.governor.fixed = 0
    async with bench.running():
        assert await desk.obey("b", Order.CANCEL) is None
        assert await desk.obey("b", Order.CANCEL) in {None, "unknown_job"}
        await bench.until(lambda: bench.published == ["b"])
        assert await desk.obey("ALL", Order.CANCEL) is None
        await bench.until(lambda: not bench.queue.entries)
        assert await desk.obey("ALL", Order.CANCEL) is None
    assert bench.codes("a") == {"a": "cancelled"}


async def test_a_job_is_bound_to_a_model_that_is_served(desk: Desk) -> None:
    """One job at a time, by its name; what is not served is refused with what is."""
    bench = desk.bench
    bench.add(line("a"), name="a", model="old")
    assert await desk.obey("ALL", Order.REBIND, model="m") == "invalid_control"
    assert await desk.obey("b", Order.REBIND, model="m") == "unknown_job"
    desk.served = Served(None, frozenset(["m", "n"]))
    assert await desk.obey("a", Order.REBIND, model="old") == "unknown_model"
    given_at = time.time()
    assert await desk.obey("a", Order.REBIND, model="m", given_at=given_at) is None
    assert await desk.obey("a", Order.REBIND, model="m", given_at=given_at) is None
    record = bench.queue.named("a")
    assert record is not None
    assert (record.model, record.earlier_models) == ("m", ["old"])
    assert bench.ledger.job(record.id) == record
    await bench.finish()
    assert await desk.obey("a", Order.REBIND, model="m", given_at=given_at) is None
    assert await desk.obey("a", Order.REBIND, model="n", given_at=given_at) == "unknown_job"


async def test_dead_letters_of_a_job_that_was_bound_again_ask_for_its_new_model(
    desk: Desk,
) -> None:
    """They name the old model, which is not served any more; a job that was not keeps its own."""
    bench = desk.bench
    bench.add(line("a", 400, model="old"), line("b", 400), name="a", model="old")
    assert await desk.obey("a", Order.REBIND, model="m") is None
    await bench.finish()
    models = [request["body"].get("model") for request in bench.lines("retry.jsonl", "a")]
    assert models == ["m", None]
    assert await desk.obey("a", Order.REDRIVE) is None
    assert desk.answers[0].queued is not None
    await bench.finish()
    answers = bench.lines("output.jsonl", "a.redrive-1")
    assert [answer["response"]["body"]["model"] for answer in answers] == ["m", "m"]


@pytest.mark.parametrize("order", [Order.CANCEL, Order.RESUME])
async def test_an_order_that_a_crash_repeats_is_done(desk: Desk, order: Order) -> None:
    """An order that already had its effect is no error, though its job is over."""
    bench = desk.bench
    bench.add(line("a"), name="a")
    bench.governor.fixed, given_at = 0, time.time()
    async with bench.running():
        assert await desk.obey("a", order, given_at=given_at) is None
        bench.governor.fixed = 1
        bench.runner.wake()
        await bench.until(lambda: not bench.queue.entries)
    assert await desk.obey("a", order, given_at=given_at) is None
    assert await desk.obey("a", order, given_at=time.time()) == "unknown_job"


async def test_a_pause_that_a_crash_repeats_is_done(desk: Desk) -> None:
    """A repeated pause is no error, though requests in flight have ended the job meanwhile."""
    bench = desk.bench
    bench.add(line("a", "wait"), name="a")
    async with bench.running():
        await bench.until(lambda: "a" in bench.engine.flying)
        assert await desk.obey("a", Order.PAUSE) is None
        given_at = time.time()
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert await desk.obey("a", Order.PAUSE, given_at=given_at) is None


async def test_an_order_that_comes_too_late_is_refused(desk: Desk) -> None:
    """A job that was answered cannot be cancelled or paused any more."""
    desk.bench.add(line("a"), name="a")
    await desk.bench.finish()
    assert await desk.obey("a", Order.CANCEL, given_at=0) == "unknown_job"
    assert await desk.obey("a", Order.PAUSE, given_at=0) == "unknown_job"


async def test_a_pause_outlives_the_daemon(desk: Desk) -> None:
    """A pause is on the disk before the order's file is removed, and only a resume ends it."""
    bench = desk.bench
    job_id = bench.add(line("a"), name="a")
    assert await desk.obey("a", Order.PAUSE) is None
    assert await desk.obey("a", Order.PAUSE) is None
    assert (bench.queue.paused, ActiveJobs(bench.ledger).paused) == ({job_id}, {job_id})
    assert await desk.obey("a", Order.RESUME) is None
    assert (bench.queue.paused, ActiveJobs(bench.ledger).paused) == (set(), set())


async def test_a_pause_of_all_is_a_switch_of_its_own(desk: Desk) -> None:
    """Resuming all leaves a job that was paused by itself where it is."""
    bench = desk.bench
    job_id = bench.add(line("a"), name="a")
    await desk.obey("a", Order.PAUSE)
    await desk.obey("ALL", Order.PAUSE)
    await desk.obey("ALL", Order.RESUME)
    assert bench.queue.paused == {job_id}


async def test_a_pause_of_a_job_that_has_ended_is_forgotten(desk: Desk) -> None:
    """The list of paused jobs does not grow without end."""
    desk.bench.queue.paused = {"long gone"}
    desk.bench.add(line("a"), name="a")
    await desk.obey("ALL", Order.PAUSE)
    assert desk.bench.queue.paused == {"ALL"}


# -- redriving ----------------------------------------------------------------------


async def failed(desk: Desk) -> None:
    """A job with an answer, a failure, a wrong request and a bad line."""
    steps = (line("ok"), line("late", 500), line("wrong", 400), b"nope\n")
    desk.bench.add(*steps, name="job")
    await desk.bench.finish()
    assert desk.bench.ledger.dead_count() == 3


async def test_a_redrive_is_a_new_job_of_what_failed(desk: Desk) -> None:
    """The new job is linked to the old one, has the valid requests, and ends their letters."""
    await failed(desk)
    old = desk.bench.ledger.jobs()[0].id
    assert await desk.obey("job", Order.REDRIVE) is None
    job = desk.answers[0].queued
    assert job is not None
    assert (job.name, job.requests, job.redrive_of) == ("job.redrive-1", 2, old)
    assert desk.bench.ledger.dead_count() == 3
    await desk.bench.finish()
    assert desk.bench.ids(name="job.redrive-1") == ["late", "wrong"]
    assert desk.bench.status("job.redrive-1")["redrive_of"] == old
    assert [letter.line for letter in desk.bench.ledger.dead_letters()] == [4]


async def test_a_letter_is_not_run_twice_at_once(desk: Desk) -> None:
    """While a redrive is active its letters are not offered again."""
    await failed(desk)
    assert await desk.obey("ALL", Order.REDRIVE) is None
    assert await desk.obey("job", Order.REDRIVE) == "no_dead_letters"
    assert len(desk.answers) == 1


async def test_a_redrive_that_a_crash_repeats_is_done(desk: Desk) -> None:
    """The repeated order is no error, even if the new job is over."""
    await failed(desk)
    given_at = time.time()
    await desk.obey("job", Order.REDRIVE, given_at=given_at)
    assert await desk.obey("ALL", Order.REDRIVE, given_at=given_at) is None
    await desk.bench.finish()
    assert await desk.obey("job", Order.REDRIVE, given_at=given_at) is None
    assert await desk.obey("ALL", Order.REDRIVE, given_at=given_at) is None
    assert len(desk.answers) == 1
    assert await desk.obey("other", Order.REDRIVE, given_at=given_at) == "no_dead_letters"
    assert await desk.obey("job", Order.REDRIVE, given_at=time.time()) == "no_dead_letters"


async def test_a_redrive_may_be_of_one_reason(desk: Desk) -> None:
    """Only the letters of that reason run again."""
    await failed(desk)
    assert await desk.obey("job", Order.REDRIVE, DeadReason.MAX_ATTEMPTS) is None
    await desk.bench.finish()
    assert desk.bench.ids(name="job.redrive-1") == ["late"]


async def test_what_fails_again_is_a_letter_of_the_new_job(desk: Desk) -> None:
    """The old letter is answered by the new one, which can be redriven in turn."""
    bench = desk.bench
    bench.add(line("bad", 500, 500), name="job")
    await bench.finish()
    await desk.obey("job", Order.REDRIVE)
    await bench.finish()
    (letter,) = bench.ledger.dead_letters()
    assert letter.job == "job.redrive-1"
    assert await desk.obey("job.redrive-1", Order.REDRIVE) is None
    await bench.finish()
    assert bench.ids(name="job.redrive-2") == ["bad"]
    assert bench.ledger.dead_count() == 0


async def test_a_redrive_without_letters_is_refused(desk: Desk) -> None:
    """The sender learns that there is nothing to run."""
    assert await desk.obey("job", Order.REDRIVE) == "no_dead_letters"


async def test_a_redrive_keeps_the_request_as_it_was(desk: Desk) -> None:
    """What is sent again is what the sender wrote, whatever characters it had."""
    bench = desk.bench
    bench.add(line("я\u2028", 500, user="\u0000ü"), name="job")
    await bench.finish()
    await desk.obey("job", Order.REDRIVE)
    job = desk.answers[0].queued
    assert job is not None
    written = orjson.loads((bench.spool.queued / f"{job.id}.jsonl").read_bytes())
    assert written == orjson.loads(line("я\u2028", 500, user="\u0000ü"))


async def test_a_purge_removes_letters_that_are_not_being_run(desk: Desk) -> None:
    """Those of one reason, or all, but none that is being run again."""
    await failed(desk)
    assert await desk.obey("job", Order.REDRIVE, DeadReason.MAX_ATTEMPTS) is None
    assert await desk.obey("ALL", Order.PURGE) is None
    assert [letter.custom_id for letter in desk.bench.ledger.dead_letters()] == ["late"]

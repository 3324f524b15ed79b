"""A job around its requests: paused, ended early, expired, or damaged."""

import pytest

from inbox_daemon.contract.records import DeadReason
from inbox_daemon.engine.base import EngineState
from run_checks import Make, ids, prove
from scripted_runner import line

# -- pauses, cancels, expiry --------------------------------------------------------


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


# -- damage -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["shorter", "gone"])
async def test_a_queued_job_that_is_damaged_is_set_aside(make: Make, damage: str) -> None:
    """The other jobs go on, its name is free, and the health lists it."""
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
    """Damage on the disk while a job runs ends only that job."""
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

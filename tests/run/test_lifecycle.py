"""A job around its requests: paused, ended early, expired, or damaged."""

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders import JOB_ID
from fake_time import DAY, NOW, FakeTime
from inbox_daemon.contract.errors import DamagedJobError
from inbox_daemon.contract.hindrances import HindranceCode
from inbox_daemon.contract.records import DeadReason, JobRecord
from inbox_daemon.engine.base import EngineState
from inbox_daemon.jobs import commit
from inbox_daemon.jobs.clock import CheckedClock
from inbox_daemon.publish.folder import publish
from inbox_daemon.publish.retention import retain
from inbox_daemon.run import lifecycle
from inbox_daemon.spool import durable
from run_checks import Make, ids, prove
from scripted_runner import PATIENCE_S, Bench, line
from spool_files import names

# -- a job and its model ------------------------------------------------------------


def serve(bench: Bench, *models: str) -> None:
    """Have the engine answer to these models, and no other."""
    bench.engine.info = replace(bench.engine.info, models=models)
    bench.runner.wake()


def models(bench: Bench, name: str) -> list[str]:
    """Which model answered each request of a published job."""
    answers = bench.lines("output.jsonl", name)
    return [answer["response"]["body"]["model"] for answer in answers]


@pytest.mark.parametrize("named", [{}, {"model": "m"}], ids=["unnamed", "named"])
async def test_one_model_answers_all_of_a_job(make: Make, named: dict[str, str]) -> None:
    """After a restart with another model the rest waits for the first, and others pass."""
    bench = make(window=2)
    wait = line("w", "wait", **named)
    old = bench.add(*(line(i, **named) for i in ids(9)), wait, name="old", number=1)
    async with bench.running():
        await bench.until(lambda: bench.queue.entries[old].open_requests == 1)
    await bench.crash()
    bench = make(window=2)
    serve(bench, "n")
    async with bench.running():
        await bench.until(bench.runner.hindrance)
        found = bench.runner.hindrance()
        assert found is not None
        assert found.code is HindranceCode.MODEL_NOT_SERVED
        assert "the model m, and n is served" in found.words
        assert list(bench.runner.facts().waiting) == [old]
        bench.add(line("b"), name="new", number=2)
        await bench.until(lambda: bench.published == ["new"])
        assert bench.engine.sent == ["b"]
        serve(bench, "n", "m")
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
        assert not bench.runner.facts().waiting
    assert (models(bench, "new"), models(bench, "old")) == (["n"], ["m"] * 10)
    assert bench.status("old")["model"] == "m"
    prove(bench, "old")


async def test_a_job_whose_model_is_gone_can_be_cancelled(make: Make) -> None:
    """It needs no model to be published as it is."""
    bench = make()
    job_id = bench.add(line("a", model="old"))
    async with bench.running():
        await bench.until(bench.runner.hindrance)
        await bench.queue.end(job_id, DeadReason.CANCELLED)
        await bench.until(lambda: not bench.queue.entries)
    assert (bench.engine.sent, bench.codes()) == ([], {"a": "cancelled"})


async def test_a_job_that_is_bound_again_asks_for_its_new_model(make: Make) -> None:
    """What was answered stays, the rest asks for the new model whatever its line names."""
    bench = make(window=2)
    waiting = [line(i, "wait", model="m") for i in "wxyz"]
    job_id = bench.add(line("a", model="m"), *waiting, line("b"))
    async with bench.running():
        await bench.until(lambda: {"w", "x"} <= bench.engine.flying.keys())
        serve(bench, "n")
        assert await bench.queue.rebind(job_id, "n")
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    # Those that were in flight get their answer from where they were sent.
    assert models(bench, "job") == ["m"] * 3 + ["n"] * 3
    shown = bench.status()
    assert (shown["model"], shown["earlier_models"]) == ("n", ["m"])
    prove(bench)


async def test_suspects_of_a_job_that_waits_for_its_model_hold_no_other_up(make: Make) -> None:
    """The engine died under it and came back with another model: the others run meanwhile."""
    bench = make(window=2)
    bench.add(line("a", "die"), line("b", "wait"), name="old", number=1)
    async with bench.running():
        await bench.until(lambda: bench.suspects.deaths)
        serve(bench, "n")
        bench.add(line("c"), name="new", number=2)
        await bench.until(lambda: bench.published == ["new"])
        serve(bench, "m")
        bench.engine.released.set()
        await bench.until(lambda: not bench.queue.entries)
    assert models(bench, "old") == ["m", "m"]


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


async def test_a_job_expires_by_no_time_that_is_in_doubt(make: Make) -> None:
    """A clock that is set two days ahead ends nothing; the seconds that pass do."""
    bench, time = make(), FakeTime()
    bench.queue.clock = CheckedClock(time)
    bench.add(line("a", "wait"), created_at=NOW, expires_at=NOW + 60)
    time.wall += 2 * DAY
    async with bench.running():
        await bench.until(lambda: "a" in bench.engine.flying)
        assert [entry.record.ending for entry in bench.queue.entries.values()] == [None]
        time.go_on(61.0)
        bench.runner.wake()
        await bench.until(lambda: not bench.queue.entries)
    assert bench.codes() == {"a": "expired"}
    # What has ended counts as ended from the latest of what the time may be.
    assert bench.ledger.jobs()[0].finished_at == time.wall


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


# -- results that the disk has no room for ------------------------------------------


def room_for(bench: Bench, spare: int) -> dict[str, int]:
    """Let the disk have `spare` bytes above its floor; the dict changes that."""
    disk = {"spare": spare}
    floor = bench.config.disk.min_free_bytes
    bench.spool.free = lambda: (floor + disk["spare"], 1 << 40)  # type: ignore[method-assign]
    return disk


def waits(bench: Bench) -> list[str]:
    """Why jobs wait, as the status says it."""
    return [hindrance.words for hindrance in bench.runner.facts().waiting.values()]


async def test_results_without_room_wait_and_the_others_go_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that does not fit is held with its reason; what fits is published before it."""
    monkeypatch.setattr(lifecycle, "HELD_S", 0.005)
    bench = make(window=64, chunk=64)
    disk = room_for(bench, 200_000)
    bench.add(*map(line, ids(1000)), name="large", number=1)
    bench.add(line("a"), name="small", number=2)
    async with bench.running():
        await bench.until(lambda: bench.published == ["small"])
        await bench.until(lambda: bench.runner.facts().waiting)
        (words,) = waits(bench)
        assert words.startswith("the results of large wait: they need 1 MiB more")
        found = bench.runner.hindrance()
        assert found is not None
        assert (found.code, found.words) == (HindranceCode.JOBS_HELD, words)
        assert not bench.spool.build_path(f"{JOB_ID[:-1]}1").exists()
        disk["spare"] = 10_000_000
        await bench.until(lambda: not bench.queue.entries)
        assert not bench.runner.facts().waiting
    prove(bench, "large")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("step", ["write_file", "make_dir", "move", "sync_dir"])
async def test_an_error_of_the_disk_is_a_wait_and_no_end(
    make: Make, monkeypatch: pytest.MonkeyPatch, step: str, error: int
) -> None:
    """Whichever step of a publication fails, it is tried again until the results are there."""
    monkeypatch.setattr(lifecycle, "HELD_S", 0.005)
    bench, failures = make(), 3
    bench.add(line("a"), line("b", 400))
    real = getattr(durable, step)

    def fail(path: Path, *rest: object, **named: object) -> object:
        nonlocal failures
        publishing = path.is_relative_to(bench.spool.build_path(f"{JOB_ID[:-1]}0"))
        if publishing and failures:
            failures -= 1
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(durable, step, fail)
    held = set[str]()
    async with bench.running():

        def over() -> bool:
            held.update(waits(bench))
            return not bench.queue.entries

        await bench.until(over)
    assert failures == 0
    assert all(os.strerror(error) in words for words in held)
    prove(bench)


async def test_a_job_that_was_shown_is_never_damaged(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its own folder cannot be removed after the move, retention tries that again."""
    bench, failures = make(), 2
    job_id = bench.add(line("a"))
    room_for(bench, 200_000)
    remove = durable.remove_tree

    def fail(path: Path) -> None:
        nonlocal failures
        if path == bench.spool.running / job_id and failures:
            failures -= 1
            (path / "results.part").unlink(missing_ok=True)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        remove(path)

    monkeypatch.setattr(durable, "remove_tree", fail)
    await bench.finish()
    assert bench.published == ["job"]
    assert names(bench.spool.quarantine) == set()
    for left in ({job_id}, set()):
        retain(bench.config, bench.spool, bench.ledger, 0.0)
        assert names(bench.spool.running) == left
        assert bool(bench.spool.troubles.words()) is bool(left)
    assert failures == 0
    prove(bench)


async def test_a_long_publication_holds_nothing_else_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next job starts and orders are obeyed meanwhile, and its lines count as progress."""
    going_on, begun = threading.Event(), threading.Event()

    def slow(*parts: Any) -> JobRecord:  # noqa: ANN401 - as publish takes them
        begun.set()
        assert going_on.wait(PATIENCE_S)
        return publish(*parts)

    monkeypatch.setattr(lifecycle, "publish", slow)
    bench = make()
    first = bench.add(*map(line, ids(600)), name="first", number=1)
    async with bench.running():
        await bench.until(begun.is_set)
        second = bench.add(line("b", "wait"), name="second", number=2)
        await bench.until(lambda: "b" in bench.engine.flying)
        await bench.queue.end(first, DeadReason.CANCELLED)
        await bench.queue.end(second, DeadReason.CANCELLED)
        before = bench.runner.progress
        going_on.set()
        await bench.until(lambda: not bench.queue.entries)
        assert bench.runner.progress[2] > before[2]
    assert bench.status("first")["status"] == "completed"
    assert bench.status("second")["status"] == "cancelled"


# -- files that cannot be used ------------------------------------------------------


def break_file(monkeypatch: pytest.MonkeyPatch, step: str, job_id: str, error: int) -> None:
    """Let one kind of call fail from now on for the files of one job, and for no other."""

    def strike(where: object) -> None:
        if f"/{job_id}/" in str(where):
            raise OSError(error, os.strerror(error))

    real_open, real_pread, real_write = os.open, os.pread, durable.write_at

    def open_it(path: Path, *rest: Any, **named: Any) -> int:  # noqa: ANN401 - as os.open
        strike(path)
        return real_open(path, *rest, **named)

    def read(fd: int, size: int, offset: int) -> bytes:
        name = str(Path(f"/proc/self/fd/{fd}").readlink())
        if name.endswith({"line": "input.jsonl", "result": "results.part"}[step]):
            strike(name)
        return real_pread(fd, size, offset)

    def write(fd: int, parts: list[bytes], offset: int) -> None:
        strike(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real_write(fd, parts, offset)

    if step == "open":
        monkeypatch.setattr(os, "open", open_it)
    elif step == "write":
        monkeypatch.setattr(durable, "write_at", write)
    else:
        monkeypatch.setattr(os, "pread", read)


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENODEV])
@pytest.mark.parametrize("step", ["open", "line", "write", "result"])
async def test_a_file_that_cannot_be_used_costs_its_own_job(
    make: Make, monkeypatch: pytest.MonkeyPatch, step: str, error: int
) -> None:
    """That job goes to quarantine/; one beside it and one that comes later are finished."""
    bench = make()
    bad = bench.add(*map(line, ids(20)), line("x", 500), name="bad", number=1)
    bench.add(*map(line, ids(20)), name="beside", number=2)
    break_file(monkeypatch, step, bad, error)
    async with bench.running():
        await bench.until(lambda: bad not in bench.queue.entries)
        bench.add(line("c"), name="later", number=3)
        await bench.until(lambda: not bench.queue.entries)
    assert bench.published == ["beside", "later"]
    ended = next(job for job in bench.queue.recent if job.name == "bad")
    assert ended.status == "damaged"
    assert os.strerror(error) in ended.message
    assert (bench.spool.quarantine / bad / "input.jsonl").exists()
    prove(bench, "beside")
    prove(bench, "later")


async def test_a_damaged_job_with_requests_in_flight_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has in flight is taken back; what it had finished before is kept with it."""
    bench = make(window=4, chunk=2)
    bad = bench.add(line("a"), line("b", "wait"), *map(line, ids(20)), name="bad", number=1)
    async with bench.running():
        await bench.until(lambda: "b" in bench.engine.flying and bench.ledger.progress(bad).ended)
        break_file(monkeypatch, "line", bad, errno.EIO)
        await bench.until(lambda: bad not in bench.queue.entries)
        assert not bench.engine.flying
    assert (bench.spool.quarantine / bad / "results.part").stat().st_size > 0


async def test_a_full_disk_holds_a_commit_up_and_loses_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that cannot be written wait in memory; nothing more is sent until they can."""
    monkeypatch.setattr(commit, "FULL_PAUSE_S", 0.005)
    bench, failures = make(), 3
    bench.add(*map(line, ids(100)))
    real = durable.write_at

    def write(fd: int, parts: list[bytes], offset: int) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, parts, offset)

    monkeypatch.setattr(durable, "write_at", write)
    monkeypatch.setattr(bench.spool, "free", lambda: (0 if failures else 1 << 40, 1 << 40))
    seen = set[HindranceCode | None]()
    async with bench.running():

        def over() -> bool:
            found = bench.runner.hindrance()
            seen.add(found.code if found else None)
            return not bench.queue.entries

        await bench.until(over)
    assert HindranceCode.DISK_SHORT in seen
    prove(bench)


def fill_file_of(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, job_id: str, error: int
) -> list[str]:
    """Let one job's results.part take nothing until the returned list is cleared."""
    monkeypatch.setattr(commit, "FULL_PAUSE_S", 0.002)
    real, full = durable.write_at, [job_id]

    def write(fd: int, data: list[bytes], offset: int) -> None:
        if any(name in os.readlink(f"/proc/self/fd/{fd}") for name in full):  # noqa: PTH115 - short
            raise OSError(error, os.strerror(error))
        real(fd, data, offset)

    monkeypatch.setattr(durable, "write_at", write)
    room_for(bench, 1 << 40)
    return full


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
async def test_a_quota_of_one_job_holds_no_other_up(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Its results wait in memory with the reason, nothing more of it is sent, and none is lost."""
    bench = make(window=4, chunk=4)
    job_id = bench.add(*map(line, ids(40)), name="full", number=1)
    full = fill_file_of(monkeypatch, bench, job_id, error)
    async with bench.running():
        await bench.until(lambda: waits(bench))
        bench.add(*(line(f"o{n}") for n in range(40)), name="other", number=2)
        await bench.until(lambda: bench.published == ["other"])
        assert "the results of full wait in memory" in waits(bench)[0]
        found = bench.runner.hindrance()
        assert found is not None
        assert found.code is HindranceCode.JOBS_HELD
        assert len([name for name in bench.engine.sent if name.startswith("r")]) <= 8
        full.clear()
        await bench.until(lambda: not bench.queue.entries)
        assert waits(bench) == []
    assert sorted(bench.engine.sent) == sorted(ids(40) + [f"o{n}" for n in range(40)])
    prove(bench, "full")
    prove(bench, "other")


async def test_a_stop_does_not_wait_for_a_quota(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written is dropped, and runs again at the next start."""
    bench = make()
    job_id = bench.add(*map(line, ids(5)))
    full = fill_file_of(monkeypatch, bench, job_id, errno.EDQUOT)
    async with bench.running() as task:
        await bench.until(lambda: waits(bench))
        await bench.runner.drain(0)
        await bench.until(task.done)
    await bench.crash()
    full.clear()
    again = make()
    await again.finish()
    assert again.ids() == ids(5)
    prove(again)


async def test_a_damaged_job_whose_results_wait_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is set aside, although what waits is never written."""
    bench = make()
    job_id = bench.add(*map(line, ids(5)))
    fill_file_of(monkeypatch, bench, job_id, errno.EDQUOT)
    async with bench.running():
        await bench.until(lambda: waits(bench))
        run = bench.queue.run_of(job_id)
        assert run is not None
        run.damage = DamagedJobError("file_unusable", "its input cannot be read")
        await bench.until(lambda: not bench.queue.entries)
    assert names(bench.spool.quarantine) == {job_id}


@pytest.mark.parametrize("step", ["make_dir", "rename_noreplace", "sync_dir"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
async def test_a_job_that_cannot_be_started_is_tried_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, step: str, error: int
) -> None:
    """Whichever step of its start fails, the job waits with its reason and runs in the end."""
    monkeypatch.setattr(lifecycle, "HELD_S", 0.005)
    bench, failures = make(), 2
    bench.add(line("a"))
    real, running = getattr(durable, step), bench.spool.running

    def fail(*paths: Path) -> None:
        nonlocal failures
        if failures and any(running in (path, *path.parents) for path in paths):
            failures -= 1
            raise OSError(error, os.strerror(error))
        real(*paths)

    monkeypatch.setattr(durable, step, fail)
    await bench.finish()
    assert failures == 0
    assert bench.published == ["job"]
    prove(bench)

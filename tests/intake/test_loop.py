"""Intake and admission: every drop gets one answer, and no file is lost."""

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jsonschema
import orjson
import pytest

from builders import config, request
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.json_schemas import json_schema
from inbox_daemon.contract.names import Order
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake import admission, loop
from inbox_daemon.intake.admission import Answer
from inbox_daemon.intake.control import Command, Controller
from inbox_daemon.intake.loop import MAX_WAITING, Intake
from inbox_daemon.request.validation import Served
from inbox_daemon.spool import Spool, durable
from inbox_daemon.spool.entries import Identity, Kind, Scan, scan
from miniature import Miniature
from spool_files import names

GOOD = request("a") + b"\n" + request("b") + b"\n"
OTHER = request("c") + b"\n"
BAD = b"nope\n"


class Desk(Miniature):
    """A daemon whose inbox a test fills by hand."""

    def drop(
        self, content: bytes = GOOD, name: str = "job", lane: Priority = Priority.NORMAL
    ) -> None:
        """Put a file into inbox/."""
        (self.spool.lane(lane) / f"{name}.jsonl").write_bytes(content)

    def take(self) -> Answer:
        """Answer the one drop that lies there."""
        (answer,) = self.take_drops()
        return answer

    def finish(self) -> None:
        """Run and publish all that is queued."""
        self.start()
        for run in self.queue.runs():
            self.work(run)
            self.publish(run)

    def collect(self, name: str = "job") -> None:
        """Fetch a folder as a sender does that removes the files."""
        for path in (self.spool.outbox / name).iterdir():
            path.unlink()

    def status(self, name: str = "job") -> dict[str, Any]:
        """A job's status in outbox/, valid by its schema."""
        found: dict[str, Any] = orjson.loads(
            (self.spool.outbox / name / "status.json").read_bytes()
        )
        jsonschema.Draft202012Validator(json_schema("job-status")).validate(found)
        return found

    def reasons(self) -> dict[str, dict[str, Any]]:
        """All reasons in rejected/ by file, valid by their schema."""
        found = {
            path.name: orjson.loads(path.read_bytes())
            for path in self.spool.rejected.glob("*.reason.json")
        }
        for reason in found.values():
            jsonschema.Draft202012Validator(json_schema("reason")).validate(reason)
        return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the spool."""
    return tmp_path / "spool"


@pytest.fixture
def desk(root: Path) -> Iterator[Desk]:
    """A daemon with the default configuration."""
    desk = Desk(root)
    yield desk
    desk.close()


@pytest.fixture
def make(root: Path) -> Iterator[Any]:
    """A daemon with another configuration."""
    made: list[Desk] = []

    def make(**sections: dict[str, Any]) -> Desk:
        made.append(Desk(root, config(**sections)))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


def assert_idle(spool: Spool) -> None:
    """Check that inbox/ has only its lanes and that no claim is left."""
    assert names(spool.inbox) == {"high", "low"}
    assert names(spool.claimed) == set()


# -- yes ----------------------------------------------------------------------------


def test_a_good_drop_becomes_a_job(desk: Desk) -> None:
    """Its own copy is queued, its record known, its drop gone."""
    desk.drop()
    job = desk.take().queued
    assert job is not None
    assert (job.name, job.requests, job.bytes) == ("job", 2, len(GOOD))
    assert (desk.spool.queued / f"{job.id}.jsonl").read_bytes() == GOOD
    assert desk.ledger.delivered("job", hashlib.sha256(GOOD).hexdigest()) == job
    assert_idle(desk.spool)


@pytest.mark.parametrize("lane", Priority)
def test_the_lane_is_the_jobs_priority(desk: Desk, lane: Priority) -> None:
    """A drop in inbox/high is more urgent than one in inbox/."""
    desk.drop(lane=lane)
    job = desk.take().queued
    assert job is not None
    assert job.priority is lane
    assert names(desk.spool.lane(lane)) <= {"high", "low"}


def test_sidecars_are_obeyed_and_taken_away(desk: Desk) -> None:
    """Marker and options belong to the drop and go with it."""
    options = {"expires_in_s": 60, "max_attempts": 2, "metadata": {"k": "v"}}
    (desk.spool.inbox / "job.options.json").write_bytes(orjson.dumps(options))
    marker = {"bytes": len(GOOD), "sha256": hashlib.sha256(GOOD).hexdigest()}
    (desk.spool.inbox / "job.jsonl.ready").write_bytes(orjson.dumps(marker))
    desk.drop()
    job = desk.take().queued
    assert job is not None
    assert (job.max_attempts, job.metadata) == (2, {"k": "v"})
    assert job.expires_at is not None
    assert round(job.expires_at - job.created_at) == 60
    assert_idle(desk.spool)


def test_bad_lines_may_become_dead_letters(make: Any) -> None:  # noqa: ANN401 - a factory
    """With that rule the job is accepted and its bad lines are recorded by number."""
    desk = make(intake={"on_invalid_line": "dead_letter"})
    desk.drop(GOOD + BAD)
    job = desk.take().queued
    assert (job.requests, job.invalid) == (3, 1)
    assert {line: fault.code for line, fault in desk.ledger.invalid(job.id).items()} == {
        3: "invalid_json"
    }


def test_what_happens_to_the_drop_after_its_claim_does_not_matter(desk: Desk) -> None:
    """A writer that changes its file after it was claimed changes no job, and loses no byte."""
    desk.drop()
    admit = desk.spool.admit

    def replace_then_admit(job_id: str) -> Any:  # noqa: ANN401 - as the real one
        (desk.spool.inbox / "new").write_bytes(OTHER)
        (desk.spool.inbox / "new").rename(desk.spool.inbox / "job.jsonl")
        return admit(job_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(desk.spool, "admit", replace_then_admit)
        job = desk.take().queued
    assert job is not None
    assert (desk.spool.queued / f"{job.id}.jsonl").read_bytes() == GOOD
    assert (desk.spool.inbox / "job.jsonl").read_bytes() == OTHER


# -- no -----------------------------------------------------------------------------


def test_a_bad_drop_is_refused_with_its_reason(desk: Desk) -> None:
    """File and reason are in rejected/, and a notice is in outbox/."""
    desk.drop(GOOD + BAD)
    answer = desk.take()
    assert answer.rejected is not None
    assert (desk.spool.rejected / "job.jsonl").read_bytes() == GOOD + BAD
    (reason,) = desk.reasons().values()
    assert (reason["code"], reason["faults"][0]["line"]) == ("invalid_json", 3)
    assert (reason["retryable"], reason["file"]) == (False, "job.jsonl")
    assert desk.status()["status"] == "failed"
    assert desk.status()["errors"]["data"] == reason["faults"]
    assert desk.ledger.jobs() == []
    assert_idle(desk.spool)


def test_a_corrected_file_may_come_under_the_same_name(desk: Desk) -> None:
    """The job's status replaces the notice of the refusal."""
    desk.drop(BAD)
    desk.take()
    desk.drop()
    assert desk.take().queued is not None
    assert names(desk.spool.outbox) == set()
    desk.finish()
    assert desk.status()["status"] == "completed"


def test_a_second_refusal_lies_beside_the_first(desk: Desk) -> None:
    """Nothing in rejected/ is overwritten."""
    for content in (BAD, BAD + BAD):
        desk.drop(content)
        desk.take()
    files = sorted(path.read_bytes() for path in desk.spool.rejected.glob("*.jsonl"))
    assert files == [BAD, BAD + BAD]
    assert len(desk.reasons()) == 2


@pytest.mark.parametrize(("content", "code"), [(b"", "empty"), (b"x" * 99 + b"\n", "too_large")])
def test_a_drop_that_is_never_read_is_refused_too(make: Any, content: bytes, code: str) -> None:  # noqa: ANN401 - a factory
    """A refusal by size moves the file itself, and leaves nothing in inbox/."""
    desk = make(limits={"max_file_bytes": 50})
    desk.drop(content)
    assert desk.take().rejected.code == code
    assert (desk.spool.rejected / "job.jsonl").read_bytes() == content
    assert desk.reasons()["job.reason.json"]["sha256"] is None
    assert desk.status()["status"] == "failed"
    assert_idle(desk.spool)


def test_a_full_queue_refuses_for_now(make: Any) -> None:  # noqa: ANN401 - a factory
    """The refusal is retryable, and the file is accepted once there is room."""
    desk = make(limits={"max_queue_depth": 1})
    desk.drop()
    desk.take()
    desk.drop(OTHER, "other")
    refused = desk.take().rejected
    assert (refused.code, refused.retryable) == ("queue_full", True)
    desk.finish()
    desk.drop(OTHER, "other")
    assert desk.take().queued is not None


def test_too_many_open_requests_refuse_for_now(make: Any) -> None:  # noqa: ANN401 - a factory
    """Requests are counted over all jobs."""
    desk = make(limits={"max_total_queued_requests": 2})
    desk.drop()
    desk.take()
    desk.drop(OTHER, "other")
    assert desk.take().rejected.code == "too_many_queued_requests"


def test_a_job_without_room_is_held_where_that_is_wanted(make: Any) -> None:  # noqa: ANN401 - a factory
    """Under on_full = "hold" the file stays in inbox/ and is taken once there is room."""
    desk = make(limits={"max_total_queued_requests": 2}, intake={"on_full": "hold"})
    desk.drop()
    desk.take()
    desk.drop(OTHER, "other")
    for _ in range(2):
        assert "room" in desk.take().wait.why
    assert names(desk.spool.claimed) == names(desk.spool.rejected) == set()
    desk.finish()
    assert desk.take().queued is not None


def test_a_job_that_never_fits_is_not_held(make: Any) -> None:  # noqa: ANN401 - a factory
    """A job with more requests than the queue's limit is refused instead of held."""
    desk = make(limits={"max_total_queued_requests": 1}, intake={"on_full": "hold"})
    desk.drop()
    assert desk.take().rejected.code == "too_many_requests"


def test_options_that_say_nonsense_refuse_the_job(desk: Desk) -> None:
    """The refusal names the invalid key, and the job does not run with other options."""
    (desk.spool.inbox / "job.options.json").write_bytes(b'{"max_attempts": 0}')
    desk.drop()
    refused = desk.take().rejected
    assert refused is not None
    assert refused.code == "invalid_options"
    assert "max_attempts" in refused.message
    assert_idle(desk.spool)


def test_a_model_that_is_not_served_refuses_the_job(desk: Desk) -> None:
    """A model that the engine does not list refuses the job."""
    desk.admission.served = lambda: Served("m", frozenset({"m"}))
    desk.drop(request("a", model="other") + b"\n")
    refused = desk.take().rejected
    assert refused is not None
    assert refused.code == "unknown_model"


# -- names in use -------------------------------------------------------------------


def test_a_name_is_in_use_while_its_job_is_active_or_uncollected(desk: Desk) -> None:
    """Other bytes under that name are refused until the folder was collected."""
    desk.drop()
    desk.take()
    for finished in (False, True):
        if finished:
            desk.finish()
        desk.drop(OTHER)
        refused = desk.take().rejected
        assert refused is not None
        assert (refused.code, refused.retryable) == ("name_in_use", True)
    assert desk.status()["status"] == "completed"
    desk.collect()
    desk.drop(OTHER)
    assert desk.take().queued is not None


# -- re-deliveries ------------------------------------------------------------------


def test_a_redelivery_of_an_active_job_is_taken_away(desk: Desk) -> None:
    """The same file, sent again as by rsync, is recognised as the same job."""
    desk.drop()
    first = desk.take().queued
    desk.drop()
    assert desk.take().redelivered == first
    assert len(desk.queue.entries) == 1
    assert names(desk.spool.outbox) == set()
    assert_idle(desk.spool)


def test_a_redelivery_of_uncollected_results_leaves_them(desk: Desk) -> None:
    """The results stay in place, and nothing is run again."""
    desk.drop()
    desk.take()
    desk.finish()
    before = (desk.spool.outbox / "job" / "status.json").read_bytes()
    desk.drop()
    assert desk.take().redelivered is not None
    assert (desk.spool.outbox / "job" / "status.json").read_bytes() == before


def test_a_redelivery_of_collected_results_says_so(desk: Desk) -> None:
    """The notice has the job's end and says how to run the file again."""
    desk.drop()
    desk.take()
    desk.finish()
    desk.collect()
    desk.drop()
    assert desk.take().redelivered is not None
    found = desk.status()
    assert (found["status"], found["output_file_id"]) == ("completed", None)
    assert "another name" in found["message"]
    assert_idle(desk.spool)


def test_a_redelivery_of_results_beside_their_name_leaves_them(desk: Desk) -> None:
    """Results that lie under NAME.id, because NAME was taken, are not said to be collected."""
    desk.drop()
    desk.take()
    (desk.spool.outbox / "job").mkdir()
    (desk.spool.outbox / "job" / "notes.txt").touch()
    desk.finish()
    (desk.spool.outbox / "job" / "notes.txt").unlink()
    desk.drop()
    assert desk.take().redelivered is not None
    assert names(desk.spool.outbox / "job") == set()


def test_the_same_file_is_a_new_job_after_its_time(desk: Desk) -> None:
    """After dedup_days, and once it was collected, the file runs again."""
    desk.drop()
    desk.take()
    desk.finish()
    (record,) = desk.ledger.jobs()
    desk.ledger.update(record.model_copy(update={"finished_at": 1.0}))
    desk.drop()
    assert desk.take().redelivered is not None  # it still lies in outbox/
    desk.collect()
    desk.drop()
    assert desk.take().queued is not None


def test_the_same_bytes_under_another_name_are_another_job(desk: Desk) -> None:
    """A file can be run again under another name."""
    for name in "job", "again":
        desk.drop(name=name)
        assert desk.take().queued is not None


# -- trouble on the way -------------------------------------------------------------


def test_a_checksum_that_does_not_match_waits_for_another_file(desk: Desk) -> None:
    """The drop stays, its claim is removed, and it is not read again until it changes."""
    marker = {"bytes": len(GOOD), "sha256": hashlib.sha256(GOOD).hexdigest()}
    (desk.spool.inbox / "job.jsonl.ready").write_bytes(orjson.dumps(marker))
    desk.drop(GOOD.replace(b"a", b"z"))
    for _ in range(2):
        wait = desk.take().wait
        assert wait is not None
        assert "sha256" in wait.why
    assert names(desk.spool.claimed) == set()
    desk.drop()
    assert desk.take().queued is not None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_drop_that_cannot_be_copied_waits(
    desk: Desk, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or failing disk loses no drop and ends no daemon."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    desk.drop()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_all", fail)
        assert desk.take().wait is not None
    assert names(desk.spool.claimed) == set()
    assert desk.take().queued is not None


def test_a_drop_that_changes_while_it_is_copied_waits(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy might be half old and half new, so it is discarded."""
    claim = desk.spool.claim

    def change(fd: int, job_id: str, limit: int) -> tuple[str, int]:
        copied = claim(fd, job_id, limit)
        with (desk.spool.inbox / "job.jsonl").open("ab") as file:
            file.write(OTHER)
        return copied

    desk.drop()
    with monkeypatch.context() as patch:
        patch.setattr(desk.spool, "claim", change)
        wait = desk.take().wait
    assert wait is not None
    assert "changed" in wait.why
    assert names(desk.spool.claimed) == set()
    job = desk.take().queued
    assert job is not None
    assert job.requests == 3


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_drop_that_is_replaced_before_its_refusal_is_checked_again(
    desk: Desk, change: str
) -> None:
    """A refusal moves the file that was judged, or none."""
    desk.drop(b"")
    (seen,) = [item for item in scan(desk.spool.inbox).entries if item.name == "job.jsonl"]
    (desk.spool.inbox / "job.jsonl").unlink()
    if change == "replaced":
        desk.drop()
    fault = desk.admission.reject_drop(seen, Priority.NORMAL, cast("Any", None))
    assert fault.wait is not None
    assert names(desk.spool.rejected) == names(desk.spool.claimed) == set()
    assert (desk.spool.inbox / "job.jsonl").exists() == (change == "replaced")


# -- the loop -----------------------------------------------------------------------


class NoController:
    """A controller that notes orders, and refuses them where a test wants that."""

    def __init__(self, fault: Fault | None) -> None:
        """Take the answer to every order."""
        self.fault = fault
        self.given: list[Command] = []

    async def obey(self, command: Command, note: object) -> Fault | None:
        """Note an order."""
        self.given.append(command)
        return self.fault


def intake_of(desk: Desk, fault: Fault | None = None) -> Intake:
    """The loop of a daemon, to be turned by hand."""
    controller = cast("Controller", NoController(fault))
    return Intake(desk.config, desk.spool, desk.queue, desk.admission, controller, lambda: None)


async def turn(intake: Intake, times: int = 2) -> list[str]:
    """Scan several times; return the names that wait."""
    waiting: list[Any] = []
    for _ in range(times):
        waiting = await intake._answer_all(await intake._scan_lanes())
    return [drop.name for drop in waiting]


async def test_a_drop_is_taken_by_the_scan_after_it_settled(make: Any) -> None:  # noqa: ANN401 - a factory
    """The first scan sees it, a later one takes it."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk)
    desk.drop()
    assert await turn(intake, 1) == ["job.jsonl"]
    assert await turn(intake, 1) == []
    assert len(desk.queue.entries) == 1


async def test_an_order_is_obeyed_once_it_has_settled_and_goes(make: Any) -> None:  # noqa: ANN401 - a factory
    """NAME.cancel is taken as a job is: once it has settled, and only once."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk)
    (desk.spool.inbox / "job.cancel").touch()
    (desk.spool.inbox / "folder.pause").mkdir()
    assert sorted(await turn(intake, 1)) == ["folder.pause", "job.cancel"]
    assert await turn(intake, 2) == ["folder.pause"]
    assert cast("Any", intake.controller).given == [Command("job", Order.CANCEL)]
    assert names(desk.spool.rejected) == set()


async def test_an_order_that_cannot_be_obeyed_is_refused(make: Any) -> None:  # noqa: ANN401 - a factory
    """The order is in rejected/ with its reason, and no job's status changes."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk, Fault(code="unknown_job", message="no job has that name"))
    (desk.spool.inbox / "job.cancel").write_bytes(b"{}")
    assert await turn(intake) == []
    assert names(desk.spool.rejected) == {"job.cancel", "job.cancel.reason.json"}
    assert names(desk.spool.outbox) == set()
    assert desk.reasons()["job.cancel.reason.json"]["code"] == "unknown_job"


async def test_a_redelivery_is_shown_among_the_recent_jobs(make: Any) -> None:  # noqa: ANN401 - a factory
    """An operator sees that a file came again and was not run."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk)
    for _ in range(2):
        desk.drop()
        await turn(intake)
    (recent,) = desk.queue.recent
    assert (recent.name, recent.status) == ("job", "redelivered")
    assert desk.queue.last_finished is None


async def test_what_is_never_taken_is_shown_with_the_reason(make: Any) -> None:  # noqa: ANN401 - a factory
    """Hidden files, folders, links and lone sidecars are shown as waiting and left alone."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk)
    for name in (".job.jsonl.abc", "orphan.jsonl.ready", "orphan.options.json", "bad name.jsonl"):
        (desk.spool.inbox / name).touch()
    (desk.spool.inbox / "folder").mkdir()
    (desk.spool.inbox / "high" / "high").mkdir()
    (desk.spool.inbox / "link.jsonl").symlink_to("nowhere")
    assert sorted(await turn(intake)) == sorted(
        [
            ".job.jsonl.abc",
            "orphan.jsonl.ready",
            "orphan.options.json",
            "bad name.jsonl",
            "folder",
            "high",
            "link.jsonl",
        ]
    )


async def test_a_name_of_any_length_is_refused_in_the_end(make: Any) -> None:  # noqa: ANN401 - a factory
    """The longest names that a sender can make are refused as bad names."""
    desk = make(intake={"settle_s": 1e-6, "incomplete_s": 1e-6})
    intake = intake_of(desk)
    for name in ("a" * 255, "я" * 127):
        (desk.spool.inbox / name).write_bytes(GOOD)
    assert await turn(intake, 3) == []
    assert len(desk.reasons()) == 2
    assert_idle(desk.spool)


async def test_what_stays_incomplete_is_refused_in_the_end(make: Any) -> None:  # noqa: ANN401 - a factory
    """After incomplete_s a cut file, a bad name and a bad marker are refused."""
    desk = make(intake={"settle_s": 1e-6, "incomplete_s": 1e-6})
    intake = intake_of(desk)
    desk.drop(GOOD[:-5], "cut")
    (desk.spool.inbox / "bad name.jsonl").write_bytes(GOOD)
    desk.drop(GOOD, "marked")
    (desk.spool.inbox / "marked.jsonl.ready").write_bytes(b"{")
    assert await turn(intake, 3) == []
    codes = sorted(reason["code"] for reason in desk.reasons().values())
    assert codes == ["bad_marker", "bad_name", "truncated"]
    assert len(desk.queue.recent) == 3
    assert_idle(desk.spool)


async def test_a_paused_intake_leaves_everything(make: Any) -> None:  # noqa: ANN401 - a factory
    """Below the floor of free space nothing is copied, and the reason is shown."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk)
    intake.paused = "no room"
    desk.drop()
    assert await turn(intake) == ["job.jsonl"]
    intake.paused = None
    assert await turn(intake) == []


async def test_a_full_queue_holds_every_drop(make: Any) -> None:  # noqa: ANN401 - a factory
    """Under on_full = "hold" nothing is read while no job has room."""
    desk = make(intake={"settle_s": 1e-6, "on_full": "hold"}, limits={"max_queue_depth": 1})
    intake = intake_of(desk)
    desk.drop()
    await turn(intake)
    desk.drop(OTHER, "other")
    assert await turn(intake) == ["other.jsonl"]
    desk.finish()
    assert await turn(intake) == []


@pytest.mark.parametrize("starving", [True, False])
async def test_a_drop_that_waits_for_room_ages(
    make: Any,  # noqa: ANN401 - a factory
    starving: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A stream of files in high/ does not take each place before the one that waits in low/."""
    desk = make(intake={"settle_s": 1e-6, "on_full": "hold"}, limits={"max_queue_depth": 1})
    desk.queue._ageing_s = 1e-6 if starving else 1e6
    intake = intake_of(desk)
    desk.drop()
    await turn(intake)
    for lane, name in (("low", "patient"), ("high", "hasty")):
        (desk.spool.inbox / lane / f"{name}.jsonl").write_bytes(OTHER)
        await asyncio.sleep(0.02)  # the disk's clock has a tick of some milliseconds
    assert set(await turn(intake)) == {"patient.jsonl", "hasty.jsonl"}
    desk.finish()
    assert await turn(intake) == ["hasty.jsonl" if starving else "patient.jsonl"]


@pytest.mark.parametrize("kind", ["options.json", "jsonl.ready"])
async def test_a_sidecar_that_comes_too_late_speaks_of_no_later_job(
    make: Any,  # noqa: ANN401 - a factory
    kind: str,
) -> None:
    """It is refused while its job is active, and does not wait for the next one of the name."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk)
    desk.drop()
    await turn(intake)
    late = desk.spool.inbox / f"job.{kind}"
    late.write_bytes(b'{"expires_in_s": 1}')
    assert await turn(intake) == []
    why = orjson.loads((desk.spool.rejected / f"job.{kind}.reason.json").read_bytes())
    assert (why["code"], why["name"]) == ("late", f"job.{kind}")
    assert (desk.spool.rejected / f"job.{kind}").exists()
    assert desk.queue.named("job") is not None


async def test_a_sidecar_alone_is_refused_in_the_end(make: Any) -> None:  # noqa: ANN401 - a factory
    """Not while its job's file is on its way under a hidden name."""
    desk = make(intake={"settle_s": 1e-6, "incomplete_s": 1e-6})
    intake = intake_of(desk)
    (desk.spool.inbox / "job.options.json").write_bytes(b"{}")
    hidden = desk.spool.inbox / ".job.jsonl.Ab3x"
    hidden.touch()
    assert "job.options.json" in await turn(intake)
    hidden.unlink()
    assert await turn(intake) == []
    why = orjson.loads((desk.spool.rejected / "job.options.json.reason.json").read_bytes())
    assert why["code"] == "alone"


async def test_options_stay_with_a_file_that_is_refused_for_now(make: Any) -> None:  # noqa: ANN401 - a factory
    """Sent again alone it has them; another file of that name has none."""
    desk = make(intake={"settle_s": 1e-6}, limits={"max_queue_depth": 1})
    intake = intake_of(desk)
    desk.drop()
    await turn(intake)
    (desk.spool.inbox / "next.options.json").write_bytes(b'{"metadata": {"customer": "1"}}')
    desk.drop(OTHER, "next")
    await turn(intake)
    assert (desk.spool.rejected / "next.options.kept").exists()
    desk.finish()
    desk.drop(OTHER, "next")
    await turn(intake)
    assert desk.queue.named("next").metadata == {"customer": "1"}


async def test_the_list_of_what_waits_stays_short(
    make: Any,  # noqa: ANN401 - a factory
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most MAX_WAITING waiting files are listed, and the loop can be stopped."""
    desk = make(intake={"settle_s": 1e-6, "scan_interval_s": 0.01})
    intake = intake_of(desk)
    for number in range(MAX_WAITING + 50):
        (desk.spool.inbox / f".{number}").touch()
    pause = Intake._pause

    async def stop_after_the_first(self: Intake) -> None:
        self.stop()
        await pause(self)

    monkeypatch.setattr(Intake, "_pause", stop_after_the_first)
    await intake.run()
    assert len(intake.waiting) == MAX_WAITING


async def test_an_inbox_that_was_removed_is_made_again(make: Any) -> None:  # noqa: ANN401 - a factory
    """Lanes that were removed are made again, and drops in them are taken."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk)
    for lane in (Priority.HIGH, Priority.LOW, Priority.NORMAL):
        desk.spool.lane(lane).rmdir()
    for lane in Priority:
        intake._scan(lane)
    desk.spool.check()
    desk.drop()
    assert await turn(intake) == []


@pytest.mark.parametrize("step", ["write_file", "make_dir", "move", "sync_dir"])
@pytest.mark.parametrize("content", [GOOD, BAD], ids=["good", "bad"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
async def test_an_error_in_the_middle_of_an_answer_is_a_wait(
    make: Any,  # noqa: ANN401 - a factory
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    content: bytes,
    number: int,
) -> None:
    """Whichever step of it fails, the drop waits, and is answered once when the error is over."""
    monkeypatch.setattr(loop, "HELD_S", 0.0)
    desk = make(intake={"settle_s": 1e-6})
    intake, room = intake_of(desk), True
    real = getattr(durable, step)

    def fail(*parts: Any, **named: Any) -> object:  # noqa: ANN401 - as the call takes them
        if not room:
            raise OSError(number, os.strerror(number))
        return real(*parts, **named)

    monkeypatch.setattr(durable, step, fail)
    monkeypatch.setattr(admission, "_STUCK_S", 0.0)
    monkeypatch.setattr(admission, "_STUCK_MAX_S", 0.0)
    watcher = cast("Any", DeafWatcher())
    desk.drop(content)
    room, held = False, list[str | None]()
    for _ in range(3):
        await intake._scan_all(watcher)
        held += [drop.why for drop in intake.waiting] + [intake.problem]
    room = True
    for _ in range(3):
        await intake._scan_all(watcher)
    assert intake.problem is None
    assert_idle(desk.spool)
    if content == GOOD:
        assert [entry.record.name for entry in desk.queue.entries.values()] == ["job"]
    else:
        assert list(desk.reasons()) == ["job.reason.json"]
        assert desk.status()["status"] == "failed"
    assert any(held) or step not in USED[content]


# The steps that an answer takes, but for its copy, which is another call.
USED = {GOOD: {"move", "sync_dir"}, BAD: {"write_file", "make_dir", "move", "sync_dir"}}


class DeafWatcher:
    """A watcher that is not there."""

    reason = None

    def check(self, seen: object) -> None:
        """Look at nothing."""


async def test_nothing_is_obeyed_or_refused_while_the_disk_is_full(make: Any) -> None:  # noqa: ANN401 - a factory
    """Orders and refusals wait with the reason, and are carried out afterwards."""
    desk = make(intake={"settle_s": 1e-6, "incomplete_s": 1e-6})
    intake = intake_of(desk)
    intake.full = intake.paused = "the disk is full (0 MiB free)"
    (desk.spool.inbox / "job.cancel").touch()
    desk.drop(BAD, "no name")
    assert sorted(await turn(intake, 3)) == ["job.cancel", "no name.jsonl"]
    assert cast("Any", intake.controller).given == []
    intake.full = intake.paused = None
    assert await turn(intake, 3) == []
    assert cast("Any", intake.controller).given == [Command("job", Order.CANCEL)]
    assert names(desk.spool.rejected) >= {"no_name.jsonl", "no_name.reason.json"}


async def test_a_file_that_cannot_be_looked_at_waits_alone(
    make: Any,  # noqa: ANN401 - a factory
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others of its folder are taken."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk)
    desk.drop(name="bad")
    desk.drop(OTHER, name="good")
    found = [
        entry._replace(kind=Kind.UNKNOWN) if entry.name == "bad.jsonl" else entry
        for entry in scan(desk.spool.inbox).entries
    ]
    waiting: list[Any] = []
    for _ in range(2):
        waiting = await intake._answer_all({Priority.NORMAL: Scan(Identity(0, 0), found)})
    assert [(drop.name, drop.why) for drop in waiting] == [
        ("bad.jsonl", "it cannot be looked at: look at the disk")
    ]
    assert [entry.record.name for entry in desk.queue.entries.values()] == ["good"]


async def test_an_order_that_stays_is_removed_once_it_can_be(
    make: Any,  # noqa: ANN401 - a factory
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is obeyed once, and tried again by itself."""
    desk = make(intake={"settle_s": 1e-6})
    intake = intake_of(desk)
    (desk.spool.inbox / "job.cancel").touch()

    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "remove_file", fail)
        assert await turn(intake, 3) == ["job.cancel"]
    assert await turn(intake, 1) == []
    assert len(cast("Any", intake.controller).given) == 1
    assert_idle(desk.spool)


def test_a_taken_drop_that_stays_is_removed_once_it_can_be(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job is queued at once, and the file is not read again to be removed."""
    desk.drop()

    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(admission, "_STUCK_S", 0.0)
        patch.setattr(durable, "rename_noreplace", moves_claims_only(durable.rename_noreplace))
        assert desk.take().queued is not None
    monkeypatch.setattr(desk.spool, "claim", fail)
    assert desk.take() == Answer()
    assert_idle(desk.spool)


def moves_claims_only(real: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """A rename that leaves everything in inbox/ where it is."""

    def rename(source: Path, target: Path) -> None:
        if target.parent.suffix == ".drop":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(source, target)

    return rename

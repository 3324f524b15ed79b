"""What must be true of the product, whatever was done to it: the state machine's model.

Purpose: know each accepted job and each waiting drop, carry out one step with or without
a crash in it, and hold the spool and the ledger to the model after each.
Invariants: a job is known from its acceptance on, also where a crash swallowed the
answer; nothing here looks at how the product does its work.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from inbox_daemon.contract.documents import JobStatus
from inbox_daemon.contract.names import ALL, Order
from inbox_daemon.intake.admission import Answer
from inbox_daemon.intake.control import Command
from inbox_daemon.publish.verify import verify_published, verify_running
from torture.world import CrashError, World

# What a line asks for, and how it ends: None is a result.
ENDS = {
    "": None,
    "[[400]]": "invalid_request",
    "[[500]]": "max_attempts",
    "[[500x1]]": None,
    "[[crash]]": "poison",
    "[[crashx1]]": None,
}
DONE = {"steps": 0, "crashes": 0, "jobs": 0, "lines": 0}


@dataclass
class Accepted:
    """A job that was accepted: how each line is to end, and what was seen of it."""

    id: str
    name: str
    sha256: str
    ends: dict[str, str | None]
    fragile: set[str]
    origin: str | None = None
    cancelled: bool = False
    published: dict[str, str | None] | None = None
    purged: set[str] = field(default_factory=set)
    ran: set[str] = field(default_factory=set)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _texts(data: bytes) -> dict[str, str]:
    """The text of each line by its custom_id."""
    lines = [json.loads(line) for line in data.splitlines()]
    return {line["custom_id"]: line["body"]["messages"][0]["content"] for line in lines}


def _end_of(text: str) -> str | None:
    return ENDS[text.partition(" ")[2]]


class Model(RuleBasedStateMachine):
    """The model and the checks; the rules are the subclass's."""

    @initialize()
    def begin(self) -> None:
        """Open an empty spool."""
        memory = Path("/dev/shm")
        root = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="machine-", dir=root))
        self.jobs: dict[str, Accepted] = {}
        self.waiting: dict[str, tuple[bytes, str]] = {}
        self.sent: dict[str, list[bytes]] = {}
        self.answers: list[Answer] = []
        self.drops = 0
        self.killed = self.changed = False
        self.world = World(self.root, self._told, self._answered)

    # -- what the parts tell --------------------------------------------------------

    def _told(self, job_id: str, line: int, text: str) -> None:
        """Before each execution: it is of a job that was accepted, and has no outcome yet."""
        assert job_id in self.world.queue.entries, f"{text} runs and its job is over"
        done = [number for number, _ in self.world.ledger.entries(job_id)]
        assert line not in done, f"{text} runs again although its outcome is committed"
        if job_id in self.jobs:
            self.jobs[job_id].ran.add(text)

    def _answered(self, answer: Answer) -> None:
        self.answers.append(answer)
        if answer.queued is not None:
            self._accept(answer.queued.id)

    def _drop(self, name: str, data: bytes, lane: str = "") -> None:
        folder = self.world.spool.inbox / lane
        part = folder / f".{name}.part"
        part.write_bytes(data)
        part.replace(folder / f"{name}.jsonl")
        self.waiting[f"{lane}/{name}"] = (data, name)
        self.sent.setdefault(name, []).append(data)

    def _obey(self, name: str, order: Order) -> None:
        self.world.obey(Command(name, order))

    # -- one step -------------------------------------------------------------------

    def _step(
        self, action: Callable[[], Any], crash_at: int | None = None, *, always: bool = False
    ) -> None:
        """Do something, perhaps with a crash in the middle; then see what became of it."""
        DONE["steps"] += 1
        world = self.world
        world.steps.arm(crash_at)
        try:
            action()
        except CrashError:
            assert crash_at is not None
        crashed = world.steps.fired or always
        self.changed = not crashed
        world.steps.arm(None)
        if crashed:
            DONE["crashes"] += 1
            world.crash()
            self._look_into_outbox()  # a web app sees what a crash has left, too
            world.open()
        self._take_answers()
        self._adopt()
        self._look_into_outbox()
        assert not world.failures, world.failures[0]

    def _take_answers(self) -> None:
        """Hold each answer to what the model says of that file."""
        answers, self.answers[:] = list(self.answers), []
        for answer in answers:
            if answer.redelivered is not None:
                assert answer.redelivered.id in self.jobs
            elif answer.rejected is not None and answer.rejected.file:
                kept = self.world.spool.rejected / answer.rejected.file
                assert kept.exists(), f"{kept.name} was refused and is not kept"
        lanes = {"": "inbox", "high": "inbox/high", "low": "inbox/low"}
        for key in list(self.waiting):
            lane, name = key.split("/")
            if not (self.world.spool.root / lanes[lane] / f"{name}.jsonl").exists():
                self._check_taken(*self.waiting.pop(key))

    def _check_taken(self, data: bytes, name: str) -> None:
        """What left inbox/ is an accepted job or lies in rejected/, byte for byte."""
        self._adopt()
        if any(j.name == name and j.sha256 == _sha256(data) for j in self.jobs.values()):
            return
        kept = self.world.spool.rejected.glob(f"{name}*.jsonl")
        assert data in [path.read_bytes() for path in kept], f"a drop named {name} is lost"

    def _adopt(self) -> None:
        """Know the jobs whose acceptance was interrupted before its answer."""
        for job_id in self.world.queue.entries:
            self._accept(job_id)

    def _accept(self, job_id: str) -> None:
        record = self.world.ledger.job(job_id)
        if job_id in self.jobs or record is None:
            return
        spool = self.world.spool
        path = spool.queued / f"{job_id}.jsonl"
        path = path if path.exists() else spool.input_path(job_id)
        texts = _texts(path.read_bytes())
        if record.redrive_of is None:
            known = [j.id for j in self.jobs.values() if j.name == record.name]
            same = [i for i in known if self.jobs[i].sha256 == record.sha256]
            assert not same, f"{record.name} was accepted twice"
        ends = {custom_id: _end_of(text) for custom_id, text in texts.items()}
        fragile = {custom_id for custom_id, text in texts.items() if "crash" in text}
        self.jobs[job_id] = Accepted(
            job_id, record.name, record.sha256, ends, fragile, record.redrive_of
        )
        DONE["jobs"] += 1
        DONE["lines"] += len(ends)

    # -- what must always hold ------------------------------------------------------

    def _look_into_outbox(self) -> None:
        """Each published folder holds one outcome of each line, in order."""
        for folder in self.world.spool.outbox.iterdir():
            if (folder / "output.jsonl").exists():
                self._look_at(folder)

    def _look_at(self, folder: Path) -> None:
        status = JobStatus.model_validate_json((folder / "status.json").read_bytes())
        job = self.jobs.get(status.id)
        assert job is not None, f"{folder.name} was published and never sent"
        if job.published is not None:
            return
        proof = verify_published(folder, status, None)
        assert not proof.faults, proof.faults
        found = _outcomes(folder)
        assert list(found) == [c for c in job.ends if c in found], "not in input order"
        assert found.keys() == job.ends.keys()
        for custom_id, end in job.ends.items():
            allowed = {end} | ({"cancelled"} if job.cancelled else set())
            allowed |= {"poison"} if self.killed and custom_id in job.fragile else set()
            assert found[custom_id] in allowed, f"{job.name} {custom_id}: {found[custom_id]}"
        job.published = found

    @invariant()
    def running_jobs_are_sound(self) -> None:
        """What is committed of a running job is what its line got."""
        for entry in self.world.queue.entries.values():
            if entry.run is not None and not entry.run.complete:
                proof = verify_running(entry.record, self.world.spool, self.world.ledger)
                assert not proof.faults, proof.faults

    @invariant()
    def finished_jobs_were_published(self) -> None:
        """A job leaves the queue by its folder in outbox/ and by nothing else."""
        for job in self.jobs.values():
            if job.id not in self.world.queue.entries:
                assert job.published is not None, f"{job.name} is gone"

    @invariant()
    def dead_letters_are_those_published(self) -> None:
        """A letter stays until it is purged or the job that runs it again is over."""
        over = {record.id for record in self.world.ledger.jobs() if record.finished_at}
        letters = {pair for pair in self._letters() if pair[0] in over}
        wanted = self._wanted_letters(over)
        assert letters == wanted, f"too many: {letters - wanted}; missing: {wanted - letters}"

    def _letters(self) -> set[tuple[str, str]]:
        return {(letter.job_id, letter.custom_id or "") for letter in self._all_letters()}

    def _all_letters(self) -> list[Any]:
        return list(self.world.ledger.dead_letters())

    def _wanted_letters(self, over: set[str]) -> set[tuple[str, str]]:
        answered = {
            (job.origin, custom_id)
            for job in self.jobs.values()
            if job.origin and job.id in over
            for custom_id in job.ends
        }
        return {
            (job.id, custom_id)
            for job in self.jobs.values()
            if job.id in over and job.published
            for custom_id, end in job.published.items()
            if end is not None and custom_id not in job.purged
        } - answered

    # -- the end --------------------------------------------------------------------

    def teardown(self) -> None:
        """Let everything come to its end; nothing is left over."""
        if not hasattr(self, "world"):
            return
        try:
            self._end()
        finally:
            self.world.steps.remove()
            self.world.abandon()
            shutil.rmtree(self.root)

    def _end(self) -> None:
        self._step(self.world.scan)
        for name in (ALL, *{e.record.name for e in self.world.queue.entries.values()}):
            self._obey(name, Order.RESUME)
        self._step(lambda: self.world.work(lambda: not self.world.queue.entries))
        self.finished_jobs_were_published()
        self.dead_letters_are_those_published()
        for name in ("claimed", "queued", "running"):
            left = [path.name for path in (self.world.spool.root / name).iterdir()]
            assert not left, f"{name}/ still holds {left}"


def _outcomes(folder: Path) -> dict[str, str | None]:
    """How each line of a published job has ended, in input order."""
    found: dict[int, tuple[str, str | None]] = {}
    for name in ("output.jsonl", "errors.jsonl"):
        path = folder / name
        for raw in path.read_bytes().splitlines() if path.exists() else []:
            line = json.loads(raw)
            number = int(line["id"].rpartition("_")[2])
            assert number not in found, f"line {number} has two outcomes"
            error = line["error"]
            found[number] = line["custom_id"], error["code"] if error else None
    return {custom_id: end for _, (custom_id, end) in sorted(found.items())}

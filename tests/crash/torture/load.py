"""What a sender drops while the power is cut, and what is known of each job so far.

Purpose: jobs of every kind from a seed, dropped as rsync does, and the check of one that
has ended.
Invariant: what is recorded here was seen from outside of the filesystem, so it survives
every cut.
"""

import hashlib
import json
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from job_files import Json, chat, check_outputs, schema
from standin_faults import find_faults

LANES = ("", "", "", "high", "low")
MARKS = ("[[400]]", "[[500]]", "[[500x1]]", "[[slow=0.01]]")
# How a line with a marker ends; others are answered.  A passing 500 may hit once more
# after each restart of the engine in memory, so how that ends is open.
ENDS = {"400": {"invalid_request"}, "500": {"max_attempts"}, "crash": {"poison"}}
PASSING = "500x1"


class Kind(StrEnum):
    """What a drop is, and so what must become of it."""

    VALID = "valid"
    INVALID = "invalid"
    EMPTY = "empty"


@dataclass
class Job:
    """One drop, and what was seen of it."""

    name: str
    kind: Kind
    lines: list[bytes]
    lane: str = ""
    marked: bool = False
    synced: bool = False
    sent: bool = False
    acknowledged: bool = False
    id: str | None = None
    published: bool = False
    committed: dict[int, int] = field(default_factory=dict)
    executions: Counter[int] = field(default_factory=Counter)

    @property
    def data(self) -> bytes:
        """The file."""
        return b"".join(self.lines)

    @property
    def repeated(self) -> int:
        """How many executions were not the first of their line."""
        return sum(self.executions.values()) - len(self.executions)


def make_job(rng: random.Random, number: int) -> Job:
    """A job of any kind."""
    name = f"job-{number}"
    draw = rng.random()
    if draw < 0.03:
        return Job(name, Kind.EMPTY, [], rng.choice(LANES))
    count = rng.choice((1, 3, 10, 30, 60))
    marks = {n: rng.choice(MARKS) for n in range(count) if rng.random() < 0.05}
    if rng.random() < 0.15:
        marks[rng.randrange(count)] = "[[crash]]"
    lines = [chat(f"r{n}", f"{name} {n} {marks.get(n, '')}".strip()) for n in range(count)]
    job = Job(name, Kind.VALID, lines, rng.choice(LANES))
    if draw < 0.12:
        job.kind = Kind.INVALID
        job.lines.append(rng.choice((b'{"custom_id": 7}\n', b"no JSON\n", lines[0])))
    job.marked, job.synced = rng.random() < 0.3, rng.random() < 0.5
    return job


def send(job: Job, spool: Path) -> None:
    """Drop it, or drop it again, as rsync does: a hidden file, then its name."""
    lane = spool / "inbox" / job.lane
    hidden = lane / f".{job.name}.jsonl.part"
    with hidden.open("wb") as file:
        file.write(job.data)
        if job.synced:
            file.flush()
            os.fsync(file.fileno())
    if job.marked:
        promise = {"bytes": len(job.data), "sha256": hashlib.sha256(job.data).hexdigest()}
        (lane / f"{job.name}.jsonl.ready").write_text(json.dumps(promise), encoding="utf-8")
    hidden.replace(lane / f"{job.name}.jsonl")
    job.sent = True


def is_answered(job: Job, spool: Path) -> bool:
    """Return whether a job has come to its end, as its sender sees it."""
    if job.kind is Kind.VALID:
        return (spool / "outbox" / job.name / "output.jsonl").exists()
    return (spool / "rejected" / f"{job.name}.reason.json").exists()


def check_ended(job: Job, spool: Path) -> None:
    """Hold a job that has ended to all that is known of it.

    Raises AssertionError.
    """
    if job.kind is Kind.VALID:
        _check_published(job, spool / "outbox" / job.name)
    else:
        _check_refused(job, spool)


def _check_published(job: Job, folder: Path) -> None:
    outputs = check_outputs(job.lines, folder)
    assert job.id in {None, outputs.status["id"]}, f"{job.name} was run a second time"
    reasons = outputs.reasons()
    for number in range(len(job.lines)):
        custom_id, text = f"r{number}", _text(job.lines[number])
        result = outputs.results.get(custom_id)
        wanted, passing = _wanted(text)
        if result is None:
            assert reasons[custom_id] in wanted or passing, f"{job.name} {custom_id}: {reasons}"
        else:
            assert not wanted, f"{job.name} {custom_id} was answered"
            _check_answer(job, number, text, result["response"]["body"])


def _check_answer(job: Job, number: int, text: str, body: Json) -> None:
    """The answer is that of this request and, if it was committed, of that very execution."""
    assert body["echo"] == text, f"{job.name} line {number + 1} has another's answer"
    if number in job.committed:
        same = body["mark"] == job.committed[number]
        assert same, f"{job.name} line {number + 1}: its committed result was replaced"


def _text(line: bytes) -> str:
    return str(json.loads(line)["body"]["messages"][0]["content"])


def _wanted(text: str) -> tuple[set[str], bool]:
    found = find_faults(text)
    passing = PASSING in text
    names = [fault.name for fault in found if fault.times is None]
    return set().union(*(ENDS.get(name, set()) for name in names)), passing


def _check_refused(job: Job, spool: Path) -> None:
    rejected = spool / "rejected"
    assert (rejected / f"{job.name}.jsonl").read_bytes() == job.data, f"{job.name} is not kept"
    reason = json.loads((rejected / f"{job.name}.reason.json").read_bytes())
    schema("reason").validate(reason)
    assert not (spool / "outbox" / job.name / "output.jsonl").exists()
    assert not job.executions, f"{job.name} was refused and some of it has run"


def check_whole(folder: Path) -> None:
    """A published folder holds what its status promises, byte for byte.

    Raises AssertionError.
    """
    assert folder.is_dir(), f"{folder.name} was published and is gone"
    status = json.loads((folder / "status.json").read_bytes())
    names = {path.name for path in folder.iterdir()} - {"status.json"}
    assert names == set(status["checksums"]), f"{folder.name} holds {names}"
    for name, promised in status["checksums"].items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert found == promised, f"{folder.name}/{name} is not what was published"

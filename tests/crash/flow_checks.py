"""What must hold of a spool: right after a fault, and once the flow has been finished.

Purpose: `seen` takes down what a run left and refuses what must never be visible;
`check_finished` holds the end to the script, and to all that was acknowledged before.
"""

import json
import stat
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flow_script as script
from inbox_daemon.contract.documents import JobStatus
from inbox_daemon.contract.records import JobRecord
from inbox_daemon.ledger import MARKER, Ledger
from inbox_daemon.publish.verify import verify_published, verify_running
from inbox_daemon.spool import Spool
from job_files import schema

_FILES = {"output.jsonl", "errors.jsonl", "retry.jsonl", "status.json"}
_LANES = {"high", "low"}
# Who sends and who fetches does so as the group.
_MODES = {"inbox": 0o2770, "inbox/high": 0o2770, "inbox/low": 0o2770} | {
    "outbox": 0o2750,
    "rejected": 0o2750,
    "ledger": 0o700,
}
Json = dict[str, Any]


@dataclass(slots=True)
class Seen:
    """What a run left: how often each request was sent, and which outcomes count."""

    sends: Counter[str] = field(default_factory=Counter)
    committed: set[str] = field(default_factory=set)


def seen(base: Path) -> Seen:
    """Take down what counts, and hold all that a sender can see to being whole."""
    spool = Spool(base / "spool")
    for path in sorted(spool.outbox.iterdir()) if spool.outbox.is_dir() else []:
        _check_shown(path)
    for path in sorted(spool.rejected.iterdir()) if spool.rejected.is_dir() else []:
        _check_refused(path)
    sends = base / "sends"
    found = Seen(Counter(sends.read_text().split() if sends.exists() else []))
    if (spool.ledger / MARKER).exists():
        with closing(Ledger(spool.ledger, readonly=True)) as ledger:
            for record in ledger.jobs():
                found.committed |= _committed(record, spool, ledger)
    return found


def _committed(record: JobRecord, spool: Spool, ledger: Ledger) -> set[str]:
    """The requests of a job whose outcome counts, by job and custom_id."""
    job = next(job for job in script.JOBS if job.name == record.name)
    if record.finished_at is not None:
        return {f"{job.name} {custom_id}" for custom_id in job.requests}
    if spool.input_path(record.id).exists() and record.outbox is None:
        proof = verify_running(record, spool, ledger)
        assert not proof.faults, proof.faults
    lines = [line for line, _ in ledger.all_entries(record.id)]
    return {f"{job.name} {job.custom_id_at(line)}" for line in lines}


def _check_shown(path: Path) -> None:
    """Hold one entry of outbox/ to being whole; a folder may be empty, as it goes or comes."""
    if path.name == "status.json":
        schema("status").validate(json.loads(path.read_bytes()))
        return
    assert path.is_dir(), f"outbox/{path.name} is no folder"
    names = {entry.name for entry in path.iterdir()}
    assert names <= _FILES, f"outbox/{path.name} holds {names}"
    if not names:
        return
    status = json.loads((path / "status.json").read_bytes())
    schema("job-status").validate(status)
    if "output.jsonl" in names or status["output_file_id"]:
        proof = verify_published(path, JobStatus.model_validate(status), None)
        assert not proof.faults, proof.faults


def _check_refused(path: Path) -> None:
    if path.name.endswith(".reason.json"):
        schema("reason").validate(json.loads(path.read_bytes()))
        return
    sent = script.BROKEN_CONTENT if path.suffix == ".jsonl" else b""
    assert path.read_bytes() == sent, f"rejected/{path.name} is not what was sent"


# -- the end ------------------------------------------------------------------------


def check_finished(base: Path, before: list[Seen]) -> None:
    """Hold the finished flow to the script; `before` is what each struck run left."""
    spool = Spool(base / "spool")
    _check_empty(spool)
    with closing(Ledger(spool.ledger, readonly=True)) as ledger:
        records = ledger.jobs()
        letters = Counter((letter.job, letter.custom_id) for letter in ledger.dead_letters())
    assert Counter(r.name for r in records) == Counter(job.name for job in script.JOBS)
    for record in records:
        job = next(job for job in script.JOBS if job.name == record.name)
        _check_job(job, base / "collected" / job.name, record)
    assert {path.name for path in (base / "collected").iterdir()} == {j.name for j in script.JOBS}
    # The letter of main was run again and answered, so the new one has taken its place.
    dead = [(job.name, c) for job in script.JOBS for c in job.dead if job is not script.MAIN]
    assert letters == Counter(dead)
    _check_rejections(spool)
    _check_sends(seen(base), before)


def _check_empty(spool: Spool) -> None:
    for folder in (spool.claimed, spool.queued, spool.running, spool.quarantine):
        left = [path.name for path in folder.iterdir()]
        assert not left, f"{folder.name}/ still holds {left}"
    for name, mode in _MODES.items():
        found = stat.S_IMODE((spool.root / name).stat().st_mode)
        assert found == mode, f"{name}/ has mode {found:o}"
    left = [path.name for path in spool.inbox.rglob("*") if path.name not in _LANES]
    assert not left, f"inbox/ still holds {left}"
    shown = {path.name for path in spool.outbox.iterdir()}
    assert shown == {"status.json"}, f"outbox/ holds {shown}: something was published twice"


def _check_job(job: script.Job, folder: Path, record: JobRecord) -> None:
    """Compare a job's folder with the script, line by line and byte by byte."""
    status = JobStatus.model_validate(json.loads((folder / "status.json").read_bytes()))
    assert status.status == ("cancelled" if job.cancelled else "completed")
    proof = verify_published(folder, status, record)
    assert not proof.faults, proof.faults
    outputs, errors = _lines(folder / "output.jsonl"), _lines(folder / "errors.jsonl")
    answered = [custom_id for custom_id in job.requests if custom_id not in job.dead]
    assert [json.loads(line)["custom_id"] for line in outputs] == answered
    for custom_id, line in zip(answered, outputs, strict=True):
        assert b'"body":' + script.answer_to(custom_id) + b"}" in line
    assert {e["custom_id"]: e["error"]["code"] for e in map(json.loads, errors)} == job.dead
    sent = dict(zip(job.requests, job.lines(), strict=True))
    retry = [line + b"\n" for line in _lines(folder / "retry.jsonl")]
    assert retry == [sent[custom_id] for custom_id in job.dead]


def _lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    assert not data or data.endswith(b"\n"), f"{path.name} ends in the middle of a line"
    return data.split(b"\n")[:-1]


def _check_rejections(spool: Spool) -> None:
    """The broken file was refused once, and no other but an order that was repeated."""
    names = {path.name for path in spool.rejected.iterdir()}
    notes = {name for name in names if name.endswith(".reason.json")}
    reasons = [json.loads((spool.rejected / name).read_bytes()) for name in notes]
    assert {reason["file"] for reason in reasons} == names - notes
    codes = {reason["file"]: reason["code"] for reason in reasons}
    assert codes == {f"{script.BROKEN.name}.jsonl": "invalid_json"}


def _check_sends(now: Seen, before: list[Seen]) -> None:
    """What counted before a fault was never sent again, and nothing was sent without need."""
    for earlier in before:
        for name in earlier.committed:
            custom_id = name.split(" ")[1]
            if custom_id not in script.REDRIVEN.requests:  # sent by two jobs
                again = now.sends[custom_id] - earlier.sends[custom_id]
                assert not again, f"{name} had its outcome and was sent again"
    for job in script.JOBS:
        for custom_id, text in job.requests.items():
            extra = (text == script.FAIL_ONCE) + (custom_id in script.REDRIVEN.requests)
            allowed = 1 + extra + len(before)
            assert 1 <= now.sends[custom_id] <= allowed, f"{custom_id}: {now.sends[custom_id]}"

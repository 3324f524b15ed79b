"""Admission: a decision is a value that changes nothing, and one place carries it out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from builders import config, job_record, make_spool, request
from inbox_daemon.contract.records import EndedKind
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake.admission import (
    Accept,
    Admission,
    Answer,
    Claim,
    Decision,
    Hold,
    Redelivered,
    Reject,
    RejectDrop,
)
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.validation import Served
from inbox_daemon.spool.entries import Signature, scan

CLAIM_ID = "01J0000000000000000000000C"
GOOD = request("a") + b"\n" + request("b") + b"\n"


class Desk:
    """An admission on a real spool and ledger, before a drop that is already claimed."""

    def __init__(self, root: Path, **sections: Any) -> None:  # noqa: ANN401 - any section
        """Start with an empty queue."""
        self.spool = make_spool(root)
        self.ledger = Ledger(self.spool.ledger)
        self.jobs = ActiveJobs(self.ledger)
        self.admission = Admission(config(**sections), self.spool, self.ledger, self.jobs, Served)

    def claim(self, content: bytes, name: str = "job.jsonl") -> Claim:
        """Drop a file and copy it, as is done once it has passed the gate."""
        drop = self.spool.inbox / name
        drop.write_bytes(content)
        fd = self.spool.open_drop(name, Priority.NORMAL)
        sha256, size = self.spool.claim(fd, CLAIM_ID, 1 << 20)
        signature = Signature.of(drop.stat())
        return Claim(CLAIM_ID, name, Priority.NORMAL, sha256, size, signature)

    def files(self) -> dict[str, bytes]:
        """Everything on the spool but the ledger's own files."""
        root = self.spool.root
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.parent.name != "ledger"
        }


Make = Callable[..., Desk]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a desk, closed at the end."""
    made: list[Desk] = []

    def make(**sections: Any) -> Desk:  # noqa: ANN401 - any section
        made.append(Desk(tmp_path, **sections))
        return made[-1]

    yield make
    for desk in made:
        desk.ledger.close()


def full(desk: Desk) -> None:
    """Fill the queue up to one request less than its limit."""
    desk.jobs.add(job_record("01J0000000000000000000000F", "other", requests=2))


def known(desk: Desk) -> None:
    """Record the same file as an active job."""
    sha256 = desk.claim(GOOD).sha256
    desk.spool.discard_claim(CLAIM_ID)
    desk.ledger.accept(job_record("01J0000000000000000000000F", "job", sha256=sha256), [])


CASES: dict[str, tuple[bytes, Callable[[Desk], None], type[Decision]]] = {
    "accept": (GOOD, lambda _: None, Accept),
    "redelivered": (GOOD, known, Redelivered),
    "hold": (GOOD, full, Hold),
    "reject": (b"nope\n", lambda _: None, Reject),
}
HOLD = {
    "limits": {"max_total_queued_requests": 3, "max_requests_per_job": 9},
    "intake": {"on_full": "hold"},
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_decision_changes_nothing(make: Make, case: str) -> None:
    """Deciding twice gives the same decision, moves no file and writes no record."""
    content, prepare, kind = CASES[case]
    desk = make(**HOLD)
    prepare(desk)
    claim = desk.claim(content)
    before, records = desk.files(), desk.ledger.jobs()
    first, second = desk.admission.decide(claim), desk.admission.decide(claim)
    assert type(first) is type(second) is kind
    assert (desk.files(), desk.ledger.jobs()) == (before, records)
    assert desk.ledger.last_endings(9) == []
    assert not desk.admission._held


def test_what_is_accepted_is_queued(make: Make) -> None:
    """The record is in the ledger, the file in queued/, and the drop is gone."""
    desk = make()
    decision = desk.admission.decide(desk.claim(GOOD))
    answer = desk.admission.carry_out(decision)
    assert answer.queued is not None
    assert (answer.queued.name, answer.queued.requests) == ("job", 2)
    assert desk.ledger.jobs() == [answer.queued]
    assert desk.files() == {f"queued/{CLAIM_ID}.jsonl": GOOD}


def test_a_redelivered_file_is_taken_away_and_not_run(make: Make) -> None:
    """The same file as an active job leaves no second job, and no claim."""
    desk = make()
    known(desk)
    answer = desk.admission.answer_claim(desk.claim(GOOD))
    assert answer.redelivered is not None
    assert answer.redelivered.name == "job"
    assert len(desk.ledger.jobs()) == 1
    assert desk.files() == {}


def test_what_has_no_room_yet_is_left_and_not_read_again(make: Make) -> None:
    """The drop stays, its copy is removed, and the next check gives the reason without a copy."""
    desk = make(**HOLD)
    full(desk)
    answer = desk.admission.answer_claim(desk.claim(GOOD))
    assert answer.wait is not None
    assert desk.files() == {"inbox/job.jsonl": GOOD}
    [entry] = [e for e in scan(desk.spool.inbox).entries if e.name == "job.jsonl"]
    again = desk.admission.answer(entry, Priority.NORMAL, settled=True)
    assert again == Answer(wait=answer.wait)
    assert desk.files() == {"inbox/job.jsonl": GOOD}


def test_what_never_has_room_is_refused_all_the_same(make: Make) -> None:
    """A file of more requests than the queue can ever hold would wait without end."""
    desk = make(**HOLD)
    content = b"".join(request(str(n)) + b"\n" for n in range(4))
    decision = desk.admission.decide(desk.claim(content))
    assert isinstance(decision, Reject)
    assert [fault.code for fault in decision.faults] == ["too_many_requests"]


def test_what_is_refused_lies_in_rejected_with_its_reason_and_its_event(make: Make) -> None:
    """The copy that was judged is kept, with a notice for the sender and an ended event."""
    desk = make()
    answer = desk.admission.answer_claim(desk.claim(b"nope\n"))
    assert answer.rejected is not None
    files = desk.files()
    assert files.pop("rejected/job.jsonl") == b"nope\n"
    reason = orjson.loads(files.pop("rejected/job.reason.json"))
    assert (reason["code"], reason["id"]) == ("invalid_json", CLAIM_ID)
    assert orjson.loads(files.pop("outbox/job/status.json"))["status"] == "failed"
    assert files == {}
    [ended] = desk.ledger.last_endings(9)
    assert (ended.id, ended.name, ended.kind) == (CLAIM_ID, "job", EndedKind.REJECTED)


def test_a_file_that_was_never_claimed_is_refused_itself(make: Make) -> None:
    """It is moved to rejected/ unchanged, and a file that has changed since is left alone."""
    desk = make()
    (desk.spool.inbox / "x.jsonl").write_bytes(b"\x1f\x8b packed")
    [entry] = [e for e in scan(desk.spool.inbox).entries if e.name == "x.jsonl"]
    settled = desk.admission.answer(entry, Priority.NORMAL, settled=True)
    assert settled.rejected is not None
    assert settled.rejected.code == "encoded"
    assert desk.files()["rejected/x.jsonl"] == b"\x1f\x8b packed"
    gone = desk.admission.carry_out(RejectDrop(entry, Priority.NORMAL, settled.rejected.faults[0]))
    assert gone.wait is not None
    assert len(desk.ledger.last_endings(9)) == 1

"""The soak's witness: a history with one planted violation of each kind, and it says so."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from job_files import Json, chat
from soak.history import End, Execution, History, Journal, Order, Rules, Violation
from soak.jobs import REFUSED, VALID, SentJob, make_job
from soak.service_truths import (
    Bounds,
    Health,
    Sample,
    claims_to_be_up,
    judge_counts,
    judge_ends,
    judge_growth,
    judge_left,
    judge_log,
)
from soak.truths import judge_answer, judge_end, judge_job, judge_refusal

ID = "01KBCV0Q5S8Z3MJ2Y4R6T7W9XA"
NOW = 100.0
MARKS = {"r0": "", "r1": "[[400]]", "r2": "", "r3": "[[kill]]", "r4": "[[500]]"}
TRACE = b"""Traceback (most recent call last):
  File "/x/threading.py"
{"event": "job_queued"}
  File "/x/%s"
OSError
"""
CODES = {"r1": "invalid_request", "r3": "poison", "r4": "max_attempts"}


@dataclass
class Case:
    """A job as it should be: sent, executed and published; each test breaks one thing."""

    root: Path
    options: Json = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=lambda: dict(CODES))
    status: Json = field(default_factory=dict)
    history: History = field(default_factory=History)
    figures: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Send it and let the server do what each marker asks for."""
        texts = {name: f"job {name} {mark}".strip() for name, mark in MARKS.items()}
        data = b"".join(chat(name, text) for name, text in texts.items())
        self.job = SentJob("job", data, texts, options=self.options, drops=[10.0])
        self.said = {name: f"echo: {text}" for name, text in texts.items()}
        self.run("r0", 20, "ok")
        self.run("r1", 20, "refused", 400)
        self.run("r2", 20, "ok")
        self.run("r3", 20)
        for attempt in range(3):
            self.run("r4", 21 + attempt, "failed", 500)

    def run(self, name: str, begun: float, kind: str = "", status: int = 200) -> Execution:
        """One execution of a request; without a kind it has no end."""
        line = {"at": begun, "server": "a", "n": self.history.begun, "what": "begun"}
        self.history.take(line | {"id": self.id_of(name), "text": self.job.texts[name]})
        if kind:
            end = line | {"at": begun + 0.1, "what": "ended", "kind": kind, "status": status}
            self.history.take(end)
        return self.runs(name)[-1]

    def runs(self, name: str) -> list[Execution]:
        """The executions of a request."""
        return self.history.executions[ID][self.id_of(name)]

    def id_of(self, name: str) -> str:
        """The id of a request of this job."""
        return f"batch_req_{ID}_{int(name[1:]) + 1}"

    def publish(self) -> Path:
        """The folder as the daemon publishes it."""
        folder = self.root / "job"
        folder.mkdir()
        files = {"output.jsonl": b"", "errors.jsonl": b"", "retry.jsonl": b""}
        for name, line in zip(MARKS, self.job.lines, strict=True):
            outcome = json.dumps(self._outcome(name)).encode() + b"\n"
            files["errors.jsonl" if name in self.codes else "output.jsonl"] += outcome
            files["retry.jsonl"] += line if name in self.codes else b""
        kept = {name: data for name, data in files.items() if data or name == "output.jsonl"}
        for name, data in kept.items():
            (folder / name).write_bytes(data)
        (folder / "status.json").write_text(json.dumps(self._status(kept) | self.status))
        return folder

    def _outcome(self, name: str) -> Json:
        request_id = self.id_of(name)
        line: Json = {"id": request_id, "custom_id": name, "response": None, "error": None}
        if name in self.codes:
            return line | {"error": {"code": self.codes[name], "message": "no"}}
        choice = {"index": 0, "message": {"role": "assistant", "content": self.said[name]}}
        body = {"id": "x", "object": "chat.completion", "choices": [choice]}
        return line | {"response": {"status_code": 200, "request_id": request_id, "body": body}}

    def _status(self, files: dict[str, bytes]) -> Json:
        failed = len(self.codes)
        counts = {"total": len(MARKS), "completed": len(MARKS) - failed, "failed": failed}
        times = ("created", "in_progress", "finalizing", "completed", "failed", "expired")
        never = (*times, "cancelled", "cancelling", "expires", "redelivered")
        return {f"{name}_at": None for name in never} | {
            "id": ID,
            "object": "batch",
            "version": 1,
            "name": "job",
            "status": "completed",
            "message": "done",
            "request_counts": counts,
            "endpoint": None,
            "model": None,
            "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
            "errors": None,
            "input_file_id": "job.jsonl",
            "output_file_id": "output.jsonl",
            "error_file_id": "errors.jsonl" if failed else None,
            "retry_file": "retry.jsonl" if failed else None,
            "checksums": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "sha256": self.job.sha256,
            "bytes": len(self.job.data),
            "energy_j": None,
            "energy_j_per_1000_output_tokens": None,
            "priority": "normal",
            "metadata": self.options.get("metadata"),
            "redrive_of": None,
            "retryable": None,
            "completion_window": "none",
            "created_at": 1,
        }

    def judge(self, folder: Path | None = None) -> list[Violation]:
        """What the witness says."""
        folder = folder or self.publish()
        return judge_job(self.job, folder, self.history, Rules(), NOW, self.figures)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A job about which nothing is wrong."""
    return Case(tmp_path)


def codes(found: list[Violation]) -> set[str]:
    """The kinds of what was found."""
    return {violation.code for violation in found}


def test_a_sound_job_passes(case: Case) -> None:
    """Results, dead letters and their executions that agree are no violation."""
    assert case.judge() == []
    assert case.figures["requests"] == len(MARKS)


# -- one job -------------------------------------------------------------------------------


def edit(folder: Path, name: str, change: Callable[[list[bytes]], list[bytes]]) -> Path:
    """Change the lines of a published file."""
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    (folder / name).write_bytes(b"".join(change(lines)))
    return folder


@pytest.mark.parametrize(
    "change",
    [lambda lines: lines[:-1], lambda lines: lines[::-1], lambda lines: [*lines, lines[0]]],
    ids=["missing", "out of order", "twice"],
)
def test_outcomes_are_one_a_line_and_in_order(
    case: Case, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    """A line that is missing, misplaced or there twice is a broken output."""
    assert codes(case.judge(edit(case.publish(), "output.jsonl", change))) == {"broken_output"}


def test_a_file_that_is_not_what_was_published_is_found(case: Case) -> None:
    """A checksum that does not fit is seen by the product's own proof."""
    folder = case.publish()
    edit(folder, "output.jsonl", lambda lines: [lines[0].replace(b'"x"', b'"y"'), *lines[1:]])
    assert codes(case.judge(folder)) == {"not_verified"}


def test_an_answer_belongs_to_its_request(case: Case) -> None:
    """The answer to another request is wrong."""
    case.said["r0"], case.said["r2"] = case.said["r2"], case.said["r0"]
    assert codes(case.judge()) == {"wrong_answer"}


def test_an_answer_was_given_by_a_server(case: Case) -> None:
    """A result for which no execution ended well is invented."""
    case.runs("r0")[0].kind = "failed"
    assert codes(case.judge()) == {"invented_answer"}


def test_what_was_executed_is_what_was_sent(case: Case) -> None:
    """An execution under the id of one request with the text of another is found."""
    case.runs("r0")[0].text = case.job.texts["r2"]
    assert codes(case.judge()) == {"wrong_request"}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("r0", "invalid_request"),
        ("r0", "max_attempts"),
        ("r0", "timeout"),
        ("r1", "max_attempts"),
        ("r0", "surprise"),
    ],
)
def test_a_dead_letter_has_its_reason_at_the_server(case: Case, name: str, code: str) -> None:
    """An error that the server never gave, or not often enough, is unfounded."""
    case.codes[name] = code
    assert codes(case.judge()) == {"unfounded_error"}


@pytest.mark.parametrize("status", [401, 429])
def test_a_refusal_of_the_daemon_is_none_of_the_request(case: Case, status: int) -> None:
    """Answers that are about the sender or the load make no request invalid."""
    case.runs("r1")[0].status = status
    assert codes(case.judge()) == {"unfounded_error"}


def test_an_innocent_request_is_not_poison(case: Case) -> None:
    """A request that kills nothing must not be held for poison, but by repeated chance."""
    case.codes["r2"] = "poison"
    assert codes(case.judge(case.publish())) == {"innocent_poison"}


def test_deaths_by_chance_are_counted(case: Case) -> None:
    """One under which the engine died again and again is counted, and no violation."""
    case.codes["r2"] = "poison"
    for begun in (30, 40, 50):
        case.run("r2", begun)
    case.runs("r2")[0].kind = "failed"
    assert case.judge() == []
    assert case.figures["innocents held for poison by chance"] == 1


def test_an_answered_request_runs_again_only_after_a_crash(case: Case) -> None:
    """The same second execution is a violation without an end of the daemon, and none with one."""
    folder = case.publish()
    case.run("r0", 25, "ok")
    assert codes(case.judge(folder)) == {"ran_again"}
    case.history.ends.append(End(20.5, -9, "SIGKILL"))
    assert case.judge(folder) == []


def test_a_crash_does_not_excuse_what_was_committed_long_ago(case: Case) -> None:
    """An end of the daemon far beyond the commit's interval costs no outcome; a full disk may."""
    folder = case.publish()
    case.run("r0", 61, "ok")
    case.history.ends.append(End(60, -9, "SIGKILL"))
    assert codes(case.judge(folder)) == {"ran_again"}
    case.history.short.begin(15)
    assert case.judge(folder) == []


def test_a_server_that_died_excuses_what_it_had_just_answered(case: Case) -> None:
    """An answer may be lost with the server that gave it, but no earlier one."""
    second = case.run("r0", 26, "ok")
    second.server = "b"
    folder = case.publish()
    case.history.server_ends["a"] = 21.0
    assert case.judge(folder) == []
    case.history.server_ends["a"] = 25.0
    assert codes(case.judge(folder)) == {"ran_again"}


def test_nothing_runs_after_the_end_of_its_job(case: Case) -> None:
    """An execution that begins after the folder was seen is found at once."""
    case.history.close_job(ID, 50)
    case.history.take(
        {"at": 60, "server": "a", "n": 99, "what": "begun", "id": case.id_of("r0"), "text": "job"}
    )
    assert codes(case.history.late) == {"ran_after_end"}


@pytest.mark.parametrize(
    ("status", "options", "found"),
    [
        ("cancelled", {}, {"unordered_end"}),
        ("expired", {}, {"unordered_end"}),
        ("expired", {"expires_in_s": 600}, {"expired_early"}),
        ("expired", {"expires_in_s": 60}, set()),
    ],
)
def test_a_job_ends_early_only_for_a_reason(
    tmp_path: Path, status: str, options: Json, found: set[str]
) -> None:
    """Cancelled without an order, expired without an expiry or before it: none may be."""
    case = Case(tmp_path, options=options)
    case.status["status"] = status
    assert codes(case.judge()) == found


@pytest.mark.parametrize("name", ["job", "ALL"])
def test_an_order_ends_a_job(case: Case, name: str) -> None:
    """A cancellation by name or of all is a reason."""
    case.status["status"] = "cancelled"
    case.history.orders.append(Order(15, name, "cancel"))
    assert case.judge() == []


def test_the_options_arrive_with_the_job(tmp_path: Path) -> None:
    """Metadata that was sent and is not in the status is lost."""
    case = Case(tmp_path, options={"metadata": {"a": "b"}})
    assert case.judge() == []
    case.status["metadata"] = None
    (tmp_path / "job").rename(tmp_path / "first")
    assert codes(case.judge()) == {"options_lost"}


# -- files ---------------------------------------------------------------------------------


def sent(kind: str = VALID, way: str = "rename") -> SentJob:
    """A file that was dropped once."""
    return SentJob("job", b"{}\n", kind=kind, way=way, drops=[1.0])


def test_a_file_has_one_answer(case: Case) -> None:
    """A second folder with results is one too many, also of the same id."""
    assert judge_answer(case.job, ID, NOW) == []
    assert codes(judge_answer(case.job, ID, NOW)) == {"answered_twice"}


@pytest.mark.parametrize(
    ("kind", "way", "code", "found"),
    [
        (VALID, "rename", "invalid_json", {"wrong_refusal"}),
        (VALID, "rename", "truncated", {"wrong_refusal"}),
        (VALID, "slow", "truncated", set()),
        (VALID, "rename", "queue_full", set()),
        ("encoded", "rename", "encoded", set()),
        ("encoded", "rename", "empty", {"wrong_refusal"}),
    ],
)
def test_a_refusal_says_what_is_wrong(kind: str, way: str, code: str, found: set[str]) -> None:
    """A refusal must be the one that the file asks for, or one for now."""
    assert codes(judge_refusal(sent(kind, way), code, NOW)) == found


def test_what_must_be_refused_is_not_answered() -> None:
    """Results for a file that is no job are a violation."""
    assert codes(judge_answer(sent("encoded"), ID, NOW)) == {"wrong_refusal"}


def test_a_file_without_an_answer_is_lost() -> None:
    """At the end each file that was dropped has its answer."""
    answered, waiting = sent(), sent()
    answered.final = True
    assert judge_end([answered], NOW) == []
    assert codes(judge_end([answered, waiting], NOW)) == {"lost"}


# -- the service ---------------------------------------------------------------------------


def document(seq: int, pid: int = 7, **job: int) -> bytes:
    """A health document with one job, as far as the witness looks."""
    counts = {"id": ID, "name": "job", "requests": 9, "completed": 0, "failed": 0} | job
    health = {"seq": seq, "pid": pid, "stale_after_s": 10.0, "written_at": 1.0, "jobs": [counts]}
    return json.dumps(health).encode()


def seen(*looks: tuple[float, bytes | None, float | None]) -> set[str]:
    """The faults of a health that was looked at so: when, what, alive since when."""
    health = Health(schema_every=1000, looks=1)
    for now, raw, alive_since in looks:
        health.look(raw, now, alive_since)
    return codes(health.faults)


def test_the_health_of_a_daemon_that_lives_is_renewed() -> None:
    """One document for too long is stale, but not across a stop or a start."""
    assert seen((0, document(1), 0), (9, document(2), 0), (20, document(3), 0)) == set()
    assert seen((0, document(1), 0), (30, document(1), 0)) == {"status_stale"}
    assert seen((0, document(1), 0), (30, document(1), None), (31, document(1), 30)) == set()


def test_the_health_goes_forward() -> None:
    """Neither its number nor the outcomes of a job fall while one daemon lives."""
    assert seen((0, document(2), 0), (1, document(1), 0)) == {"status_backwards"}
    assert seen((0, document(2), 0), (1, document(1, pid=8), 1)) == set()
    falls = (0, document(1, completed=5), 0), (1, document(2, completed=4), 0)
    assert seen(*falls) == {"count_fell"}


def test_outcomes_are_no_more_than_requests() -> None:
    """A job with more outcomes than requests is found."""
    assert seen((0, document(2, completed=5, failed=5), 0)) == {"count_wrong"}


@pytest.mark.parametrize("raw", [b"", b"{", b'{"seq": 1}'])
def test_the_health_is_always_whole(raw: bytes) -> None:
    """What is no document, or breaks its schema, is found; so is one that is gone."""
    health = Health(schema_every=1)
    health.look(raw, 0, 0)
    assert codes(health.faults) == {"status_invalid"}
    assert seen((0, document(1), 0), (1, None, 0)) == {"status_invalid"}


def test_without_a_daemon_the_health_does_not_change() -> None:
    """A document that changes while no daemon lives was written by another."""
    assert seen((0, document(1), None), (1, document(1), None)) == set()
    assert seen((0, document(1), None), (1, document(2), None)) == {"status_of_the_dead"}


def test_a_dead_service_is_not_taken_for_up() -> None:
    """A reader goes by the age of the document, whatever it says."""
    health = json.dumps({"written_at": 100.0, "stale_after_s": 10.0, "status": "healthy"}).encode()
    assert claims_to_be_up(health, 105)
    assert not claims_to_be_up(health, 111)


def test_the_health_counts_what_was_published() -> None:
    """What `recent` says of a job is what its folder holds."""
    status: Json = {"recent": [{"id": ID, "name": "job", "completed": 2, "failed": 1}]}
    again = status["recent"][0] | {"completed": None, "failed": None}
    assert judge_counts({"recent": [*status["recent"], again]}, {ID: (2, 1)}, NOW) == []
    assert codes(judge_counts(status, {ID: (3, 0)}, NOW)) == {"count_wrong"}


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (End(50, 1), {"daemon_ended"}),
        (End(50, -9, "SIGKILL"), set()),
        (End(50, 0, "SIGTERM", 5), set()),
        (End(50, 1, "SIGTERM", 5), {"stop_failed"}),
        (End(50, 0, "SIGTERM", 50), {"stop_slow"}),
    ],
)
def test_the_daemon_ends_only_when_it_is_asked_to(end: End, found: set[str]) -> None:
    """An end by itself, a stop that fails and a stop that takes too long are found."""
    history = History(ends=[end])
    assert codes(judge_ends(history, Rules())) == found


def test_a_full_disk_may_end_the_daemon() -> None:
    """A ledger that cannot be written ends it, but only then."""
    history = History(ends=[End(50, 1)])
    history.short.begin(45)
    history.short.end(47)
    assert judge_ends(history, Rules()) == []
    history.ends.append(End(90, 1))
    assert codes(judge_ends(history, Rules())) == {"daemon_ended"}


def sample(at: float, **more: int) -> Sample:
    """A small daemon."""
    figures = {"rss_bytes": 80, "peak_bytes": 90, "ledger_bytes": 1, "log_bytes": 1}
    sizes = {name: size << 20 for name, size in figures.items()}
    return Sample(**({"at": at, "pid": 7, "descriptors": 20, "idle": True} | sizes | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "more",
    [
        {"peak_bytes": 2 << 30},
        {"ledger_bytes": 1 << 30},
        {"log_bytes": 1 << 30},
        {"descriptors": 500},
        {"rss_bytes": 400 << 20},
    ],
    ids=lambda more: next(iter(more)),
)
def test_nothing_grows_without_bound(more: dict[str, int]) -> None:
    """Memory, descriptors, ledger and log of a life are held to their bounds."""
    small = [sample(at) for at in range(30)]
    assert judge_growth(small, 100, Bounds()) == []
    grown = [*small[:15], *(sample(at, **more) for at in range(15, 30))]
    assert codes(judge_growth(grown, 100, Bounds())) == {"grew"}


def test_a_run_without_measures_is_no_proof() -> None:
    """Nothing measured is a violation of its own."""
    assert codes(judge_growth([], 1, Bounds())) == {"grew"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"event": "loop_ended"}\n', {"log_fault"}),
        (b'{"event": "quarantined"}\n', {"log_fault"}),
        (TRACE % b"inbox_daemon/x.py", {"log_fault"}),
        (TRACE % b"asyncio/x.py", {"log_fault"}),
        (TRACE % b"watchdog/x.py", {"log_fault"}),
        (b'{"event": "job_queued"}\n{"event": "half', set()),
    ],
)
def test_the_log_has_no_fault(line: bytes, found: set[str]) -> None:
    """Events that mean a fault of the daemon's own, and tracebacks, are found."""
    lines = line.splitlines(keepends=True)
    assert codes(judge_log(lines, Counter(), filled=False)) == found


def test_nothing_lies_about_at_the_end() -> None:
    """Files in the daemon's own folders, temporary ones and quarantine are found."""
    rest = ["daemon.lock", "ledger/data.mdb", "outbox/status.json", "inbox/odd"]
    assert judge_left(rest, {"inbox/odd"}) == []
    for path in ("running/x/results.part", "inbox/a.jsonl", "outbox/.status.json.tmp"):
        assert codes(judge_left([*rest, path], {"inbox/odd"})) == {"left_over"}
    assert codes(judge_left(["quarantine/x"], set())) == {"quarantined"}


# -- what it goes by -------------------------------------------------------------------------


def test_the_journal_is_read_as_it_grows(tmp_path: Path) -> None:
    """A half-written line waits for its other half."""
    path, history = tmp_path / "server.jsonl", History()
    journal = Journal(path, history)
    journal.catch_up()
    line = {"at": 1, "server": "a", "n": 1, "what": "begun", "id": f"batch_req_{ID}_1"}
    data = json.dumps(line | {"text": "t"}).encode() + b"\n"
    path.write_bytes(data + data[:10])
    journal.catch_up()
    assert history.begun == 1
    path.write_bytes(data + data)
    journal.catch_up()
    assert history.begun == 2


def test_a_seed_makes_the_same_files() -> None:
    """What is sent follows from the seed, and no two files have the same content."""
    first, second = ([make_job(random.Random(7), f"j{n}") for n in range(200)] for _ in range(2))
    assert [job.sha256 for job in first] == [job.sha256 for job in second]
    rng = random.Random(8)
    jobs = [make_job(rng, f"j{n}") for n in range(600)]
    assert len({job.sha256 for job in jobs}) == len(jobs)
    assert {job.kind for job in jobs} == {VALID, *REFUSED}

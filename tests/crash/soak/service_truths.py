"""What must be true of the service: its health, its ends, its memory, its log, its folders.

Purpose: the truths that belong to no single job.
Invariants: as truths.py; every function is pure but for `list_left`, which looks at folders.
"""

import contextlib
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from job_files import Json, schema
from soak.history import End, History, Rules, Violation

# What a loaded machine may add to the time in which the health must be renewed.
_LATE_S = 8.0
_SPARE_DESCRIPTORS = 60
_SPARE_BYTES = 120 << 20
# Events of the log that say that something went wrong in the daemon itself.
FATAL_EVENTS = frozenset(
    {"loop_ended", "engine_supervision_failed", "hint_failed", "job_vanished", "job_damaged"}
)
# What may lie in a spool whose queue is empty, beside inbox/, outbox/ and rejected/.
_AT_REST = re.compile(
    r"ledger/[^/.][^/]*|daemon\.lock|config\.toml|outbox/status\.json|rejected/[^/]+\.options\.kept"
)


@dataclass
class Health:
    """Watches outbox/status.json; a life is the time from a start of the daemon to its end."""

    schema_every: int = 20
    faults: list[Violation] = field(default_factory=list)
    last: Json | None = None
    looks: int = 0
    worst_s: float = 0.0
    _changed_at: float = 0.0
    _raw: bytes = b""
    _died_with: bytes | None = None

    def look(self, raw: bytes | None, now: float, alive_since: float | None) -> None:
        """Take what was read at `now`; `alive_since` is None while no daemon lives.

        A daemon that was stopped and goes on lives since then. All times are monotonic.
        """
        if raw is None:
            if self.last is not None:
                self._add("status_invalid", "the health is gone", now)
            return
        if alive_since is None:
            self._look_at_the_dead(raw, now)
            return
        self._died_with = None
        status = self._parse(raw, now)
        if status is None:
            return
        self._compare(status, now)
        self._raw = raw
        if self.last is None or (status["pid"], status["seq"]) != (
            self.last["pid"],
            self.last["seq"],
        ):
            self._changed_at = now
        self.last = status
        old_s = now - max(self._changed_at, alive_since)
        self.worst_s = max(self.worst_s, old_s)
        if old_s > status["stale_after_s"] + _LATE_S:
            self._add("status_stale", f"document {status['seq']} was shown for {old_s:.1f} s", now)
            self._changed_at = now

    def _parse(self, raw: bytes, now: float) -> Json | None:
        try:
            status: Json = json.loads(raw)
            self.looks += 1
            if self.looks % self.schema_every == 1 or self.schema_every == 1:
                schema("status").validate(status)
        except Exception as error:  # noqa: BLE001 - whatever it raises is the finding
            self._add("status_invalid", f"{error!r:.300}", now)
            return None
        return status

    def _compare(self, status: Json, now: float) -> None:
        for job in status["jobs"]:
            if job["completed"] + job["failed"] > job["requests"]:
                self._add("count_wrong", f"{job['name']} has more outcomes than requests", now)
        last = self.last
        if last is None or last["pid"] != status["pid"]:
            return
        if status["seq"] < last["seq"]:
            self._add("status_backwards", f"from {last['seq']} to {status['seq']}", now)
        before = {job["id"]: job for job in last["jobs"]}
        for job in status["jobs"]:
            done, known = job["completed"] + job["failed"], before.get(job["id"])
            if known and done < known["completed"] + known["failed"]:
                self._add("count_fell", f"{job['name']}: {known} then {job}", now)

    def _look_at_the_dead(self, raw: bytes, now: float) -> None:
        """Without a daemon nothing is written."""
        if self._died_with is not None and raw != self._died_with:
            self._add("status_of_the_dead", "it changed while no daemon lived", now)
        self._died_with = raw

    def _add(self, code: str, what: str, now: float) -> None:
        self.faults.append(Violation(code, what, now))


def claims_to_be_up(raw: bytes, now: float) -> bool:
    """Whether a reader takes the service for up, by docs/OPERATING.md; `now` since 1970."""
    health = json.loads(raw)
    fresh = now - health["written_at"] <= health["stale_after_s"]
    return bool(fresh and health["status"] != "unhealthy")


def judge_counts(
    status: Json, published: dict[str, tuple[int, int]], now: float
) -> list[Violation]:
    """What the health says of jobs that ended, against their folders.

    `published` has the lines of output.jsonl and errors.jsonl by the job's id.
    """
    found = []
    for job in status["recent"]:
        lines = published.get(job["id"])
        if job["completed"] is None:  # a redelivery, which has no outcomes of its own
            continue
        if lines is not None and lines != (job["completed"], job["failed"]):
            shown = (job["completed"], job["failed"])
            found.append(
                Violation("count_wrong", f"{job['name']}: {shown}, published {lines}", now)
            )
    return found


def judge_ends(history: History, rules: Rules) -> list[Violation]:
    """The daemon ends when it is asked to, in time, and else only over a full disk."""
    found = []
    for end in history.ends:
        if not end.asked and not _disk_excuses(end, history):
            found.append(Violation("daemon_ended", f"by itself, with {end.status}", end.at))
        if end.asked == "SIGTERM" and end.status != 0:
            found.append(Violation("stop_failed", f"SIGTERM ended it with {end.status}", end.at))
        if end.asked == "SIGTERM" and end.took_s > rules.stop_s:
            found.append(Violation("stop_slow", f"SIGTERM took {end.took_s:.1f} s", end.at))
    return found


def _disk_excuses(end: End, history: History) -> bool:
    return end.status == 1 and history.short.touch(end.at - 10, end.at)


# -- growth --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the daemon's process and at what it writes; `idle` is without open jobs."""

    at: float
    pid: int
    rss_bytes: int
    peak_bytes: int
    descriptors: int
    ledger_bytes: int
    log_bytes: int
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is too much, in bytes; the log's is for each job, kill or minute."""

    memory: int = 700 << 20
    ledger: int = 128 << 20
    log: int = 60_000


def judge_growth(samples: Sequence[Sample], weights: int, bounds: Bounds) -> list[Violation]:
    """Nothing grows without bound; `weights` is how many things happened that are logged."""
    if not samples:
        return [Violation("grew", "nothing was measured")]
    found, last = [], samples[-1]
    peak = max(sample.peak_bytes for sample in samples)
    if peak > bounds.memory:
        found.append(Violation("grew", f"memory up to {peak >> 20} MiB", last.at))
    if (ledger := max(sample.ledger_bytes for sample in samples)) > bounds.ledger:
        found.append(Violation("grew", f"the ledger to {ledger >> 20} MiB", last.at))
    if last.log_bytes > bounds.log * max(weights, 1):
        what = f"the log to {last.log_bytes >> 10} KiB for {weights} events"
        found.append(Violation("grew", what, last.at))
    for pid in dict.fromkeys(sample.pid for sample in samples):
        found += _judge_life([s for s in samples if s.pid == pid and s.idle])
    return found


def _judge_life(idle: list[Sample]) -> list[Violation]:
    """Within one life: what is held without work at its end, against its beginning."""
    if len(idle) < 10:
        return []
    third = len(idle) // 3
    first, last = idle[:third], idle[-third:]
    found = []
    grown = statistics.median(s.descriptors for s in last) - min(s.descriptors for s in first)
    if grown > _SPARE_DESCRIPTORS:
        found.append(Violation("grew", f"{grown:.0f} descriptors more when idle", last[-1].at))
    bytes_more = statistics.median(s.rss_bytes for s in last) - 2 * max(s.rss_bytes for s in first)
    if bytes_more > _SPARE_BYTES:
        what = f"idle memory from {first[0].rss_bytes >> 20} to {last[-1].rss_bytes >> 20} MiB"
        found.append(Violation("grew", what, last[-1].at))
    return found


# -- the log and the folders ------------------------------------------------------------------


def judge_log(lines: Iterable[bytes], figures: Counter[str], *, filled: bool) -> list[Violation]:
    """The log has no fault of the daemon's own; `filled` says that the disk was ever full."""
    found, loose = [], b""
    for line in lines:
        if not line.startswith(b"{"):
            loose += line
            continue
        with contextlib.suppress(ValueError):  # the last line of one that was killed
            event = json.loads(line)
            figures[f"log {event['event']}"] += 1
            fatal = event["event"] in FATAL_EVENTS
            if event["event"] == "loop_ended" and filled:
                continue  # a ledger that cannot be written; judge_ends looks at the time
            if fatal or (event["event"] == "quarantined"):
                found.append(Violation("log_fault", line[:600].decode(errors="replace")))
    return found + _judge_loose(loose)


def _judge_loose(loose: bytes) -> list[Violation]:
    """What stands between the log's events."""
    count = loose.count(b"Traceback")
    return [Violation("log_fault", loose[-800:].decode(errors="replace"))] if count else []


def list_left(spool: Path) -> list[str]:
    """Every file below a spool, by its path in it."""
    return sorted(str(p.relative_to(spool)) for p in spool.rglob("*") if not p.is_dir())


def judge_left(left: Iterable[str], ours: set[str]) -> list[Violation]:
    """After the end nothing lies about; `ours` are paths that the soak itself has left there."""
    found = []
    for path in left:
        if path in ours or _AT_REST.fullmatch(path):
            continue
        code = "quarantined" if path.startswith("quarantine/") else "left_over"
        found.append(Violation(code, path))
    return found

"""Intake: from a drop in inbox/ to queued/ or rejected/.

Purpose: scan, ask the gate, claim by copying, validate the copy, answer.
Invariants: the scan decides and a hint only wakes it; what is validated is our own
copy, so a sender that still holds the file open cannot change it; a job's record is
in the ledger before its file is in queued/, and its file there before the drop is
taken away, so a crash at any point ends in the same answer; one drop is taken at a
time, so the queue's limits hold.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ulid import ULID

from inbox_daemon import documents, durable, gate, limits
from inbox_daemon.config import Config
from inbox_daemon.gate import Pass, Refuse, Wait
from inbox_daemon.jobqueue import JobQueue
from inbox_daemon.ledger import Ledger
from inbox_daemon.model import Fault, Reason, RecentJob, WaitingDrop
from inbox_daemon.records import JobRecord
from inbox_daemon.settling import Settling, Sighting, Signature
from inbox_daemon.spool import Spool
from inbox_daemon.validation import Served, Validation, validate_file
from inbox_daemon.watch import Entry, Kind, Scan, Watcher, scan

log = logging.getLogger("inbox_daemon.intake")

MAX_WAITING = 100
# The directory itself may be gone for a moment; entries that are never jobs.
_MARKER = gate.JOB_SUFFIX + gate.READY_SUFFIX


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a drop: exactly one of the fields is set, none when it waits."""

    queued: JobRecord | None = None
    rejected: Reason | None = None
    redelivered: JobRecord | None = None
    wait: Wait | None = None


@dataclass(slots=True)
class Claim:
    """Our own copy of a drop."""

    job_id: str
    name: str
    signature: Signature
    sha256: str
    size: int


@dataclass(slots=True)
class Intake:
    """The loop that empties inbox/."""

    config: Config
    spool: Spool
    ledger: Ledger
    queue: JobQueue
    served: Callable[[], Served]
    on_change: Callable[[], None]
    waiting: list[WaitingDrop] = field(default_factory=list)
    validating: str | None = None
    paused: str | None = None
    problem: str | None = None
    _settling: Settling = field(init=False)
    _mismatched: dict[str, Signature] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    def __post_init__(self) -> None:
        """Start with no memory of earlier scans."""
        self._settling = Settling(self.config.intake.settle_s)

    # -- the loop -------------------------------------------------------------------

    async def run(self) -> None:
        """Scan until stopped.

        Raises what must end the daemon: LedgerError, or an OSError of our own folders.
        """
        loop = asyncio.get_running_loop()

        def hint() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        with Watcher([self.spool.inbox], hint) as watcher:
            while not self._stopping:
                await self._scan_once(watcher)
                await self._pause()

    def stop(self) -> None:
        """Finish the drop in hand and end."""
        self._stopping = True
        self._wake.set()

    def wake(self) -> None:
        """Scan now: there is room again."""
        self._wake.set()

    async def _pause(self) -> None:
        """Wait for a hint or for the next scan, whichever is first."""
        try:
            await asyncio.wait_for(self._wake.wait(), self.config.intake.scan_interval_s)
        except TimeoutError:
            return
        self._wake.clear()
        # Events come in bursts; one scan answers all of them.
        await asyncio.sleep(min(0.05, self.config.intake.scan_interval_s / 4))

    async def _scan_once(self, watcher: Watcher) -> None:
        now = time.monotonic()
        try:
            seen = await asyncio.to_thread(scan, self.spool.inbox)
        except OSError as error:
            await asyncio.to_thread(watcher.check, {self.spool.inbox: None})
            self.problem = f"inbox/ cannot be read: {error.strerror}; make the folder again"
            return
        self.problem = None
        await asyncio.to_thread(watcher.check, {self.spool.inbox: seen.identity})
        await self._answer_all(seen, now)

    async def _answer_all(self, seen: Scan, now: float) -> None:
        own = os.geteuid()
        sightings = [
            Sighting(entry.name, entry.signature, own in {0, entry.uid})
            for entry in seen.entries
            if entry.kind is Kind.FILE
        ]
        settled = set(self._settling.observe(now, sightings))
        waiting: list[WaitingDrop] = []
        for entry in sorted(seen.entries, key=lambda entry: entry.signature.ctime_ns):
            if self._stopping:
                return
            wait = await self._answer(entry, entry.name in settled, now)
            if wait is not None and len(waiting) < MAX_WAITING:
                since = self._settling.unchanged_for(entry.name, now)
                waiting.append(
                    WaitingDrop(name=gate.escape(entry.name), why=wait.why, since_s=round(since, 1))
                )
        self.waiting = waiting

    async def _answer(self, entry: Entry, settled: bool, now: float) -> Wait | None:  # noqa: FBT001
        """Deal with one entry; return why it stays, if it does."""
        if entry.name.endswith(_MARKER):
            return self._marker_wait(entry)
        wait = gate.check_entry(entry) or self._hold()
        if wait is None:
            wait = await self._take(entry, settled=settled)
        if wait is None or wait.overdue is None:
            return wait
        if self._settling.unchanged_for(entry.name, now) < self.config.intake.incomplete_s:
            return wait
        reason = await asyncio.to_thread(self._reject_drop, entry.name, wait.overdue)
        self._note(Answer(rejected=reason))
        return None

    def _marker_wait(self, entry: Entry) -> Wait | None:
        job = self.spool.inbox / entry.name.removesuffix(gate.READY_SUFFIX)
        return None if job.exists() else Wait("it is a marker without its file")

    def _hold(self) -> Wait | None:
        """Leave everything where it is while there is no room for it."""
        if self.paused:
            return Wait(self.paused)
        if self.config.intake.on_full == "hold":
            full = limits.check_queue(self.queue.load(), self.config.limits)
            return Wait(full.message) if full else None
        return None

    async def _take(self, entry: Entry, *, settled: bool) -> Wait | None:
        if self._mismatched.get(entry.name) == entry.signature:
            return self._mismatch()
        self.validating = gate.escape(entry.name) if settled else None
        try:
            answer = await asyncio.to_thread(self._answer_drop, entry, settled=settled)
        finally:
            self.validating = None
        self._note(answer)
        return answer.wait

    def _note(self, answer: Answer) -> None:
        """Tell the queue, the log and the status; on the event loop."""
        if answer.wait is not None:
            return
        if answer.queued is not None:
            self.queue.add(answer.queued)
            log.info(
                "job_queued",
                extra={"job": answer.queued.name, "requests": answer.queued.requests},
            )
        elif answer.rejected is not None:
            self.queue.note(documents.recent_rejected(answer.rejected))
            log.warning(
                "job_rejected",
                extra={"job": answer.rejected.name, "code": answer.rejected.code},
            )
        elif answer.redelivered is not None:
            job = answer.redelivered
            words = f"the same file as job {job.id}; it is not run again"
            self.queue.note(
                RecentJob(
                    id=job.id,
                    name=job.name,
                    status="redelivered",
                    at=int(time.time()),
                    message=words,
                )
            )
            log.info("job_redelivered", extra={"job": job.name, "id": job.id})
        self.on_change()

    # -- one drop, in a thread ------------------------------------------------------

    def _answer_drop(self, entry: Entry, *, settled: bool) -> Answer:
        verdict = gate.check_drop(self.spool, entry, self.config, settled=settled)
        if isinstance(verdict, Wait):
            return Answer(wait=verdict)
        if isinstance(verdict, Refuse):
            return Answer(rejected=self._reject_drop(entry.name, verdict.fault))
        try:
            claim = self._claim(entry.name, verdict)
        finally:
            os.close(verdict.fd)
        if isinstance(claim, Wait):
            return Answer(wait=claim)
        return self._answer_claim(claim)

    def _claim(self, name: str, passed: Pass) -> Claim | Wait:
        """Copy the drop, and be sure that it did not change meanwhile."""
        job_id = str(ULID())
        limit = self.config.limits.max_file_bytes
        sha256, size = self.spool.claim(passed.fd, job_id, limit)
        changed = Signature.of(os.fstat(passed.fd)) != passed.signature
        if changed or size != passed.signature.size or durable.has_writer(passed.fd):
            self.spool.drop_claim(job_id)
            return Wait("it changed while it was copied")
        if passed.sha256 not in {None, sha256}:
            self.spool.drop_claim(job_id)
            self._mismatched[name] = passed.signature
            return self._mismatch()
        return Claim(job_id, name, passed.signature, sha256, size)

    @staticmethod
    def _mismatch() -> Wait:
        message = "its content does not have the sha256 that its marker promises"
        return Wait(message, Fault(code="truncated", message=f"{message}; send both again"))

    def _answer_claim(self, claim: Claim) -> Answer:
        name = claim.name.removesuffix(gate.JOB_SUFFIX)
        known = self._redelivery(name, claim.sha256)
        if known is not None:
            self._answer_redelivery(known, claim)
            return Answer(redelivered=known)
        faults, found = self._admission(name, claim)
        if faults:
            return Answer(rejected=self._reject_claim(claim, faults, found))
        return Answer(queued=self._admit(name, claim, found))

    def _redelivery(self, name: str, sha256: str) -> JobRecord | None:
        """The job that this file was already: active, or finished not long ago."""
        known = self.ledger.delivered(name, sha256)
        if known is None or known.finished_at is None:
            return known
        age_s = time.time() - known.finished_at
        recent = age_s < self.config.intake.dedup_days * 86400
        return known if recent or self.spool.published_as(known.id, name) else None

    def _answer_redelivery(self, known: JobRecord, claim: Claim) -> None:
        if known.finished_at is not None and known.outbox is not None:
            status = documents.redelivered_status(known, time.time())
            self.spool.put_notice(known.name, documents.pretty(status))
        self._take_away(claim)
        self.spool.drop_claim(claim.job_id)

    def _admission(self, name: str, claim: Claim) -> tuple[list[Fault], Validation]:
        """The validator's yes (no faults) or no."""
        rules, load, found = self.config.limits, self.queue.load(), Validation()
        if self.queue.named(name) or self.spool.holds_results(name):
            return [_name_in_use(name)], found
        full = limits.check_queue(load, rules)
        if full is not None:
            return [full], found
        lenient = self.config.intake.on_invalid_line == "dead_letter"
        path = self.spool.claim_path(claim.job_id)
        found = validate_file(path, rules, self.served(), keep_invalid=lenient)
        if not found.accepted(dead_letter_lines=lenient):
            return found.listed, found
        crowded = limits.check_requests(load, found.requests, rules)
        return ([crowded] if crowded else []), found

    def _admit(self, name: str, claim: Claim, found: Validation) -> JobRecord:
        record = JobRecord(
            id=claim.job_id,
            name=name,
            sha256=claim.sha256,
            bytes=claim.size,
            requests=found.requests,
            endpoint=found.endpoint,
            model=found.model,
            created_at=time.time(),
            invalid=len(found.invalid),
        )
        self.ledger.accept(record, found.invalid)
        self.spool.admit(claim.job_id)
        self.spool.clear_notice(name)
        self._take_away(claim)
        return record

    def _take_away(self, claim: Claim) -> None:
        self.spool.take_away(claim.name, claim.signature, claim.job_id)
        self.spool.remove_marker(claim.name + gate.READY_SUFFIX)

    # -- rejections -----------------------------------------------------------------

    def _reject_claim(self, claim: Claim, faults: list[Fault], found: Validation) -> Reason:
        reason = self._reject(
            claim.job_id,
            claim.name,
            faults,
            count=found.faults,
            sha256=claim.sha256,
            size=claim.size,
            requests=found.requests,
        )
        self._take_away(claim)
        return reason

    def _reject_drop(self, name: str, fault: Fault) -> Reason:
        """Refuse a drop that was never claimed: the file itself goes to rejected/."""
        self.spool.remove_marker(name + gate.READY_SUFFIX)
        return self._reject(str(ULID()), name, [fault])

    def _reject(  # noqa: PLR0913 - the parts of one refusal
        self,
        job_id: str,
        name: str,
        faults: list[Fault],
        *,
        count: int = 0,
        sha256: str | None = None,
        size: int | None = None,
        requests: int = 0,
    ) -> Reason:
        stem = gate.safe_stem(name)
        target = self.spool.rejected_as(stem, job_id)
        shown = name.removesuffix(gate.JOB_SUFFIX) if gate.is_job_name(name) else gate.escape(name)
        why = documents.reason(
            job_id,
            shown,
            faults,
            time.time(),
            count=count,
            sha256=sha256,
            size=size,
            file=f"{target}.jsonl",
        )
        source = self.spool.claim_path(job_id) if sha256 else self.spool.inbox / name
        self.spool.reject(job_id, target, documents.pretty(why), source)
        if self.queue.named(stem) is None:
            notice = documents.refused_status(why, requests)
            self.spool.put_notice(stem, documents.pretty(notice))
        return why


def _name_in_use(name: str) -> Fault:
    message = (
        f"another job named {name} is active or its folder lies in outbox/; "
        "collect that first, or send this file under another name"
    )
    return Fault(code="name_in_use", message=message)

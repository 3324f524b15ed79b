"""Admission: claim a drop, validate our copy, and carry out the yes or no.

Purpose: what happens to one drop that the gate has passed, up to its answer.
Invariants: everything here blocks and runs in one thread at a time; what is validated
is our own copy, so a sender that still holds the file open cannot change it; a job's
record is in the ledger before its file is in queued/, and its file there before the
drop is taken away, so a crash at any point ends in the same answer.
"""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from pydantic import ValidationError
from ulid import ULID

from inbox_daemon.contract import job_documents, limits
from inbox_daemon.contract.config import Config
from inbox_daemon.contract.documents import Fault, JobOptions, Refusal
from inbox_daemon.contract.names import (
    JOB_SUFFIX,
    OPTIONS_SUFFIX,
    escape,
    is_control_name,
    is_job_name,
    safe_stem,
    sidecars_of,
)
from inbox_daemon.contract.records import DeadLetter, JobRecord
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake import gate
from inbox_daemon.intake.gate import Pass, Refuse, Wait
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.validation import Served, Validation, validate_file
from inbox_daemon.spool import STUCK, Spool, durable
from inbox_daemon.spool.entries import DirEntry, Signature

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

# A file of inbox/: its lane and its name.
Key = tuple[Priority, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a drop: exactly one of these."""

    queued: JobRecord | None = None
    rejected: Refusal | None = None
    redelivered: JobRecord | None = None
    wait: Wait | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """Our own copy of a drop; `signature` is None where there was no drop, but a redrive."""

    job_id: str
    name: str
    priority: Priority
    sha256: str
    size: int
    signature: Signature | None
    redrive_of: str | None = None
    redriven: list[tuple[int, DeadLetter]] = field(default_factory=list)

    @property
    def job(self) -> str:
        """The job's name."""
        return self.name.removesuffix(JOB_SUFFIX)


@dataclass(slots=True)
class Admission:
    """Answers drops, one at a time."""

    config: Config
    spool: Spool
    ledger: Ledger
    queue: ActiveJobs
    served: Callable[[], Served]
    # What was found out about files that still lie in inbox/ and need not be read again.
    _mismatched: dict[Key, tuple[Signature, str | None]] = field(default_factory=dict)
    _held: dict[Key, tuple[Signature, int]] = field(default_factory=dict)
    _stuck: dict[Key, tuple[Signature, str]] = field(default_factory=dict)

    def answer(self, entry: DirEntry, priority: Priority, *, settled: bool) -> Answer:
        """Take one drop through gate and validator.

        Raises LedgerError: the ledger cannot be written; the daemon must end.
        """
        known = self._still_stuck(entry, priority) or self._still_held(entry, priority)
        if known is not None:
            return Answer(wait=known)
        verdict = gate.check_drop(self.spool, entry, priority, self.config, settled=settled)
        if isinstance(verdict, Wait):
            return Answer(wait=verdict)
        if isinstance(verdict, Refuse):
            return self.reject_drop(entry, priority, verdict.fault)
        try:
            claim = self._claim(entry.name, priority, verdict)
        finally:
            os.close(verdict.fd)
        return Answer(wait=claim) if isinstance(claim, Wait) else self.answer_claim(claim)

    def _claim(self, name: str, priority: Priority, passed: Pass) -> Claim | Wait:
        """Copy the drop, and be sure that it did not change meanwhile."""
        # The marker counts too: its sender may correct it without touching the file.
        looked_at = passed.signature, passed.sha256
        if self._mismatched.get((priority, name)) == looked_at:
            return _mismatch()
        job_id = str(ULID())
        try:
            sha256, size = self.spool.claim(passed.fd, job_id, self.config.limits.max_file_bytes)
        except OSError as error:
            self.spool.discard_claim(job_id)
            if error.errno in _DISK_FULL:
                return Wait("there is no room on the disk to take it")
            return Wait(f"it cannot be copied: {error.strerror}")
        changed = Signature.of(os.fstat(passed.fd)) != passed.signature
        if changed or size != passed.signature.size or durable.has_writer(passed.fd):
            self.spool.discard_claim(job_id)
            return Wait("it changed while it was copied")
        if passed.sha256 not in {None, sha256}:
            self.spool.discard_claim(job_id)
            self._mismatched[priority, name] = looked_at
            return _mismatch()
        return Claim(job_id, name, priority, sha256, size, passed.signature)

    def _still_stuck(self, entry: DirEntry, priority: Priority) -> Wait | None:
        """What was said of a file that was answered and that nobody may move."""
        signature, why = self._stuck.get((priority, entry.name), (None, ""))
        return Wait(why) if signature == entry.signature else None

    def _still_held(self, entry: DirEntry, priority: Priority) -> Wait | None:
        """Why a job that had no room still has none, without reading it again."""
        signature, requests = self._held.get((priority, entry.name), (None, 0))
        if signature != entry.signature:
            return None
        crowded = limits.check_requests(self.queue.load(), requests, self.config.limits)
        return Wait(crowded.message) if crowded else None

    def answer_claim(self, claim: Claim) -> Answer:
        """Say yes or no to a claim and carry it out."""
        known = self._redelivery(claim.job, claim.sha256)
        if known is not None:
            stuck = self._answer_redelivery(known, claim)
            return Answer(wait=stuck) if stuck else Answer(redelivered=known)
        faults, found, options = self._examine(claim)
        if self._may_hold(faults, found, claim):
            self.spool.discard_claim(claim.job_id)
            return Answer(wait=Wait(faults[0].message))
        if faults:
            return self._reject_claim(claim, faults, found)
        return Answer(queued=self._admit(claim, found, options))

    def _may_hold(self, faults: list[Fault], found: Validation, claim: Claim) -> bool:
        """Leave a good job in inbox/ that only has no room yet, if the operator wants that."""
        if self.config.intake.on_full != "hold" or claim.signature is None:
            return False
        if [fault.code for fault in faults] != ["too_many_queued_requests"]:
            return False
        if found.requests > self.config.limits.max_total_queued_requests:
            return False  # it never will have
        self._held[claim.priority, claim.name] = claim.signature, found.requests
        return True

    # -- re-deliveries --------------------------------------------------------------

    def _redelivery(self, name: str, sha256: str) -> JobRecord | None:
        """The job that this file was already: active, or finished not long ago."""
        known = self.ledger.delivered(name, sha256)
        if known is None or known.finished_at is None:
            return known
        recent = time.time() - known.finished_at < self.config.intake.dedup_days * 86400
        return known if recent or self.spool.published_as(known.id, name) else None

    def _answer_redelivery(self, known: JobRecord, claim: Claim) -> Wait | None:
        collected = self.spool.published_as(known.id, known.name) is None
        if known.finished_at is not None and collected:
            status = job_documents.redelivered_status(known, time.time())
            self.spool.put_notice(known.name, job_documents.pretty(status))
        stuck = self._take_away(claim)
        self.spool.discard_claim(claim.job_id)
        return stuck

    # -- yes ------------------------------------------------------------------------

    def _examine(self, claim: Claim) -> tuple[list[Fault], Validation, JobOptions]:
        """The validator's yes (no faults) or no."""
        rules, load = self.config.limits, self.queue.load()
        found, options = Validation(), self._options(claim)
        if isinstance(options, Fault):
            return [options], found, JobOptions()
        if self.queue.named(claim.job) or self.spool.holds_results(claim.job):
            return [_name_in_use(claim.job)], found, options
        full = limits.check_queue(load, rules)
        if full is not None:
            return [full], found, options
        lenient = self.config.intake.on_invalid_line == "dead_letter"
        path = self.spool.claim_path(claim.job_id)
        found = validate_file(path, rules, self.served(), keep_invalid=lenient)
        if not found.accepted(dead_letter_lines=lenient):
            return found.listed, found, options
        crowded = limits.check_requests(load, found.requests, rules)
        return ([crowded] if crowded else []), found, options

    def _options(self, claim: Claim) -> JobOptions | Fault:
        """The sidecar's wishes, if it lies beside the drop."""
        if claim.signature is None:
            return JobOptions()
        content = gate.read_small(self.spool, claim.job + OPTIONS_SUFFIX, claim.priority)
        if content is None:
            return JobOptions()
        try:
            return JobOptions.model_validate(orjson.loads(content))
        except orjson.JSONDecodeError:
            words = "it is not valid JSON"
        except ValidationError as error:
            first = error.errors()[0]
            words = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        message = f"{claim.job}{OPTIONS_SUFFIX} cannot be used: {words[:300]}"
        return Fault(code="invalid_options", message=message)

    def _admit(self, claim: Claim, found: Validation, options: JobOptions) -> JobRecord:
        now = time.time()
        record = JobRecord(
            id=claim.job_id,
            name=claim.job,
            sha256=claim.sha256,
            bytes=claim.size,
            requests=found.requests,
            endpoint=found.endpoint,
            model=found.model,
            created_at=now,
            lines_sha256=found.digest.hexdigest(),
            invalid=len(found.invalid),
            priority=claim.priority,
            expires_at=now + options.expires_in_s if options.expires_in_s else None,
            max_attempts=options.max_attempts,
            metadata=options.metadata,
            redrive_of=claim.redrive_of,
        )
        self.ledger.accept(record, found.invalid, claim.redriven)
        self.spool.admit(claim.job_id)
        self.spool.clear_notice(claim.job)
        self._take_away(claim)
        return record

    def _take_away(self, claim: Claim) -> Wait | None:
        if claim.signature is None:
            return None
        sidecars = sidecars_of(claim.name)
        try:
            self.spool.take_away(
                claim.name, claim.priority, claim.signature, claim.job_id, sidecars
            )
        except OSError as error:
            return self._note_stuck((claim.priority, claim.name), claim.signature, error, "taken")
        self._forget((claim.priority, claim.name))
        return None

    def _note_stuck(self, key: Key, signature: Signature, error: OSError, what: str) -> Wait:
        """Leave what nobody may move where it is, and let it count once."""
        if error.errno not in STUCK:
            raise error
        why = f"it was {what} but cannot be taken away: {error.strerror}; remove it"
        self._stuck[key] = signature, why
        return Wait(why)

    def _forget(self, key: Key) -> None:
        for known in (self._mismatched, self._held, self._stuck):
            known.pop(key, None)

    def forget_others(self, priority: Priority, names: set[str]) -> None:
        """Forget what is known of files of a lane that lie there no more."""
        for lane, name in [*self._mismatched, *self._held, *self._stuck]:
            if lane is priority and name not in names:
                self._forget((lane, name))

    # -- no -------------------------------------------------------------------------

    def _reject_claim(self, claim: Claim, faults: list[Fault], found: Validation) -> Answer:
        stem = safe_stem(claim.name)
        target = self.spool.rejected_as(stem, JOB_SUFFIX, claim.job_id) + JOB_SUFFIX
        why = job_documents.reason(
            claim.job_id,
            claim.job,
            faults,
            time.time(),
            count=found.faults,
            sha256=claim.sha256,
            size=claim.size,
            file=target,
        )
        # The drop first: a crash puts it back, or it would be refused a second time.
        stuck = self._seize(claim, why.message)
        if stuck is not None:
            self.spool.discard_claim(claim.job_id)
            return Answer(wait=stuck)
        self._show_refusal(why, stem, found.requests)
        self._carry_out(why, target, self.spool.claim_path(claim.job_id))
        return Answer(rejected=why)

    def _seize(self, claim: Claim, message: str) -> Wait | None:
        if claim.signature is None:
            return None
        key, sidecars = (claim.priority, claim.name), sidecars_of(claim.name)
        try:
            self.spool.seize(claim.name, claim.priority, claim.signature, claim.job_id, sidecars)
        except OSError as error:
            return self._note_stuck(key, claim.signature, error, f"refused ({message})")
        self._forget(key)
        return None

    def reject_drop(self, entry: DirEntry, priority: Priority, fault: Fault) -> Answer:
        """Refuse a file that was never claimed: it goes to rejected/ itself.

        One that is gone, or was replaced since it was looked at, is left to the next scan.
        """
        job_id, name = str(ULID()), entry.name
        sidecars = () if is_control_name(name) else sidecars_of(name)
        try:
            source = self.spool.seize(name, priority, entry.signature, job_id, sidecars)
        except OSError as error:
            key, what = (priority, name), f"refused ({fault.message})"
            return Answer(wait=self._note_stuck(key, entry.signature, error, what))
        if source is None:
            return Answer(wait=Wait("it has just changed"))
        stem = safe_stem(name)
        suffix = "" if is_control_name(name) else JOB_SUFFIX
        target = self.spool.rejected_as(stem, suffix, job_id) + suffix
        shown = name.removesuffix(JOB_SUFFIX) if is_job_name(name) else escape(name)
        why = job_documents.reason(job_id, shown, [fault], time.time(), file=target)
        if suffix:
            self._show_refusal(why, stem, 0)
        self._carry_out(why, target, source)
        return Answer(rejected=why)

    def _carry_out(self, why: Refusal, target: str, source: Path) -> None:
        ended = job_documents.ended_rejected(why)
        reason = job_documents.pretty(why)
        self.spool.reject(why.id, target, reason, source, lambda _: self.ledger.record_ended(ended))

    def _show_refusal(self, why: Refusal, stem: str, requests: int) -> None:
        """Put the refusal where the web app looks, unless a job of that name is there."""
        if self.queue.named(stem) is None:
            notice = job_documents.refused_status(why, requests)
            self.spool.put_notice(stem, job_documents.pretty(notice))


def _name_in_use(name: str) -> Fault:
    message = (
        f"another job named {name} is active or its folder lies in outbox/; "
        "collect that first, or send this file under another name"
    )
    return Fault(code="name_in_use", message=message)


def _mismatch() -> Wait:
    message = "its content does not have the sha256 that its marker promises"
    return Wait(message, Fault(code="truncated", message=f"{message}; send both again"))

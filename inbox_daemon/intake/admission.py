"""Admission: claim a drop, decide on our copy, and carry the decision out.

Purpose: what happens to one drop that the gate has passed, up to its answer.
Invariants: everything here blocks and runs in one thread at a time; what is validated
is our own copy, so a sender that still holds the file open cannot change it; `decide`
reads only and returns a value, and `carry_out` is the one place that acts on it; a job's
record is in the ledger before its file is in queued/, and its file there before the
drop is taken away, so a crash at any point ends in the same answer.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
    is_sidecar,
    safe_stem,
    sidecars_of,
)
from inbox_daemon.contract.records import Ended, JobRecord
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake import gate
from inbox_daemon.intake.gate import Pass, Refuse, Wait
from inbox_daemon.jobs import recovery
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.validation import Served, Validation, validate_file
from inbox_daemon.spool import DISK_FULL, OWN_ERRORS, STUCK, Spool, durable
from inbox_daemon.spool.entries import DirEntry, Signature

# Between two attempts to move a file that cannot be moved, in seconds: at first, and at most.
_STUCK_S = 5.0
_STUCK_MAX_S = 600.0
# A file of inbox/: its lane and its name.
Key = tuple[Priority, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a drop: exactly one of these."""

    queued: JobRecord | None = None
    rejected: Refusal | None = None
    redelivered: JobRecord | None = None
    wait: Wait | None = None


class Settled(NamedTuple):
    """The answers that an error had interrupted: the jobs that were queued, and the refusals."""

    queued: list[JobRecord]
    rejected: list[Ended]


@dataclass(frozen=True, slots=True)
class Claim:
    """Our own copy of a drop; `signature` is None where there was no drop, but a redrive.

    Its lines run again, in their order, the dead letters of the job `redrive_of` that have
    the line numbers `redriven`.
    """

    job_id: str
    name: str
    priority: Priority
    sha256: str
    size: int
    signature: Signature | None
    redrive_of: str | None = None
    redriven: Sequence[int] = ()

    @property
    def job(self) -> str:
        """The job's name."""
        return self.name.removesuffix(JOB_SUFFIX)


@dataclass(frozen=True, slots=True)
class Accept:
    """The claim becomes a job."""

    claim: Claim
    found: Validation
    options: JobOptions


@dataclass(frozen=True, slots=True)
class Redelivered:
    """The claim is a job that is active, or was finished not long ago."""

    claim: Claim
    known: JobRecord


@dataclass(frozen=True, slots=True)
class Hold:
    """The claim is good and has no room yet: its drop stays where it is."""

    claim: Claim
    signature: Signature
    requests: int
    why: str


@dataclass(frozen=True, slots=True)
class Reject:
    """The claim is refused; `faults` are those that its reason lists, the first one counts."""

    claim: Claim
    faults: list[Fault]
    found: Validation


@dataclass(frozen=True, slots=True)
class RejectDrop:
    """A file that was never claimed is refused, and goes to rejected/ itself."""

    entry: DirEntry
    priority: Priority
    fault: Fault


Decision = Accept | Redelivered | Hold | Reject | RejectDrop


@dataclass(frozen=True, slots=True)
class _Stuck:
    """A file that cannot be moved, and when that is tried again (monotonic, s).

    `answered` says that its job is known, so that only the file has to go.
    """

    signature: Signature
    why: str
    until: float
    pause_s: float
    answered: bool


@dataclass(slots=True)
class Admission:
    """Answers drops, one at a time."""

    config: Config
    spool: Spool
    ledger: Ledger
    queue: ActiveJobs
    served: Callable[[], Served]
    # Whether an error has interrupted an answer, now or before the start: `settle` is called
    # before the next one.
    unsettled: bool = False
    # What was found out about files that still lie in inbox/ and need not be read again.
    _mismatched: dict[Key, tuple[Signature, str | None]] = field(default_factory=dict)
    _held: dict[Key, tuple[Signature, int]] = field(default_factory=dict)
    _stuck: dict[Key, _Stuck] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take up what recovery could not settle."""
        self.unsettled = bool(self.spool.troubles.below(self.spool.claimed))

    def answer(self, entry: DirEntry, priority: Priority, *, settled: bool) -> Answer:
        """Take one drop through gate and validator.

        Raises LedgerError: the ledger cannot be written; the daemon must end.
        """
        # What is known of an unchanged file that still waits is not found out again.
        key = priority, entry.name
        stuck = self._stuck.get(key)
        if stuck is not None and stuck.signature == entry.signature:
            if time.monotonic() < stuck.until:
                return Answer(wait=Wait(stuck.why))
            if stuck.answered:
                return Answer(wait=self._take_away(key, entry.signature, str(ULID())))
        signature, requests = self._held.get(key, (None, 0))
        if signature == entry.signature:
            crowded = limits.check_requests(self.queue.load(), requests, self.config.limits)
            if crowded is not None:
                return Answer(wait=Wait(crowded.message))
        verdict = gate.check_drop(self.spool, entry, priority, self.config, settled=settled)
        if isinstance(verdict, Wait):
            return Answer(wait=verdict)
        if isinstance(verdict, Refuse):
            return self.carry_out(RejectDrop(entry, priority, verdict.fault))
        try:
            claim = self._claim(entry.name, priority, verdict)
        finally:
            os.close(verdict.fd)
        return Answer(wait=claim) if isinstance(claim, Wait) else self.answer_claim(claim)

    def answer_claim(self, claim: Claim) -> Answer:
        """Decide on a claim and carry that out; raises as `answer`."""
        return self.carry_out(self.decide(claim))

    def reject_drop(self, entry: DirEntry, priority: Priority, fault: Fault) -> Answer:
        """Refuse a file that was never claimed; raises as `answer`."""
        return self.carry_out(RejectDrop(entry, priority, fault))

    def settle(self) -> Settled:
        """Finish or undo what an error has interrupted; return what came of it.

        What cannot be settled yet stays, and is tried again by the next call.
        Raises as `answer`; OSError: one of the spool's own folders cannot be read.
        """
        queued, rejected = list[JobRecord](), list[Ended]()
        left = recovery.settle_claims(self.spool, self.ledger, rejected.append)
        with self.spool.troubles.alone(self.spool.queued, "made to last"):
            durable.sync_dir(self.spool.queued)
            ids = [i for i in self.spool.queued_ids() if i not in self.queue.entries]
            queued += [record for record in map(self.ledger.job, ids) if record is not None]
            self.unsettled = bool(left)
        return Settled(queued, rejected)

    def forget_others(self, priority: Priority, names: set[str]) -> None:
        """Forget what is known of files of a lane that lie there no more."""
        for lane, name in [*self._mismatched, *self._held, *self._stuck]:
            if lane is priority and name not in names:
                self._forget((lane, name))

    def _forget(self, key: Key) -> None:
        for known in (self._mismatched, self._held, self._stuck):
            known.pop(key, None)

    # -- before a claim -------------------------------------------------------------

    def _claim(self, name: str, priority: Priority, passed: Pass) -> Claim | Wait:
        """Copy the drop, and be sure that it did not change meanwhile."""
        # The marker counts too: its sender may correct it without touching the file.
        looked_at = passed.signature, passed.sha256
        message = "its content does not have the sha256 that its marker promises"
        fault = Fault(code="truncated", message=f"{message}; send both again")
        if self._mismatched.get((priority, name)) == looked_at:
            return Wait(message, fault)
        job_id = str(ULID())
        try:
            sha256, size = self.spool.claim(passed.fd, job_id, self.config.limits.max_file_bytes)
        except OSError as error:
            self.spool.discard_claim(job_id)
            if error.errno in DISK_FULL:
                return Wait("there is no room on the disk to take it")
            return Wait(f"it cannot be copied: {error.strerror}")
        changed = Signature.of(os.fstat(passed.fd)) != passed.signature
        if changed or size != passed.signature.size or durable.has_writer(passed.fd):
            self.spool.discard_claim(job_id)
            return Wait("it changed while it was copied")
        if passed.sha256 not in {None, sha256}:
            self.spool.discard_claim(job_id)
            self._mismatched[priority, name] = looked_at
            return Wait(message, fault)
        return Claim(job_id, name, priority, sha256, size, passed.signature)

    # -- decide ---------------------------------------------------------------------

    def decide(self, claim: Claim) -> Decision:  # noqa: PLR0911 - each return is a decision
        """Return what is to become of a claim; nothing is changed."""
        known = self.ledger.delivered(claim.job, claim.sha256)
        if known is not None:
            finished, dedup_s = known.finished_at, self.config.intake.dedup_days * 86400
            waits = self.unsettled and finished is None and known.id not in self.queue.entries
            if waits and claim.signature is not None:
                why = "its answer was interrupted by an error, and is finished first"
                return Hold(claim, claim.signature, known.requests, why)
            # The same file is run again once its job ended long ago and was collected.
            now = self.queue.clock.read().earliest
            recent = finished is None or now - finished < dedup_s
            if recent or self.spool.published_as(known.id, known.name) is not None:
                return Redelivered(claim, known)
        found, options = Validation(), self._options(claim)
        if isinstance(options, Fault):
            return Reject(claim, [options], found)
        rules, load = self.config.limits, self.queue.load()
        if self.queue.named(claim.job) or self.spool.holds_results(claim.job):
            message = (
                f"another job named {claim.job} is active or its folder lies in outbox/; "
                "collect that first, or send this file under another name"
            )
            return Reject(claim, [Fault(code="name_in_use", message=message)], found)
        full = limits.check_queue(load, rules)
        if full is not None:
            return Reject(claim, [full], found)
        lenient = self.config.intake.on_invalid_line == "dead_letter"
        path = self.spool.claim_path(claim.job_id)
        found = validate_file(path, rules, self.served(), keep_invalid=lenient)
        if not found.accepted(dead_letter_lines=lenient):
            return Reject(claim, found.listed, found)
        crowded = limits.check_requests(load, found.requests, rules)
        if crowded is None:
            return Accept(claim, found, options)
        later = crowded.code in limits.RETRYABLE  # else it is more than the queue ever holds
        if self.config.intake.on_full == "hold" and claim.signature is not None and later:
            return Hold(claim, claim.signature, found.requests, crowded.message)
        return Reject(claim, [crowded], found)

    def _options(self, claim: Claim) -> JobOptions | Fault:
        """Return the sidecar's options, if it lies beside the drop, or what is wrong with it."""
        if claim.signature is None:
            return JobOptions()
        content = self._read_options(claim)
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

    def _read_options(self, claim: Claim) -> bytes | None:
        """The options beside the drop, else those of an earlier delivery of the same file."""
        beside = gate.read_small(self.spool, claim.job + OPTIONS_SUFFIX, claim.priority)
        return self.spool.kept_options(claim.job, claim.sha256) if beside is None else beside

    # -- carry out ------------------------------------------------------------------

    def carry_out(self, decision: Decision) -> Answer:
        """Do what was decided, each step in the order that a crash may interrupt.

        Raises LedgerError: the ledger cannot be written; the daemon must end.
        """
        match decision:
            case Accept():
                return Answer(queued=self._accept(decision))
            case Redelivered(claim, known):
                collected = self.spool.published_as(known.id, known.name) is None
                if known.finished_at is not None and collected:
                    status = job_documents.redelivered_status(known, time.time())
                    self.spool.put_notice(known.name, job_documents.pretty(status))
                stuck = self._take_claimed_away(claim)
                self.spool.discard_claim(claim.job_id)
                return Answer(wait=stuck) if stuck else Answer(redelivered=known)
            case Hold(claim, signature, requests, why):
                self._held[claim.priority, claim.name] = signature, requests
                self.spool.discard_claim(claim.job_id)
                return Answer(wait=Wait(why))
            case Reject():
                return self._reject(decision)
            case RejectDrop():
                return self._reject_drop(decision)

    def _accept(self, decision: Accept) -> JobRecord:
        claim, found, options = decision.claim, decision.found, decision.options
        now = self.queue.clock.read().reckoned
        record = JobRecord(
            id=claim.job_id,
            name=claim.job,
            sha256=claim.sha256,
            bytes=claim.size,
            requests=found.requests,
            endpoint=found.endpoint,
            model=found.model,
            created_at=now,
            arrived_at=None if claim.signature is None else now - _waited_s(claim.signature),
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
        # It is a job from here on: what is left to do may wait.
        with self.spool.troubles.alone(self.spool.outbox / claim.job, "replaced"):
            self.spool.clear_notice(claim.job)
        try:
            self._take_claimed_away(claim)
        except OSError as error:  # the drop is found again, and is a re-delivery then
            if error.errno in OWN_ERRORS:
                raise
            self.unsettled = True
        return record

    def _take_claimed_away(self, claim: Claim) -> Wait | None:
        if claim.signature is None:
            return None
        return self._take_away((claim.priority, claim.name), claim.signature, claim.job_id)

    def _take_away(self, key: Key, signature: Signature, job_id: str) -> Wait | None:
        """Remove an answered drop with its sidecars; return why it stays, if it cannot be."""
        priority, name = key
        try:
            self.spool.take_away(name, priority, signature, job_id, sidecars_of(name))
        except OSError as error:
            return self._note_stuck(key, signature, error, "taken", answered=True)
        self._forget(key)
        return None

    def _reject(self, decision: Reject) -> Answer:
        claim, found = decision.claim, decision.found
        stem = safe_stem(claim.name)
        target = self.spool.rejected_as(stem, JOB_SUFFIX, claim.job_id) + JOB_SUFFIX
        why = job_documents.reason(
            claim.job_id,
            claim.job,
            decision.faults,
            time.time(),
            count=found.faults,
            sha256=claim.sha256,
            size=claim.size,
            file=target,
        )
        if claim.signature is not None:
            if why.retryable:
                self._keep_options(claim, target)
            # The drop first: a crash puts it back, or it would be refused a second time.
            key, sidecars = (claim.priority, claim.name), sidecars_of(claim.name)
            try:
                self.spool.take_out(
                    claim.name, claim.priority, claim.signature, claim.job_id, sidecars
                )
            except OSError as error:
                self.spool.discard_claim(claim.job_id)
                what = f"refused ({why.message})"
                return Answer(wait=self._note_stuck(key, claim.signature, error, what))
            self._forget(key)
        self._show_refusal(why, stem, found.requests)
        self._file_refusal(why, target, self.spool.claim_path(claim.job_id))
        return Answer(rejected=why)

    def _keep_options(self, claim: Claim, target: str) -> None:
        """Keep the options of a job that is refused for now: they are its delivery's."""
        options = self._read_options(claim)
        if options is not None:
            self.spool.keep_options(target, options)

    def _reject_drop(self, decision: RejectDrop) -> Answer:
        """One that is gone, or was replaced since it was looked at, is left to the next scan."""
        entry, priority, fault = decision.entry, decision.priority, decision.fault
        job_id, name = str(ULID()), entry.name
        # An order or a sidecar lies in rejected/ under its own name, and speaks of no job's end.
        job = not (is_control_name(name) or is_sidecar(name))
        sidecars = sidecars_of(name) if job else ()
        try:
            source = self.spool.take_out(name, priority, entry.signature, job_id, sidecars)
        except OSError as error:
            key, what = (priority, name), f"refused ({fault.message})"
            return Answer(wait=self._note_stuck(key, entry.signature, error, what))
        if source is None:
            return Answer(wait=Wait("it has just changed"))
        stem = safe_stem(name)
        suffix = JOB_SUFFIX if job else ""
        target = self.spool.rejected_as(stem, suffix, job_id) + suffix
        shown = name.removesuffix(JOB_SUFFIX) if is_job_name(name) else escape(name)
        why = job_documents.reason(job_id, shown, [fault], time.time(), file=target)
        if suffix:
            self._show_refusal(why, stem, 0)
        self._file_refusal(why, target, source)
        return Answer(rejected=why)

    def _show_refusal(self, why: Refusal, stem: str, requests: int) -> None:
        """Put the refusal where the web app looks, unless a job of that name is there.

        One whose name had to be cleaned does not take the place of another's.
        """
        taken = why.name != stem and durable.exists(self.spool.outbox / stem)
        if self.queue.named(stem) is None and not taken:
            notice = job_documents.pretty(job_documents.refused_status(why, requests))
            try:
                self.spool.put_notice(stem, notice)
            except OSError as error:
                # Another user's folder keeps it out; the reason in rejected/ says the same.
                folder = self.spool.outbox / stem
                if error.errno not in STUCK or not os.path.lexists(folder):
                    raise
                self.spool.troubles.note(folder, "replaced", error)

    def _file_refusal(self, why: Refusal, target: str, source: Path) -> None:
        """Move a refused file and its reason to rejected/, with the ended event."""
        ended = job_documents.ended_rejected(why)
        reason = job_documents.pretty(why)
        at = self.queue.clock.read().latest
        self.spool.reject(
            why.id, target, reason, source, lambda _: self.ledger.record_ended(ended), at
        )

    def _note_stuck(
        self,
        key: Key,
        signature: Signature,
        error: OSError,
        what: str,
        *,
        answered: bool = False,
    ) -> Wait:
        """Leave a file that cannot be moved where it is, and let it count once.

        That is tried again, after longer and longer pauses.
        """
        self.unsettled = True  # it may have been moved in part
        if error.errno in DISK_FULL:
            return Wait(f"it was {what}; the disk is full, and it goes once there is room")
        if error.errno not in STUCK:
            raise error
        why = f"it was {what} but cannot be taken away: {error.strerror}; remove it"
        before = self._stuck.get(key)
        known = before is not None and before.signature == signature
        pause_s = min(2 * before.pause_s, _STUCK_MAX_S) if before and known else _STUCK_S
        until = time.monotonic() + pause_s
        self._stuck[key] = _Stuck(signature, why, until, pause_s, answered)
        return Wait(why)


def _waited_s(signature: Signature) -> float:
    """How long a drop has lain in inbox/, by the disk's time and the one that it goes by."""
    return max(time.time() - signature.ctime_ns / 1e9, 0.0)

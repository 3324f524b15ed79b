"""Intake: the loop that empties inbox/.

Purpose: scan the folders, ask the gate, have each complete drop answered, obey the
control files.
Invariants: the scan decides and a hint only wakes it; one drop is answered at a time,
so the queue's limits hold; whatever lies in inbox/ and is not taken is shown with the
reason in the status.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from inbox_daemon.contract import job_documents, limits
from inbox_daemon.contract.config import Config
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.facts import IntakeFacts
from inbox_daemon.contract.health_documents import WaitingDrop
from inbox_daemon.contract.names import (
    ALL,
    JOB_SUFFIX,
    Order,
    escape,
    is_control_name,
    is_job_name,
    is_sidecar,
    job_of_sidecar,
)
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake import control, gate
from inbox_daemon.intake.admission import Admission, Answer
from inbox_daemon.intake.control import Controller
from inbox_daemon.intake.gate import Wait
from inbox_daemon.intake.settling import FOREIGN_FACTOR, Rota, Settling, Sighting
from inbox_daemon.intake.watch import Watcher
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.spool import DISK_FULL, OWN_ERRORS, STUCK, Spool, durable
from inbox_daemon.spool.entries import (
    DirEntry,
    Identity,
    Kind,
    Scan,
    Signature,
    entries,
    identity_of,
)

log = logging.getLogger(__name__)

MAX_WAITING = 100
# How many files of a lane are looked at in one scan: a sender decides how many there are.
MAX_SEEN = 10_000
# How long a file waits whose answer has met an error, until that is tried again.
HELD_S = 5.0
_FULL = "the disk is full"


class Found(NamedTuple):
    """One entry of a lane, as the scan found it; `quiet_s` is for how long it has not changed."""

    lane: Priority
    entry: DirEntry
    settled: bool
    quiet_s: float


@dataclass(slots=True)
class Intake:
    """The loop, and what it shows of itself."""

    config: Config
    spool: Spool
    queue: ActiveJobs
    admission: Admission
    controller: Controller
    on_change: Callable[[], None]
    waiting: list[WaitingDrop] = field(default_factory=list)
    # Why nothing is taken, and why not even orders and refusals are carried out; from outside.
    paused: str | None = None
    full: str | None = None
    problem: str | None = None
    hints_missing: str | None = None
    turned_at: float = field(default_factory=time.monotonic)
    _settling: dict[Priority, Settling] = field(init=False)
    _rota: dict[Priority, Rota] = field(init=False)
    # What the newest scan found.
    _found: list[Found] = field(default_factory=list)
    _hinted: bool = False
    _obeyed: dict[tuple[Priority, str], Signature] = field(default_factory=dict)
    # The files whose answer has met an error: why, and when it is tried again (monotonic, s).
    _held: dict[tuple[Priority, str], tuple[Wait, float]] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    def __post_init__(self) -> None:
        """Start with no memory of earlier scans."""
        settle_s, scan_s = self.config.intake.settle_s, self.config.intake.scan_interval_s
        self._settling = {lane: Settling(settle_s) for lane in Priority}
        turn_s = 2 * FOREIGN_FACTOR * settle_s + 4 * scan_s
        self._rota = {lane: Rota(MAX_SEEN, turn_s) for lane in Priority}

    # -- the loop -------------------------------------------------------------------

    async def run(self) -> None:
        """Scan until stopped.

        Raises what must end the daemon: LedgerError, or an OSError that no file has caused.
        """
        loop = asyncio.get_running_loop()

        def hint() -> None:
            if not self._hinted:  # one call for a flood of events
                self._hinted = True
                loop.call_soon_threadsafe(self._wake.set)

        with Watcher([self.spool.lane(lane) for lane in Priority], hint) as watcher:
            while not self._stopping:
                self.turned_at = time.monotonic()
                await self._scan_all(watcher)
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
        interval_s = self.config.intake.scan_interval_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await self._wake.wait()
            # Events come in bursts; one scan answers all of them.
            await asyncio.sleep(min(0.05, interval_s / 4))
        self._hinted = False
        self._wake.clear()

    async def _scan_all(self, watcher: Watcher) -> None:
        """Scan the folders by priority, and keep the watcher awake."""
        self.problem = None
        if self.admission.unsettled:
            try:
                settled = await asyncio.to_thread(self.admission.settle)
                for job in settled.queued:
                    self._note(Answer(queued=job))
                for ended in settled.rejected:
                    self.queue.ended(ended)
            except OSError as error:
                if error.errno in OWN_ERRORS:
                    raise
                self.problem = f"{error.filename or 'claimed/'} cannot be used: {error.strerror}"
                return
        scans = await self._scan_lanes()
        self.waiting = await self._answer_all(scans)
        # The watcher looks itself at those that could not be read: they may be there all the same.
        seen: dict[str | os.PathLike[str], Identity | None] = {
            self.spool.lane(lane): scan.identity for lane, scan in scans.items()
        }
        await asyncio.to_thread(watcher.check, seen)
        self.hints_missing = watcher.reason

    async def _scan_lanes(self) -> dict[Priority, Scan]:
        """Return what lies in each folder that can be read."""
        scans = {}
        for lane in Priority:
            try:
                scans[lane] = await asyncio.to_thread(self._scan, lane)
            except OSError as error:
                self.problem = f"{error.filename or lane} cannot be used: {error.strerror}"
        return scans

    def _scan(self, lane: Priority) -> Scan:
        try:
            fd = self.spool.open_lane(lane)
        except (FileNotFoundError, NotADirectoryError):
            self.spool.mend_inbox()
            fd = self.spool.open_lane(lane)
            log.warning("inbox_mended", extra={"folder": str(self.spool.lane(lane))})
        try:
            self.spool.check_lane(fd, lane)
            return Scan(identity_of(fd), self._choose(lane, entries(fd)))
        finally:
            os.close(fd)

    def _choose(self, lane: Priority, found: Iterator[DirEntry]) -> list[DirEntry]:
        """What of a lane is looked at now; of what stays for good as much as is shown."""
        staying: list[DirEntry] = []
        misnamed: list[DirEntry] = []  # they hold no other up, and are refused in the end

        def candidates() -> Iterator[DirEntry]:
            for entry in found:
                if entry.kind is Kind.DIRECTORY and gate.is_lane(entry.name, lane):
                    continue
                wait = gate.check_entry(entry)
                if wait is None or is_sidecar(entry.name) or is_control_name(entry.name):
                    yield entry
                elif wait.overdue is not None and len(misnamed) < MAX_SEEN:
                    misnamed.append(entry)
                elif wait.overdue is None and len(staying) < MAX_WAITING:
                    staying.append(entry)

        return self._rota[lane].choose(time.monotonic(), candidates()) + misnamed + staying

    def _observe(self, seen: Scan, lane: Priority) -> list[Found]:
        """Return what of a lane is to be answered, and forget what lies there no more."""
        now = time.monotonic()
        settling = self._settling[lane]
        sightings = [
            Sighting(entry.name, entry.signature, durable.may_lease(entry.uid))
            for entry in seen.entries
            if entry.kind is Kind.FILE
        ]
        settled = set(settling.observe(now, sightings))
        names = {entry.name for entry in seen.entries}
        self.admission.forget_others(lane, names)
        for known in (self._obeyed, self._held):
            for key in [key for key in known if key[0] is lane and key[1] not in names]:
                del known[key]
        return [
            Found(lane, entry, entry.name in settled, settling.unchanged_for(entry.name, now))
            for entry in seen.entries
            if not (entry.kind is Kind.DIRECTORY and gate.is_lane(entry.name, lane))
        ]

    async def _answer_all(self, scans: dict[Priority, Scan]) -> list[WaitingDrop]:
        """Answer what lies in all lanes, the most urgent first; return what stays.

        A drop that waits for room ages as a job does, or a stream of others would take each
        place that becomes free before it.
        """
        self._found = [one for lane, seen in scans.items() for one in self._observe(seen, lane)]
        waiting: list[WaitingDrop] = []
        now = time.time()  # by which the disk's times go too

        def turn(found: Found) -> tuple[float, int]:
            arrived_ns = found.entry.signature.ctime_ns
            return self.queue.aged(found.lane, now - arrived_ns / 1e9), arrived_ns

        for found in sorted(self._found, key=turn):
            if self._stopping:
                break
            self.turned_at = time.monotonic()
            wait, until = self._held.get((found.lane, found.entry.name), (None, 0.0))
            if time.monotonic() >= until:
                wait = await self._answer_alone(found)
            if wait is not None and len(waiting) < MAX_WAITING:
                name, since_s = escape(found.entry.name), round(found.quiet_s, 1)
                waiting.append(WaitingDrop(name=name, why=wait.why, since_s=since_s))
        return waiting

    async def _answer_alone(self, found: Found) -> Wait | None:
        """Deal with one entry; an error that it meets makes it wait, and no other."""
        key = found.lane, found.entry.name
        before, _ = self._held.pop(key, (None, 0.0))
        try:
            return await self._answer(found)
        except OSError as error:
            if error.errno in OWN_ERRORS:
                raise
            self.admission.unsettled = True
            why = f"it cannot be answered now: {error.strerror}; it is tried again"
            wait = Wait(_FULL if error.errno in DISK_FULL else why)
            self._held[key] = wait, time.monotonic() + HELD_S
            if wait != before:
                fields = {"file": escape(found.entry.name), "reason": str(error)}
                log.warning("drop_held", extra=fields)
            return wait

    async def _answer(self, found: Found) -> Wait | None:
        """Deal with one entry; return why it stays, if it does."""
        lane, entry, settled, quiet_s = found
        if entry.kind is Kind.UNKNOWN:
            return gate.check_kind(entry)
        if is_sidecar(entry.name):
            return await self._accompany(found)
        if is_control_name(entry.name):
            wait = gate.check_kind(entry) or await self._order(entry, lane, settled=settled)
        else:
            wait = gate.check_entry(entry) or self._hold()
            if wait is None:
                answer = await asyncio.to_thread(
                    self.admission.answer, entry, lane, settled=settled
                )
                self._note(answer)
                wait = answer.wait
        if wait is None:
            # Show no longer as waiting what was just answered; the scan may go on for long.
            self.waiting = [drop for drop in self.waiting if drop.name != escape(entry.name)]
        if wait is None or wait.overdue is None or quiet_s < self.config.intake.incomplete_s:
            return wait
        if await asyncio.to_thread(gate.is_being_written, self.spool, entry, lane):
            return Wait(f"{wait.why}; a process has it open for writing", wait.overdue)
        return await self._reject(entry, lane, wait.overdue)

    async def _accompany(self, found: Found) -> Wait | None:
        """Deal with a sidecar whose job's file is not there; it may have gone with that just now.

        One that stayed would speak of the next job of that name, which may be another sender's.
        """
        lane, entry, settled, quiet_s = found
        folder, job = self.spool.lane(lane), job_of_sidecar(entry.name)
        if durable.exists(folder / job) or not durable.exists(folder / entry.name):
            return None
        waits = Wait("it waits for its job's file")
        if entry.kind is not Kind.FILE or not settled:
            return waits
        if self.queue.named(job.removesuffix(JOB_SUFFIX)) is not None:
            message = f"it came after {job} was taken; it must lie there before its job's file"
            return await self._reject(entry, lane, Fault(code="late", message=message))
        coming = any(
            other.lane is lane and other.entry.name.startswith(f".{job}") for other in self._found
        )
        if coming or quiet_s < self.config.intake.incomplete_s:
            return waits
        message = f"no {job} came within {self.config.intake.incomplete_s:g} s; send both again"
        return await self._reject(entry, lane, Fault(code="alone", message=message))

    async def _reject(self, entry: DirEntry, lane: Priority, fault: Fault) -> Wait | None:
        if self.full:
            return Wait(self.full)
        answer = await asyncio.to_thread(self.admission.reject_drop, entry, lane, fault)
        self._note(answer)
        return answer.wait

    def _hold(self) -> Wait | None:
        """Leave everything where it is while there is no room for it."""
        if self.paused:
            return Wait(self.paused)
        if self.config.intake.on_full == "hold":
            full = limits.check_queue(self.queue.load(), self.config.limits)
            return Wait(full.message) if full else None
        return None

    async def _order(self, entry: DirEntry, lane: Priority, *, settled: bool) -> Wait | None:
        if not settled:
            return Wait("it has just arrived")
        if self.full:
            return Wait(self.full)
        if self._obeyed.get((lane, entry.name)) == entry.signature:
            return await asyncio.to_thread(self._remove_order, entry, lane)
        # Carry out a control file, or refuse it with the reason.
        command = control.read(self.spool, entry, lane)
        if isinstance(command, Wait):
            return command
        fault = await self.controller.obey(command, self._note)
        if command.order is Order.CANCEL and (fault is None or fault.code == "unknown_job"):
            cancelled = await self._cancel_drops(command.job, entry)
            if isinstance(cancelled, Wait):
                return cancelled
            fault = None if cancelled else fault
        if fault is None:
            wait = await asyncio.to_thread(self._remove_order, entry, lane)
        else:
            wait = await self._reject(entry, lane, fault)
        self.on_change()
        return wait

    async def _cancel_drops(self, job: str, order: DirEntry) -> bool | Wait:
        """Refuse the drops of a job, or of ALL, that came before the order and wait.

        Returns whether there was one, or why the order has to wait.
        """
        any_found = False
        for lane, entry, _, _ in self._found:
            name = entry.name.removesuffix(JOB_SUFFIX)
            meant = is_job_name(entry.name) and job in {ALL, name} and entry.kind is Kind.FILE
            if not meant or entry.signature.ctime_ns > order.signature.ctime_ns:
                continue
            if await asyncio.to_thread(gate.is_being_written, self.spool, entry, lane):
                return Wait(f"{entry.name} is being written")
            message = "it was cancelled before it was taken"
            wait = await self._reject(entry, lane, Fault(code="cancelled", message=message))
            any_found = any_found or wait is None
        return any_found

    def _remove_order(self, entry: DirEntry, lane: Priority) -> Wait | None:
        try:
            self.spool.remove_drop(entry.name, lane)
        except OSError as error:
            if error.errno in OWN_ERRORS:
                raise
            self._obeyed[lane, entry.name] = entry.signature
            remedy = "remove it" if error.errno in STUCK else "look at the disk"
            return Wait(f"it was obeyed but cannot be taken away: {error.strerror}; {remedy}")
        return None

    def facts(self) -> IntakeFacts:
        """Return what the status shows of the intake."""
        return IntakeFacts(tuple(self.waiting), self.problem, self.hints_missing)

    # -- what the others learn ------------------------------------------------------

    def _note(self, answer: Answer) -> None:
        """Tell the queue, the log and the status; on the event loop."""
        if answer.wait is not None:
            return
        if answer.queued is not None:
            job = answer.queued
            self.queue.add(job)
            log.info("job_queued", extra={"job": job.name, "requests": job.requests})
        elif answer.rejected is not None:
            why = answer.rejected
            self.queue.ended(job_documents.ended_rejected(why))
            log.warning("job_rejected", extra={"job": why.name, "code": why.code})
        elif answer.redelivered is not None:
            job = answer.redelivered
            self.queue.note(job_documents.recent_redelivered(job, time.time()))
            log.info("job_redelivered", extra={"job": job.name, "id": job.id})
        self.on_change()

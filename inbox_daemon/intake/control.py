"""Control files: cancel, pause, resume, rebind, redrive and purge, dropped like a job.

Purpose: read `NAME.ACTION` or `ALL.ACTION` and carry it out.
Invariants: a control file passes the same gate as a job; an order is on the disk
before its file is taken away, so a crash repeats it and never loses it; each order may
be given twice, and one that a crash repeats after its effect is over is done, not refused.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import orjson
from pydantic import ValidationError

from inbox_daemon.contract.documents import ControlOptions, Fault
from inbox_daemon.contract.names import ALL, Order
from inbox_daemon.contract.records import DeadReason, JobRecord
from inbox_daemon.contract.states import Priority
from inbox_daemon.intake import gate
from inbox_daemon.intake.admission import Answer
from inbox_daemon.intake.gate import Wait
from inbox_daemon.intake.redrive import Redriver
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.validation import Served
from inbox_daemon.spool import Spool
from inbox_daemon.spool.entries import DirEntry


@dataclass(frozen=True, slots=True)
class Command:
    """One control file; `job` is a job's name or ALL, `fault` why it cannot be obeyed.

    `reason` narrows a redrive or a purge, `model` is what a rebind binds the job to;
    `given_at` is when it was dropped, in seconds since 1970, by this machine's clock.
    """

    job: str
    order: Order
    reason: DeadReason | None = None
    model: str | None = None
    fault: Fault | None = None
    given_at: float = field(default=0.0, compare=False)


def read(spool: Spool, entry: DirEntry, lane: Priority) -> Command | Wait:
    """Read a control file that has settled."""
    wait = gate.check_kind(entry)
    if wait is not None:
        return wait
    job, _, order = entry.name.rpartition(".")
    content = gate.read_small(spool, entry.name, lane)
    if content is None:
        return Wait("it has just gone")
    # Not the time of its content, which a sender may set.
    command = Command(job, Order(order), given_at=entry.signature.ctime_ns / 1e9)
    if not content.strip() and command.order is not Order.REBIND:
        return command
    try:
        options = ControlOptions.model_validate(orjson.loads(content))
        if (command.order is Order.REBIND) is (options.model is not None):
            reason = DeadReason(options.reason) if options.reason else None
            return replace(command, reason=reason, model=options.model)
    except (orjson.JSONDecodeError, ValidationError, ValueError):
        pass
    known = ", ".join(DeadReason)
    message = f'a control file is empty or holds {{"reason": …}} with one of {known}'
    if command.order is Order.REBIND:
        message = 'a .rebind file holds {"model": …} with the name of the model'
    return replace(command, fault=Fault(code="invalid_control", message=message))


@dataclass(slots=True)
class Controller:
    """Carries out orders."""

    queue: ActiveJobs
    ledger: Ledger
    redriver: Redriver
    served: Callable[[], Served]

    async def obey(  # noqa: PLR0911 - each order has its own ends
        self, command: Command, note: Callable[[Answer], None]
    ) -> Fault | None:
        """Carry out one order; return why not, if so.

        `note` takes each answer of a redrive.
        Raises LedgerError: the order is not on the disk, the daemon must end.
        """
        if command.fault is not None:
            return command.fault
        name = command.job
        match command.order:
            case Order.CANCEL:
                jobs = [
                    e.record for e in self.queue.entries.values() if name in {ALL, e.record.name}
                ]
                for job in jobs:
                    await self.queue.end(job.id, DeadReason.CANCELLED)
                if jobs or name == ALL:
                    return None
                last = await asyncio.to_thread(self._ended_since, command)
                done = last is not None and last.ending is DeadReason.CANCELLED
                return None if done else _unknown(name)
            case Order.PAUSE | Order.RESUME:
                # ALL is a switch of its own beside single jobs.
                target = ALL if name == ALL else getattr(self.queue.named(name), "id", None)
                paused = command.order is Order.PAUSE
                if target is None:
                    last = await asyncio.to_thread(self._ended_since, command)
                    done = last is not None and (last.id in self.queue.paused) is paused
                    return None if done else _unknown(name)
                await (self.queue.pause(target) if paused else self.queue.resume(target))
                return None
            case Order.REBIND:
                return await self._rebind(command)
            case Order.REDRIVE:
                return await self._redrive(command, note)
            case Order.PURGE:
                await asyncio.to_thread(self.redriver.purge, command.job, command.reason)
                return None

    async def _rebind(self, command: Command) -> Fault | None:
        name, model = command.job, command.model or ""
        if name == ALL:
            message = "name the job that is to be bound; `inbox-daemon jobs` lists them"
            return Fault(code="invalid_control", message=message)
        names = self.served().names
        if names and model not in names:
            message = f"the model {model[:60]!a} is not served here; use {', '.join(sorted(names))}"
            return Fault(code="unknown_model", message=message)
        record = self.queue.named(name)
        if record is not None and await self.queue.rebind(record.id, model):
            return None
        last = await asyncio.to_thread(self._ended_since, command)
        return None if last is not None and last.model == model else _unknown(name)

    def _ended_since(self, command: Command) -> JobRecord | None:
        """The job that an order meant, if it has ended since: then a crash repeats the order."""
        named = [record for record in self.ledger.jobs() if record.name == command.job]
        last = max(named, key=lambda record: record.id, default=None)
        over = last is not None and (last.finished_at or 0.0) >= command.given_at
        return last if over else None

    async def _redrive(self, command: Command, note: Callable[[Answer], None]) -> Fault | None:
        groups = await asyncio.to_thread(self.redriver.groups, command.job, command.reason)
        if not groups:
            if await asyncio.to_thread(self.redriver.redrove, command.job, command.given_at):
                return None
            message = f"there are no dead letters of {command.job} to run again"
            return Fault(code="no_dead_letters", message=message)
        for job_id in groups:  # one at a time: each counts against the queue's limits
            answer = await asyncio.to_thread(self.redriver.redrive, job_id, command.reason)
            note(answer)
            if answer.rejected is not None:
                return answer.rejected.faults[0]
        return None


def _unknown(name: str) -> Fault:
    message = f"no job named {name} is queued or running; `inbox-daemon jobs` lists them"
    return Fault(code="unknown_job", message=message)

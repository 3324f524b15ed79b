"""The real parts of the daemon in this process, one turn of the loop at a time.

Purpose: what tests/crash/test_statemachine.py acts on: a spool, a ledger and a runner that can
be made to crash between any two steps that change the disk, and be opened again.
Invariants: blocking work runs inline, so a crash never meets a thread inside LMDB; after
a crash nothing of the old parts reaches the disk, because every step raises; the engine's
memory of what it has executed outlives all of them.
Known limit: a crash keeps what was written but not yet synced; the power cuts are for that.
"""

import asyncio
import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from builders import config
from inbox_daemon.contract.documents import Fault
from inbox_daemon.contract.states import Priority
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.intake import gate
from inbox_daemon.intake.admission import Answer
from inbox_daemon.intake.control import Command
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.recovery import recover
from inbox_daemon.ledger import Ledger
from inbox_daemon.run import arrivals, suspects
from inbox_daemon.service.parts import assemble
from inbox_daemon.spool import Spool, durable
from inbox_daemon.spool.entries import DirEntry, scan
from inert_engine import NoCard
from torture.memory_engine import MemoryEngine

SETTINGS: dict[str, dict[str, Any]] = {
    "run": {"commit_interval_s": 0.0005, "chunk_min": 2, "chunk_max": 3},
    "limits": {"max_queue_depth": 1000},
}
STEPS: list[tuple[Any, str]] = [
    *((os, name) for name in ("fsync", "fdatasync", "rename", "replace", "unlink", "rmdir")),
    *((os, name) for name in ("mkdir", "ftruncate")),
    (durable, "rename_noreplace"),
    *((Ledger, name) for name in ("accept", "checkpoint", "update", "finish", "put_state")),
    *((Ledger, name) for name in ("forget", "purge")),
]
T = TypeVar("T")


class CrashError(BaseException):
    """The end of the daemon, at a step of the test's choice."""


class Steps:
    """Counts steps that change the disk down to the one at which the daemon crashes."""

    def __init__(self) -> None:
        """Put itself before and after each of STEPS."""
        self._left: int | None = None
        self.fired = False
        self._originals = [(owner, name, getattr(owner, name)) for owner, name in STEPS]
        self._pauses = arrivals.BACKOFF_BASE_S, suspects.DOUBT_BASE_S
        arrivals.BACKOFF_BASE_S = suspects.DOUBT_BASE_S = 0.0005
        for owner, name, function in self._originals:
            setattr(owner, name, self._counted(function))

    def remove(self) -> None:
        """Put everything back."""
        for owner, name, function in self._originals:
            setattr(owner, name, function)
        arrivals.BACKOFF_BASE_S, suspects.DOUBT_BASE_S = self._pauses

    def arm(self, left: int | None) -> None:
        """Crash after so many further half steps; None is never."""
        self._left, self.fired = left, False

    def _counted(self, function: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(function)
        def counted(*words: object, **more: object) -> T:
            self._pass()
            result = function(*words, **more)
            self._pass()
            return result

        return counted

    def _pass(self) -> None:
        if self._left is None:
            return
        if self._left <= 0:
            self.fired = True
            raise CrashError
        self._left -= 1


class _Inline(ThreadPoolExecutor):
    """Runs blocking work at once, in this thread."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            future.set_exception(error)
        return future


class World:
    """One life after the other of a daemon on one spool.

    `told` is called with job id, line and text before each execution; `answered` with
    each answer to a drop or a redrive.
    """

    def __init__(
        self,
        root: Path,
        told: Callable[[str, int, str], None],
        answered: Callable[[Answer], None],
    ) -> None:
        """Make the spool and open it."""
        self.spool = Spool(root / "spool")
        self.spool.create()
        self.steps = Steps()
        self._told, self.answered = told, answered
        self._executions: Counter[str] = Counter()
        self._config = config(**SETTINGS)
        self.failures: list[BaseException] = []
        self.open()

    # -- lives ----------------------------------------------------------------------

    def open(self) -> None:
        """Start: open the ledger, recover, let the runner begin."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_Inline(1))
        self._loop.set_exception_handler(lambda _loop, _context: None)
        self.ledger = Ledger(self.spool.ledger)
        self.queue: ActiveJobs = recover(self.spool, self.ledger)
        self._call(self._build())

    async def _build(self) -> None:
        self.engine = MemoryEngine(self._wake, self._begin, lambda: 0.0, restart_s=0.0005)
        self.engine.executions = self._executions
        parts = assemble(
            self._config,
            self.spool,
            self.ledger,
            self.queue,
            lambda _: self.engine,
            lambda kind: Governor(self._config, kind),
            NoCard(),
        )
        self.runner, self.admission, self.redriver = parts.runner, parts.admission, parts.redriver
        self._controller = parts.controller
        self._running = asyncio.create_task(self.runner.run())

    def _wake(self) -> None:
        self.runner.wake()

    def _begin(self, request_id: str, text: str) -> None:
        job_id, line = request_id.removeprefix("batch_req_").rsplit("_", 1)
        try:
            self._told(job_id, int(line), text)
        except AssertionError as error:  # the runner would take it for its own
            self.failures.append(error)

    def crash(self) -> None:
        """Drop everything as it is."""
        self.steps.arm(0)
        self._close()
        self.steps.arm(None)

    def drain(self) -> None:
        """Stop as on a first signal."""
        self._loop.run_until_complete(self._drained())
        self._close()

    async def _drained(self) -> None:
        await self.runner.drain(0.0)
        await asyncio.wait([self._running], timeout=20)
        assert self._running.done(), "the runner does not drain"
        self._running.result()

    def abandon(self) -> None:
        """Close for good, whatever state it is in."""
        if not self._loop.is_closed():
            self.crash()

    def _close(self) -> None:
        self._loop.run_until_complete(_end_all())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        self.ledger.close()
        for run in self.queue.runs():
            run.close()

    # -- actions --------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop; whatever ends the runner ends this too."""
        result = self._loop.run_until_complete(work)
        if self._running.done():
            self._running.result()
            msg = "the runner ended by itself"
            raise AssertionError(msg)
        return result

    def turn(self, turns: int) -> None:
        """Let the loop turn."""
        self._call(_turn(turns))

    def work(self, done: Callable[[], bool], patience_s: float = 20.0) -> None:
        """Let the loop turn until something is so."""
        deadline = self._loop.time() + patience_s
        while not done():
            assert self._loop.time() < deadline, f"no end: {self.queue.entries}"
            self._call(asyncio.sleep(0.0005))

    def scan(self) -> None:
        """Answer what lies in inbox/."""
        for lane in Priority:
            for entry in scan(self.spool.lane(lane)).entries:
                if gate.check_entry(entry) is None:
                    self._answer(entry, lane)
        self.runner.wake()

    def _answer(self, entry: DirEntry, lane: Priority) -> None:
        answer = self.admission.answer(entry, lane, settled=True)
        if answer.queued is not None:
            self.queue.add(answer.queued)
        self.answered(answer)

    def obey(self, command: Command) -> Fault | None:
        """Carry out an order."""
        return self._call(self._controller.obey(command, self._note))

    def _note(self, answer: Answer) -> None:
        if answer.queued is not None:
            self.queue.add(answer.queued)
        self.answered(answer)


async def _turn(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def _end_all() -> None:
    """Cancel every task but this one, and ignore what they return or raise."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    with contextlib.suppress(BaseException):
        await asyncio.gather(*tasks, return_exceptions=True)

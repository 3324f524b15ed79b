"""The real daemon in one small process, telling all that it has promised to a pipe.

Purpose: `inbox-daemon run` with an engine in memory, for the tests that cut the power.
Invariants: what is reported has returned from the product before; the pipe's other end is
outside of the filesystem under test; the process can cut the power by itself just
before or after its N-th step that changes the disk, so that a moment can be repeated.
"""

import ctypes
import functools
import itertools
import logging
import os
import random
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import orjson

from inbox_daemon.contract.config import Config
from inbox_daemon.contract.documents import JobStatus
from inbox_daemon.engine.base import Engine
from inbox_daemon.intake.admission import Answer
from inbox_daemon.intake.loop import Intake
from inbox_daemon.jobs.active import ActiveJobs
from inbox_daemon.jobs.clock import CheckedClock
from inbox_daemon.jobs.running import Batch, RunningJob
from inbox_daemon.ledger import Ledger
from inbox_daemon.publish.verify import verify_published, verify_running
from inbox_daemon.run import arrivals, suspects
from inbox_daemon.run.lifecycle import Lifecycle
from inbox_daemon.service import daemon, start
from inbox_daemon.spool import Spool, durable
from torture.memory_engine import MemoryEngine

SETTINGS: dict[str, dict[str, Any]] = {
    "intake": {"settle_s": 0.01, "scan_interval_s": 0.02},
    "run": {"commit_interval_s": 0.02, "chunk_min": 10, "chunk_max": 20},
    "limits": {"max_queue_depth": 1000},
    "disk": {"min_free_bytes": 0, "min_free_inodes": 0},
    "status": {"interval_s": 0.5},
}
STEPS: list[tuple[Any, str]] = [
    *((os, name) for name in ("fsync", "fdatasync", "rename", "replace", "unlink", "rmdir")),
    *((os, name) for name in ("mkdir", "pwrite", "ftruncate")),
    (durable, "rename_noreplace"),
    *((Ledger, name) for name in ("accept", "checkpoint", "update", "finish", "put_state")),
    (Ledger, "forget"),
]
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Phase:
    """One life of the daemon: its number marks each answer of its engine.

    `cut_at` counts steps that change the disk; None leaves the cut to another process.
    """

    number: int
    root: Path
    log: Path
    seed: int
    cut: Callable[[], None]
    cut_at: int | None = None
    before: bool = False


def live(phase: Phase, pipe: int) -> NoReturn:
    """Be the daemon until a signal or the cut; to be called in a process of its own."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        logging.basicConfig(filename=phase.log, level=logging.INFO, force=True)
        _Witness(phase, pipe).serve()
        code = 0
    except BaseException:
        logging.getLogger().exception(traceback.format_exc())
    finally:
        os._exit(code)


class _Witness:
    """Puts itself between the parts, and tells."""

    def __init__(self, phase: Phase, pipe: int) -> None:
        self._phase, self._pipe = phase, pipe
        self._rng = random.Random(phase.seed)
        self._count = itertools.count(1)
        self._config = Config.model_validate({"spool": phase.root, **SETTINGS})

    def tell(self, event: str, **fields: object) -> None:
        os.write(self._pipe, orjson.dumps({"event": event, **fields}) + b"\n")

    def serve(self) -> None:
        self._hurry()
        self._listen()
        if self._phase.cut_at is not None:
            for owner, name in STEPS:
                setattr(owner, name, self._stepping(getattr(owner, name)))
        start.serve(self._config)
        self._check_outbox()

    def _hurry(self) -> None:
        """No pause of the product is worth waiting for."""
        arrivals.BACKOFF_BASE_S = suspects.DOUBT_BASE_S = 0.005
        daemon.MIN_STATUS_GAP_S = 0.05

    # -- reports --------------------------------------------------------------------

    def _listen(self) -> None:
        self._wrap(RunningJob, "committed", self._on_committed)
        self._wrap(Intake, "_note", self._on_answer)
        run, publish = daemon.Daemon.run, Lifecycle._publish
        recover = vars(start)["recover"]

        async def running(this: daemon.Daemon) -> None:
            self.tell("ready")  # for signals
            await run(this)

        async def published(this: Lifecycle, run: RunningJob) -> None:
            await publish(this, run)
            if run.record.id not in this._jobs.entries:  # else it waits for the disk
                self.tell("published", job=run.record.name)

        def recovered(
            spool: Spool, ledger: Ledger, ageing_s: float, clock: CheckedClock
        ) -> ActiveJobs:
            queue: ActiveJobs = recover(spool, ledger, ageing_s, clock)
            self._check_running(queue, spool, ledger)
            self.tell("recovered", jobs=len(queue.entries))
            return queue

        for owner, name, function in (
            (daemon.Daemon, "run", running),
            (Lifecycle, "_publish", published),
            (start, "recover", recovered),
            (start, "open_engine", self._open_engine),
        ):
            setattr(owner, name, function)

    def _wrap(self, owner: type, name: str, told: Callable[[Any, Any], None]) -> None:
        """Call `told` after a method of one argument has returned."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def both(this: Any, argument: Any) -> Any:  # noqa: ANN401 - any method
            result = method(this, argument)
            told(this, argument)
            return result

        setattr(owner, name, both)

    def _on_committed(self, run: RunningJob, batch: Batch) -> None:
        lines = [line for line, _ in batch.checkpoint.entries]
        if lines:
            self.tell("committed", job=run.record.name, lines=lines)

    def _on_answer(self, _intake: Intake, answer: Answer) -> None:
        record = answer.queued or answer.redelivered
        if record is not None:
            self.tell("accepted", job=record.name, id=record.id)
        elif answer.rejected is not None:
            self.tell("rejected", job=answer.rejected.name)

    def _open_engine(self, _config: Config, _folder: Path, *, on_change: Any) -> Engine:  # noqa: ANN401
        def told(_request_id: str, text: str) -> None:
            self.tell("executed", text=text)

        def pace() -> float:
            return self._rng.choice((0.0, 0.0, 0.001, 0.005))

        return MemoryEngine(on_change, told, pace, self._phase.number)

    # -- what is checked from inside --------------------------------------------------

    def _check_running(self, queue: ActiveJobs, spool: Spool, ledger: Ledger) -> None:
        """Every recovered job must be sound before it goes on."""
        for entry in queue.entries.values():
            if entry.run is not None:
                self._tell_faults(verify_running(entry.record, spool, ledger).faults)

    def _check_outbox(self) -> None:
        """At the end the product's own proof must hold too."""
        ledger, spool = Ledger(self._config.spool / "ledger"), Spool(self._config.spool)
        records = {record.name: record for record in ledger.jobs()}
        for folder in spool.outbox.iterdir():
            if (folder / "output.jsonl").exists():
                status = JobStatus.model_validate(spool.read_status(folder.name))
                self._tell_faults(verify_published(folder, status, records.get(folder.name)).faults)
        ledger.close()

    def _tell_faults(self, faults: list[str]) -> None:
        for fault in faults:
            self.tell("fault", words=fault)

    # -- steps ----------------------------------------------------------------------

    def _stepping(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Count the calls of a function that changes the disk, and cut the power at one."""

        @functools.wraps(function)
        def step(*words: Any, **more: Any) -> Any:  # noqa: ANN401 - any function
            hit = next(self._count) == self._phase.cut_at
            if hit and self._phase.before:
                self._cut(function)
            result = function(*words, **more)
            if hit:
                self._cut(function)
            return result

        return step

    def _cut(self, function: Callable[..., Any]) -> None:
        self._phase.cut()
        self.tell("cut", step=function.__name__)
        os.kill(os.getpid(), signal.SIGKILL)

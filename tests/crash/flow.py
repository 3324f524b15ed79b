"""Drive the daemon's own parts once through everything that touches the spool.

    python tests/flow.py BASE     one run on BASE/spool, from wherever the last one ended
    python tests/flow.py --serve  one run for each line `BASE [traced]` of standard input

Purpose: a small process in which each durable system call of the whole flow is made by
one thread, the first, so that strace can count and strike them one by one.  Senders, the
engine and the event loop live in a second thread, which is not traced.
Invariants: whatever a run did not bring to its end the next one does; a sender's deed is
noted once it is done, and is done while the daemon is idle.
Exit status: 0 all is done, 1 an error ended the daemon, 3 it came to a standstill.
"""

import asyncio
import contextlib
import ctypes
import gc
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import flow_script as script
from inbox_daemon.contract import job_documents
from inbox_daemon.contract.config import Config
from inbox_daemon.contract.names import OUTPUT
from inbox_daemon.contract.states import Priority
from inbox_daemon.engine.base import NoReply, Reply, Room
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.intake import loop
from inbox_daemon.intake.watch import Watcher
from inbox_daemon.jobs import commit
from inbox_daemon.jobs.recovery import recover
from inbox_daemon.ledger import Ledger
from inbox_daemon.publish import retention
from inbox_daemon.report.status import build
from inbox_daemon.run import arrivals, lifecycle
from inbox_daemon.service.daemon import Daemon
from inbox_daemon.service.parts import assemble
from inbox_daemon.spool import Spool
from inert_engine import InertEngine, NoCard

DONE, FAILED, STUCK = 0, 1, 3
DAY_S = 86400.0
# A drop is answered by its second scan; a fault may cost some more.
MAX_SCANS = 30
PATIENCE_S = 30.0
# So often a job or a commit may be put off for the disk until that counts as stuck.
MAX_WAITS = 20
LONGEST_RUN_S = 120
_PR_SET_PTRACER, _PR_SET_PTRACER_ANY = 0x59616D61, ctypes.c_ulong(-1)


class StuckError(Exception):
    """Nothing moves any more."""


class FirstThread(ThreadPoolExecutor):
    """Runs in the first thread what the event loop hands to threads, in its order."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401 - as the base class has it
        """Queue a call."""
        future: Future[Any] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as the base class has it
        """Let `serve` return."""
        self._calls.put(None)

    def serve(self) -> None:
        """Run the calls until shut down."""
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - the one who waits for it gets it
                future.set_exception(error)


class Answers(InertEngine):
    """An engine without a process: the script's answers, each request noted before."""

    def __init__(self, sends: Path) -> None:
        super().__init__(script.MODEL)
        self._sends = sends

    async def send(
        self, url: str, body: bytes, request_id: str, timeout_s: float, room: Room
    ) -> Reply | NoReply:
        """Answer by what the request's text asks for."""
        custom_id, text = json.loads(body)["messages"][0]["content"].split(": ", 1)
        first = append_line(self._sends, custom_id)
        await asyncio.sleep(0)
        if text == script.HANG:
            await asyncio.Event().wait()
        if text == script.REFUSE:
            return Reply(400, script.REFUSAL, request_id)
        if text == script.FAIL_ONCE and first:
            return Reply(500, script.FAILURE, request_id)
        return Reply(200, script.answer_to(custom_id), request_id)


class DeafWatcher:
    """Gives no hints: the driver knows when to scan."""

    reason: str | None = None

    def check(self, seen: object) -> None:
        """See nothing."""


def append_line(path: Path, line: str) -> bool:
    """Append a line to a file; return whether it is the first one of its kind."""
    first = line not in read_lines(path)
    with path.open("a") as file:
        file.write(f"{line}\n")
    return first


def read_lines(path: Path) -> list[str]:
    """What was noted so far."""
    return path.read_text().splitlines() if path.exists() else []


class Sender:
    """The web app: drops files whole, and collects what is published."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.inbox, self.outbox = base / "spool" / "inbox", base / "spool" / "outbox"

    def drop(self, name: str, content: bytes = b"") -> None:
        """Rename a complete file into inbox/."""
        made = self.base / "upload"
        made.write_bytes(content)
        made.rename(self.inbox / name)

    def drop_marked(self, name: str, content: bytes) -> None:
        """Drop a file with its marker."""
        digest = hashlib.sha256(content).hexdigest()
        marker = json.dumps({"bytes": len(content), "sha256": digest}).encode()
        self.drop(f"{name}.ready", marker)
        self.drop(name, content)

    def collect(self, name: str) -> None:
        """Take a published folder away; one that was taken before stays taken."""
        (self.base / "collected").mkdir(exist_ok=True)
        if (self.outbox / name / OUTPUT).exists():
            (self.outbox / name).rename(self.base / "collected" / name)

    def has(self, name: str) -> bool:
        """Return whether the job's results are there, or were."""
        places = (self.outbox, self.base / "collected")
        return any((place / name / OUTPUT).exists() for place in places)


class Flow:
    """The daemon's parts, joined as daemon.py joins them, and the story that they play."""

    def __init__(self, base: Path) -> None:
        """Start up, as `serve` does, recovery included."""
        self.base, self.sender = base, Sender(base)
        self.config = Config.model_validate(
            {
                "spool": base / "spool",
                "intake": {"settle_s": 1e-6, "scan_interval_s": 0.01},
                "run": {"commit_interval_s": 0.001, "chunk_min": 3, "chunk_max": 3},
                "retention": {"outbox_days": 1},
            }
        )
        self.spool = Spool(self.config.spool)
        self.spool.create()
        self.spool.check()
        self.spool.lock({"pid": os.getpid(), "since": "now"})
        self.ledger = Ledger(self.spool.ledger)

    def close(self) -> None:
        """Let ledger and lock go."""
        self.ledger.close()
        self.spool.unlock()

    def recover(self) -> None:
        """Repair, and join the loops."""
        self.queue = recover(self.spool, self.ledger)
        engine = Answers(self.base / "sends")
        parts = assemble(
            self.config,
            self.spool,
            self.ledger,
            self.queue,
            lambda _: engine,
            lambda kind: Governor(self.config, kind),
            NoCard(),
        )
        self.runner, self.intake = parts.runner, parts.intake
        self.daemon = Daemon(parts, asyncio.Event())

    # -- the loop -------------------------------------------------------------------

    async def run(self) -> None:
        """Play what is left of the story, then drain."""
        loop = asyncio.create_task(self.runner.run())
        try:
            for name, act, done in self._story():
                await self._play(name, act, done, loop)
            await self.runner.drain(0)
            await loop
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            await self._report()

    async def _play(
        self,
        name: str,
        act: Callable[[], object],
        done: Callable[[], bool],
        loop: asyncio.Task[None],
    ) -> None:
        """Do one deed of the senders, unless it was done, and wait for its answer."""
        notes = read_lines(self.base / "story")
        if f"{name} answered" in notes:
            return
        if f"{name} done" not in notes:
            result = act()
            if isinstance(result, Awaitable):
                await result
            append_line(self.base / "story", f"{name} done")
        await self._answered(done, loop)
        append_line(self.base / "story", f"{name} answered")
        await self._report()

    async def _answered(self, done: Callable[[], bool], loop: asyncio.Task[None]) -> None:
        scans, deadline, waits = 0, time.monotonic() + PATIENCE_S, self.waits()
        while self.waiting() or self.intake.admission.unsettled or not done():
            if loop.done():
                loop.result()
            late = time.monotonic() > deadline or self.waits() - waits > MAX_WAITS
            if scans > MAX_SCANS or late:
                raise StuckError([drop.why for drop in self.intake.waiting])
            if self.waiting() or self.intake.admission.unsettled:
                await self.intake._scan_all(cast("Watcher", DeafWatcher()))
                scans += 1
            else:
                await asyncio.sleep(0.001)

    def waits(self) -> int:
        """How often something was put off because the disk is full or failing."""
        return self.runner._lifecycle.holds + self.runner._commit.waits

    def waiting(self) -> list[Path]:
        """What lies in inbox/."""
        lanes = [self.spool.lane(lane) for lane in Priority]
        return [path for lane in lanes for path in lane.iterdir() if path not in lanes]

    async def _report(self) -> None:
        """Write the health, as the daemon does beside everything else."""
        now = time.monotonic()
        document = job_documents.pretty(build(self.daemon._facts(now, 0), now))
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self.spool.write_service_status, document)

    # -- the story ------------------------------------------------------------------

    def _story(self) -> list[tuple[str, Callable[[], object], Callable[[], bool]]]:
        drop, main = self.sender.drop, script.MAIN
        mended = f"{script.BROKEN.name}.jsonl"
        return [
            ("sends a job and a broken one", self._send_first, lambda: self._over(main)),
            ("sends the job again", lambda: drop("main.jsonl", main.content()), _at_once),
            ("pauses all", lambda: drop("ALL.pause"), lambda: bool(self.queue.paused)),
            (
                "sends the broken one mended",
                lambda: self.sender.drop_marked(f"high/{mended}", script.BROKEN.content()),
                _at_once,
            ),
            ("resumes all", lambda: drop("ALL.resume"), lambda: self._over(script.BROKEN)),
            (
                "sends one that will be cancelled",
                lambda: drop("doomed.jsonl", script.DOOMED.content()),
                self._doomed_hangs,
            ),
            ("cancels it", lambda: drop("doomed.cancel"), lambda: self._over(script.DOOMED)),
            (
                "has the dead letter run again",
                lambda: drop("main.redrive"),
                lambda: self._over(script.REDRIVEN),
            ),
            ("collects", self._collect, _at_once),
            ("sends the collected job again", lambda: drop("main.jsonl", main.content()), _at_once),
            ("waits for days", self._retain, _at_once),
        ]

    def _send_first(self) -> None:
        options = json.dumps({"metadata": {"sent": "first"}}).encode()
        self.sender.drop("main.options.json", options)
        self.sender.drop("main.jsonl", script.MAIN.content())
        self.sender.drop(f"{script.BROKEN.name}.jsonl", script.BROKEN_CONTENT)

    def _over(self, job: script.Job) -> bool:
        return self.sender.has(job.name) and not self.queue.entries

    def _doomed_hangs(self) -> bool:
        """Return whether all but the hanging requests are answered, and that counts."""
        runs = self.queue.runs()
        hanging = len(script.DOOMED.dead)
        return bool(runs) and self.runner.in_flight == hanging and runs[0].progress.ended == 2

    def _collect(self) -> None:
        for job in script.JOBS:
            self.sender.collect(job.name)

    async def _retain(self) -> None:
        later = time.time() + 5 * DAY_S
        for _ in range(MAX_WAITS):  # as it does from time to time
            await asyncio.to_thread(retention.retain, self.config, self.spool, self.ledger, later)
            if not self.spool.troubles.words():
                return
        raise StuckError(self.spool.troubles.words())


def _at_once() -> bool:
    return True


# -- one run ------------------------------------------------------------------------


def run(base: Path) -> int:
    """Play the story on BASE/spool; return the exit status."""
    os.umask(0o027)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING)
    arrivals.BACKOFF_BASE_S = lifecycle.HELD_S = commit.FULL_PAUSE_S = loop.HELD_S = 0.001
    try:
        flow = Flow(base)
        try:
            flow.recover()
            _run_loop(flow)
        finally:
            flow.close()
    except StuckError:
        traceback.print_exc()
        return STUCK
    except Exception:  # noqa: BLE001 - the edge of the process
        traceback.print_exc()
        return FAILED
    return DONE


def _run_loop(flow: Flow) -> None:
    """Run the loop in a second thread and its blocking work in this one."""
    here, ended = FirstThread(), []

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(here)
        try:
            await flow.run()
        except BaseException as error:  # noqa: BLE001 - raised again in the first thread
            ended.append(error)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    here.serve()
    thread.join()
    for error in ended:
        raise error


# -- many runs ----------------------------------------------------------------------


def serve() -> None:
    """For each line `BASE [traced]` fork a run; answer its pid, then its exit status.

    A traced run waits for one more line, which says that its tracer is there.  What the
    run prints goes to BASE/log.
    """
    gc.freeze()  # or each fork would copy all of it
    while words := _read_line().split():
        # Its pid is not given away before it waits for its tracer: what it does until then
        # would be struck too, and the line that is meant for it read by the next run.
        waiting, ready = os.pipe()
        base, pid = Path(words[0]), os.fork()
        if pid == 0:
            _run_forked(base, ready, traced=words[1:] == ["traced"])
        os.close(ready)
        os.read(waiting, 1)
        os.close(waiting)
        os.write(1, b"%d\n" % pid)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _run_forked(base: Path, ready: int, *, traced: bool) -> None:
    log = os.open(base / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    status = FAILED
    try:
        if traced:
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
        os.close(ready)
        if traced and _read_line() != "go\n":
            return
        signal.alarm(LONGEST_RUN_S)
        status = run(base)
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _read_line() -> str:
    """A line of standard input, and nothing of the next one: that may be a fork's."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    return line.decode()


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(run(Path(sys.argv[1]).absolute()))

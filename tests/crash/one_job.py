"""Three jobs of which the files of one fail: the story, and what must come of it.

Purpose: play the life of a job from its claim to its retention in a real daemon's parts,
with an order, a refusal and a start of the daemon in it, while a second job runs and a
third arrives; hold the two to their results, and the one to being accounted for.
Invariants: one thread, and blocking work in its order, so that a call has its number;
whatever ends a loop of the daemon ends the story.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from ulid import ULID

from builders import config
from flow import DAY_S, DeafWatcher
from inbox_daemon.engine.base import NoReply, Reply, Room
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.intake import admission, loop, redrive
from inbox_daemon.intake.watch import Watcher
from inbox_daemon.jobs import commit, files
from inbox_daemon.jobs.recovery import recover
from inbox_daemon.ledger import Ledger
from inbox_daemon.publish import retention
from inbox_daemon.report.status import build
from inbox_daemon.run import arrivals, lifecycle, runner
from inbox_daemon.service.daemon import Daemon
from inbox_daemon.service.parts import assemble
from inbox_daemon.spool import Spool
from inert_engine import InertEngine, NoCard
from job_files import chat
from striking import Strikes

MODEL = "flow"
# The one, a second of its sender that is cancelled, and a file of its that is refused.
STRUCK, DOOMED, BROKEN = "struck", "struck-doomed", "struck-broken"
SECOND, THIRD = "second", "third"
REQUESTS = {
    STRUCK: {"a0": "answer", "a1": "refuse", "a2": "fail once", "a3": "wait", "a4": "answer"},
    DOOMED: {"d0": "answer", "d1": "wait for good"},
    SECOND: {"s0": "answer", "s1": "answer", "s2": "wait", "s3": "answer"},
    THIRD: {"t0": "answer", "t1": "answer"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "intake": {"settle_s": 1e-6, "scan_interval_s": 0.01},
    "run": {"commit_interval_s": 0.0005, "chunk_min": 2, "chunk_max": 2},
    "retention": {"outbox_days": 1, "rejected_days": 1},
    "disk": {"min_free_bytes": 0, "min_free_inodes": 0},
}
# So often the loops turn, at most, where it is not known whether anything comes of it.
ROUNDS = 12
# The same where something must come of it.
MOST_ROUNDS = 300
T = TypeVar("T")


class Inline(ThreadPoolExecutor):
    """Runs blocking work at once, in this thread."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401 - as the base class has it
        """Run it."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - the one who waits for it gets it
            future.set_exception(error)
        return future


class Answers(InertEngine):
    """An engine without a process, which answers what waits once that is released."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        self.released: dict[str, asyncio.Event] = {name: asyncio.Event() for name in REQUESTS}
        self._failed = False

    async def send(
        self, url: str, body: bytes, request_id: str, timeout_s: float, room: Room
    ) -> Reply | NoReply:
        """Answer by what the request's text asks for."""
        job, custom_id, text = json.loads(body)["messages"][0]["content"].split(": ")
        await asyncio.sleep(0)
        if text == "wait for good":
            await asyncio.Event().wait()
        if text == "wait":
            await self.released[job].wait()
        if text == "refuse":
            return Reply(400, b'{"error": {"message": "refused as asked"}}', request_id)
        if text == "fail once" and not self._failed:
            self._failed = True
            return Reply(500, b'{"error": {"message": "not now"}}', request_id)
        return Reply(200, json.dumps({"echo": custom_id}).encode(), request_id)


class Story:
    """One daemon, started twice, and its senders."""

    def __init__(self, base: Path) -> None:
        """Make the spool; nothing runs yet."""
        self.config = config(**SETTINGS)
        self.root = base / "spool"
        Spool(self.root).create()
        self._ids: set[str] = set()
        self._answering = ""
        self.strikes = Strikes(self.root, self._whose)

    # -- whose files are whose ------------------------------------------------------

    def _whose(self, name: str) -> bool | None:
        """Whether a name in the spool is of the struck sender's jobs."""
        name = name.removeprefix("notice.")
        if name.startswith(STRUCK) or name[:26] in self._ids:
            return True
        ours = name.startswith((SECOND, THIRD)) or (len(name) >= 26 and name[:26].isupper())
        return False if ours else None

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[None]:
        """Have no pause take long, and know the id of each claim."""
        story, real = self, ULID

        def identify() -> object:
            made = real()
            if story._answering.startswith(STRUCK):
                story._ids.add(str(made))
            return made

        answer = loop.Intake._answer_alone

        async def answer_alone(intake: loop.Intake, found: loop.Found) -> object:
            story._answering = found.entry.name
            return await answer(intake, found)

        remove = Spool.remove_whole

        def remove_whole(spool: Spool, paths: Sequence[Path]) -> None:
            story.strikes.name(paths[-1])
            remove(spool, paths)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Spool, "remove_whole", remove_whole)
            for module in (admission, redrive):
                patch.setattr(module, "ULID", identify)
            patch.setattr(loop.Intake, "_answer_alone", answer_alone)
            patch.setattr(files, "_PAUSE_S", 0.0)
            patch.setattr(admission, "_STUCK_S", 0.0005)
            patch.setattr(admission, "_STUCK_MAX_S", 0.0005)
            for module, name in (
                (arrivals, "BACKOFF_BASE_S"),
                (lifecycle, "HELD_S"),
                (commit, "FULL_PAUSE_S"),
                (loop, "HELD_S"),
            ):
                patch.setattr(module, name, 0.0005)
            patch.setattr(runner, "LONGEST_WAIT_S", 0.005)
            yield

    # -- the daemon -----------------------------------------------------------------

    def _start(self) -> None:
        """Start up, as `serve` does."""
        self.spool = Spool(self.root)
        self.spool.create()
        self.ledger = Ledger(self.spool.ledger)
        self.queue = recover(self.spool, self.ledger)
        self.engine = Answers()
        parts = assemble(
            self.config,
            self.spool,
            self.ledger,
            self.queue,
            lambda _: self.engine,
            lambda kind: Governor(self.config, kind),
            NoCard(),
        )
        self.runner, self.intake = parts.runner, parts.intake
        self.daemon = Daemon(parts, asyncio.Event())
        self._loop = asyncio.create_task(self.runner.run())

    async def _stop(self) -> None:
        await self.runner.drain(0)
        await self._loop
        for run in self.queue.runs():
            run.close()
        self.ledger.close()

    async def _turn(self) -> None:
        """Scan once, and let the runner turn a few times."""
        self._answering = ""
        await self.intake._scan_all(cast("Watcher", DeafWatcher()))
        for _ in range(12):
            await asyncio.sleep(0)
        await asyncio.sleep(0.0003)
        if self._loop.done():
            self._loop.result()

    async def _some(self, done: Callable[[], object]) -> None:
        """Turn until something is so, or for a while."""
        for _ in range(ROUNDS):
            if done():
                return
            await self._turn()

    async def _until(self, done: Callable[[], object], what: str) -> None:
        """Turn until something is so; it must be in the end."""
        for _ in range(MOST_ROUNDS):
            if done():
                return
            await self._turn()
        msg = f"not seen: {what}; {await self._told()}; {self._where()}"
        raise AssertionError(msg)

    async def _told(self) -> list[str]:
        """What the health says, in words."""
        await self.daemon._read_disk()
        now = time.monotonic()
        status = build(self.daemon._facts(now, 0), now)
        waiting = [f"{drop.name}: {drop.why}" for drop in status.waiting]
        return [*status.reasons, *waiting]

    # -- the senders ----------------------------------------------------------------

    def _drop(self, name: str, content: bytes = b"") -> None:
        with self.strikes.aside():
            made = self.root.parent / "upload"
            made.write_bytes(content)
            made.rename(self.root / "inbox" / name)

    def _send(self, name: str) -> None:
        lines = [chat(key, f"{name}: {key}: {text}") for key, text in REQUESTS[name].items()]
        self._drop(f"{name}.jsonl", b"".join(lines))

    def _published(self, name: str) -> bool:
        with self.strikes.aside():
            return (self.root / "outbox" / name / "output.jsonl").exists()

    def _dropped(self) -> list[str]:
        with self.strikes.aside():
            found = [path.name for path in (self.root / "inbox").iterdir()]
        return [name for name in found if name not in {"high", "low"}]

    def _active(self, name: str) -> bool:
        return self.queue.named(name) is not None

    def _running(self, name: str, ended: int) -> bool:
        """Whether that many of a job's requests have their outcome, committed."""
        runs = [run for run in self.queue.runs() if run.record.name == name]
        return bool(runs) and runs[0].progress.ended == ended

    # -- the story ------------------------------------------------------------------

    def play(self, strike: Callable[[Strikes], None]) -> int:
        """Play it all, with a strike; return how many calls there were until it was lifted.

        Raises AssertionError: something was lost, or was not told; or whatever ended a loop.
        """
        with asyncio.Runner() as loops, self._prepared():
            loops.get_loop().set_default_executor(Inline(1))
            return loops.run(self._play(strike))

    async def _play(self, strike: Callable[[Strikes], None]) -> int:
        with self.strikes.active():
            self._start()
            self._send(SECOND)
            await self._until(lambda: self._running(SECOND, 3), "the second job running")
            strike(self.strikes)
            await self._first_life()
            await self._stop()
            self.strikes.name()
            self._start()
            await self._second_life()
            calls = len(self.strikes.seen)
            self.strikes.lift()
            await self._afterwards()
            await self._stop()
        self._check_empty()
        return calls

    async def _first_life(self) -> None:
        self._drop(f"{STRUCK}.options.json", b'{"metadata": {"sent": "first"}}')
        self._send(STRUCK)
        await self._some(lambda: self._running(STRUCK, 3))
        self._drop(f"{BROKEN}.jsonl", b"no json\n")
        self._send(DOOMED)
        await self._some(lambda: not self._dropped() and self._running(DOOMED, 1))

    async def _second_life(self) -> None:
        await self._some(lambda: self._running(STRUCK, 3))
        self._send(THIRD)
        self.engine.released[SECOND].set()
        for name in (SECOND, THIRD):
            await self._until(partial(self._published, name), f"the results of {name}")
            self._check_results(name)
        self.engine.released[STRUCK].set()
        self._drop(f"{DOOMED}.cancel")
        await self._some(lambda: not (self._active(STRUCK) or self._active(DOOMED)))
        self._drop(f"{STRUCK}.redrive")
        await self._some(lambda: not self._dropped() and not self._active(f"{STRUCK}.redrive-1"))
        self._retain()
        for name in (SECOND, THIRD):
            assert not (self.root / "outbox" / name).exists(), (
                f"retention left {name}: {await self._told()}"
            )
        await self._check_told()

    async def _afterwards(self) -> None:
        """Without the fault whatever waited goes on by itself."""

        def over() -> bool:
            unsettled = self.intake.admission.unsettled
            return not (self._dropped() or self.queue.entries or unsettled)

        await self._some(over)
        if self._active(DOOMED) and not self._dropped():  # its order was refused
            self._drop(f"{DOOMED}.cancel")
        for sidecar in set(self._dropped()) & {f"{STRUCK}.options.json"}:
            with self.strikes.aside():  # it stayed alone, and only its sender may remove it
                assert not (self.root / "inbox" / f"{STRUCK}.jsonl").exists()
                (self.root / "inbox" / sidecar).unlink()
        await self._until(over, "the end of all")
        for name in (STRUCK, DOOMED):
            if self._published(name):
                self._check_results(name)
        self._retain()
        await self._stop()
        self._start()
        reasons = [words for words in await self._told() if "quarantine/" not in words]
        assert not reasons, reasons

    def _retain(self) -> None:
        self.strikes.name()
        retention.retain(self.config, self.spool, self.ledger, time.time() + 5 * DAY_S)

    # -- what must hold -------------------------------------------------------------

    def _check_results(self, name: str) -> None:
        """A job's folder holds its requests, each once."""
        folder, requests = self.root / "outbox" / name, REQUESTS[name]
        with self.strikes.aside():
            found = [
                json.loads(line)["custom_id"]
                for file in ("output.jsonl", "errors.jsonl")
                if (folder / file).exists()
                for line in (folder / file).read_bytes().splitlines()
            ]
            status = json.loads((folder / "status.json").read_bytes())
        assert sorted(found) == sorted(requests), f"{name}: {found}"
        assert status["request_counts"]["total"] == len(requests)

    async def _check_told(self) -> None:
        """Of each file of the struck sender it is known what became of it."""
        told = "\n".join(await self._told())
        over = {ended.name for ended in self.ledger.last_endings(100)}
        for name in (STRUCK, DOOMED, BROKEN):
            dropped = [drop for drop in self._dropped() if drop.startswith(f"{name}.")]
            # A sidecar waits with its job's file.
            waiting = [f"{name}.jsonl"] if f"{name}.jsonl" in dropped else dropped
            for drop in waiting:
                assert drop in told, f"{drop} waits, and the health says {told!r}"
            held = name in told or any(found in told for found in self._ids)
            assert name in over or waiting or held or self._active(name), (
                f"{name} is lost: {told!r}"
            )
            if self._active(name) and name != DOOMED:
                assert held, f"{name} is stuck, and the health says {told!r}"

    def _where(self) -> list[str]:
        with self.strikes.aside():
            paths = [path for path in self.root.rglob("*") if "ledger" not in path.parts]
            return [str(path.relative_to(self.root)) for path in paths if path.is_file()]

    def _check_empty(self) -> None:
        """Nothing is left but what is in quarantine/."""
        left = [path for path in self._where() if not path.startswith("quarantine/")]
        assert set(left) <= {"daemon.lock", "outbox/status.json"}, left
        for folder in ("claimed", "queued", "running", "outbox", "rejected"):
            there = [p.name for p in (self.root / folder).iterdir() if p.name != "status.json"]
            assert not there, f"{folder}/ still holds {there}"

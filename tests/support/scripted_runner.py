"""A runner on a real spool and a real ledger, before an engine that plays a script.

Purpose: everything between admission and publication in one event loop, with an engine
whose every answer, silence and death the test decides.
Invariants: only the engine is a fake; it holds the runner to what engines rely on: not
more in flight than the window, nothing that is not admitted on the disk, no request
beside itself.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import orjson

from builders import JOB_ID, config, job_record, make_spool
from inbox_daemon.contract.config import Config
from inbox_daemon.engine.base import EngineKind, EngineState, NoReply, NoReplyKind, Reply, Room
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.jobs.recovery import recover
from inbox_daemon.ledger import Ledger
from inbox_daemon.request.validation import Served, validate_file
from inbox_daemon.run.suspects import Suspects
from inbox_daemon.service.parts import assemble
from inert_engine import InertEngine, NoCard

PATIENCE_S = 20.0
URL = "/v1/completions"


def line(custom_id: str, *script: object, **body: object) -> bytes:
    """A request with what the engine will do: a status for each attempt, then 200.

    In place of a status: "timeout", "reset", "wait" (until released), "die", "too_large".
    With `max_tokens`, the answer has so many bytes of text.
    """
    prompt = orjson.dumps({"script": list(script), "echo": custom_id}).decode()
    line = {"custom_id": custom_id, "url": URL, "body": {"prompt": prompt} | body}
    return orjson.dumps(line) + b"\n"


class ScriptedEngine(InertEngine):
    """An engine that does what the request says."""

    def __init__(self, bench: "Bench") -> None:
        """Be ready at once."""
        super().__init__("m")
        self.bench = bench
        self.attempts: Counter[str] = Counter()
        self.sent: list[str] = []
        self.flying: dict[str, asyncio.Future[Reply | NoReply]] = {}
        self.released = asyncio.Event()
        self.most = 0
        self.starts = 1
        self.accepting = False
        self.refusing: int | None = None
        self.rng: Random | None = None
        self.owned = True

    @property
    def kind(self) -> EngineKind:
        """One of ours, unless the test says otherwise."""
        return EngineKind(owned=self.owned)

    async def send(
        self, url: str, body: bytes, request_id: str, timeout_s: float, room: Room
    ) -> Reply | NoReply:
        """Play the next step of the request's script."""
        if self.info.state is not EngineState.READY:  # it died since this was launched
            return NoReply(NoReplyKind.CONNECTION, "the engine is away")
        parsed = orjson.loads(body)
        parsed |= orjson.loads(parsed["prompt"])
        name = parsed["echo"]
        self._check(name, request_id)
        steps, number = parsed["script"], self.attempts[name]
        self.attempts[name] += 1
        self.sent.append(name)
        answer: asyncio.Future[Reply | NoReply] = asyncio.get_running_loop().create_future()
        self.flying[name] = answer
        self.most = max(self.most, len(self.flying))
        try:
            await self._think()
            scripted = steps[number] if number < len(steps) else 200
            self._act(self.refusing or scripted, parsed, answer)
            reply = await answer
            waiting = room.take(len(reply.body)) if isinstance(reply, Reply) else None
            if waiting is not None:
                await waiting
            return reply
        finally:
            self.flying.pop(name, None)

    def _check(self, name: str, request_id: str) -> None:
        """Hold the runner to its promises."""
        assert name not in self.flying, "a request is in flight twice"
        assert len(self.flying) < self.bench.governor.window, "the window is exceeded"
        job_id, number = request_id.removeprefix("batch_req_").rsplit("_", 1)
        admitted = self.bench.ledger.progress(job_id).admitted
        assert int(number) <= admitted, "a line started that no crash would know of"

    async def _think(self) -> None:
        """Let others in between: a turn of the loop, or some by chance."""
        for _ in range(self.rng.randint(1, 4) if self.rng else 1):
            await asyncio.sleep(0)

    def _act(self, step: object, parsed: Any, answer: asyncio.Future[Reply | NoReply]) -> None:  # noqa: ANN401 - JSON
        if answer.done():  # the engine died meanwhile
            return
        match step:
            case "die":
                self.die()
            case "wait":
                self.bench.tasks.add(asyncio.create_task(self._release(answer, parsed)))
            case "too_large":
                answer.set_result(NoReply(NoReplyKind.TOO_LARGE, "the answer is over 5 bytes"))
            case "timeout":
                answer.set_result(NoReply(NoReplyKind.TIMEOUT, "no answer in time"))
            case "reset":
                answer.set_result(NoReply(NoReplyKind.CONNECTION, "the connection was reset"))
            case int():
                answer.set_result(self.reply(step, parsed))

    async def _release(self, answer: asyncio.Future[Reply | NoReply], parsed: Any) -> None:  # noqa: ANN401 - JSON
        await self.released.wait()
        if not answer.done():
            answer.set_result(self.reply(200, parsed))

    def reply(self, status: int, parsed: Any) -> Reply:  # noqa: ANN401 - JSON
        """What a real server would say."""
        if status == 200:
            usage = {"prompt_tokens": 1, "completion_tokens": 2}
            body = {"echo": parsed["echo"], "model": parsed.get("model"), "usage": usage}
            if length := parsed.get("max_tokens"):
                body["text"] = "x" * length
        else:
            body = {"error": {"type": f"E{status}", "message": f"status {status}"}}
        return Reply(status, orjson.dumps(body), f"srv-{parsed['echo']}")

    def die(self) -> None:
        """Answer 500 to all that is in flight, as vLLM does, and be gone for a moment."""
        generation = self.info.generation + 1
        self.info = replace(self.info, state=EngineState.BACKOFF, generation=generation)
        for answer in self.flying.values():
            if not answer.done():
                answer.set_result(Reply(500, b'{"error":"EngineCore encountered an issue"}', "x"))
        asyncio.get_running_loop().call_later(0.001, self.rise)

    def rise(self) -> None:
        """Be ready again."""
        self.starts += 1
        self.info = replace(self.info, state=EngineState.READY)
        self.bench.runner.wake()

    async def lost(self, generation: int) -> bool:
        """Return whether the engine of that generation is gone."""
        await asyncio.sleep(0)
        return generation != self.info.generation

    async def accepts_us(self) -> bool:
        """Say what the test has set."""
        await asyncio.sleep(0)
        return self.accepting

    async def restart(self, reason: str) -> None:
        """Die at the supervisor's wish."""
        self.die()

    def kill(self) -> None:
        """Nothing is left behind."""


class FixedGovernor(Governor):
    """Window and chunk as the test sets them."""

    def __init__(self, settings: Config, window: int, chunk: int) -> None:
        """Take both figures."""
        super().__init__(settings, EngineKind())
        self.fixed = window
        self.chunk_size = chunk

    @property
    def window(self) -> int:
        """What the test has set."""
        return self.fixed


class Bench:
    """One life of spool, ledger, queue, engine and runner; the next one begins on the same disk."""

    def __init__(
        self, root: Path, *, window: int = 8, chunk: int = 4, **sections: dict[str, Any]
    ) -> None:
        """Recover what lies on the disk; nothing runs yet."""
        sections.setdefault("run", {})
        sections["run"] = {"commit_interval_s": 0.002} | sections["run"]
        self.config = config(**sections)
        self.spool = make_spool(root)
        self.ledger = Ledger(self.spool.ledger)
        self.queue = recover(self.spool, self.ledger)
        self._known = len(self.queue.recent)
        self.engine = ScriptedEngine(self)
        self.governor = FixedGovernor(self.config, window, chunk)
        self.tasks: set[asyncio.Task[None]] = set()
        self.task: asyncio.Task[None] | None = None
        self.threads = ThreadPoolExecutor()
        asyncio.get_running_loop().set_default_executor(self.threads)
        self.parts = assemble(
            self.config,
            self.spool,
            self.ledger,
            self.queue,
            lambda _: self.engine,
            lambda _: self.governor,
            NoCard(),
        )
        self.runner = self.parts.runner

    def add(self, *lines: bytes, name: str = "job", number: int = 0, **fields: Any) -> str:  # noqa: ANN401 - any field
        """Accept a job, as intake does; return its id."""
        job_id = f"{JOB_ID[:-1]}{number}"
        path = self.spool.queued / f"{job_id}.jsonl"
        path.write_bytes(b"".join(lines))
        found = validate_file(path, self.config.limits, Served(), keep_invalid=True)
        known = {"requests": found.requests, "model": found.model}
        known |= {"invalid": len(found.invalid), "lines_sha256": found.digest.hexdigest()}
        record = job_record(job_id, name, **(known | fields))
        self.ledger.accept(record, found.invalid)
        self.queue.add(record)
        self.runner.wake()
        return job_id

    @property
    def published(self) -> list[str]:
        """The names of the jobs that were published in this life, in order."""
        kinds = {"completed", "cancelled", "expired"}
        return [job.name for job in list(self.queue.recent)[self._known :] if job.status in kinds]

    @property
    def suspects(self) -> Suspects:
        """The runner's owner of the bisection."""
        return self.runner._suspects

    @property
    def problem(self) -> str | None:
        """What the runner says is wrong with the server."""
        return self.runner.facts().problem

    async def until(self, reached: Callable[[], object]) -> None:
        """Let the loop turn until something is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not reached():
                await asyncio.sleep(0.0005)
                if self.task is not None and self.task.done() and not reached():
                    self.task.result()

    async def finish(self) -> None:
        """Run until no job is left."""
        async with self.running():
            await self.until(lambda: not self.queue.entries)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Have the runner run; an error that ends it ends the test."""
        task = asyncio.create_task(self.runner.run())
        self.task = task
        try:
            yield task
            if task.done():
                task.result()
        finally:
            await stop(task)

    async def crash(self) -> None:
        """Drop everything that is only in memory; what a thread has begun may still end."""
        await stop(*self.runner._background, *self.tasks)
        await stop(*self.runner._attempts._tasks)
        self.threads.shutdown()
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        for run in self.queue.runs():
            run.close()
        self.ledger.close()

    async def some_turns(self) -> None:
        """Let the loop turn a few times, where nothing is expected to happen."""
        for _ in range(20):
            await asyncio.sleep(0)

    # -- what came out --------------------------------------------------------------

    def lines(self, file: str, name: str = "job") -> list[Any]:
        """The lines of a published file; none where it is not there."""
        path = self.spool.outbox / name / file
        if not path.exists():
            return []
        return [orjson.loads(line) for line in path.read_bytes().splitlines()]

    def ids(self, file: str = "output.jsonl", name: str = "job") -> list[str]:
        """The custom_ids of a published file."""
        return [line["custom_id"] for line in self.lines(file, name)]

    def codes(self, name: str = "job") -> dict[str, str]:
        """Why each request of errors.jsonl is there."""
        return {
            line["custom_id"]: line["error"]["code"] for line in self.lines("errors.jsonl", name)
        }

    def status(self, name: str = "job") -> dict[str, Any]:
        """A published job's status."""
        found: dict[str, Any] = orjson.loads(
            (self.spool.outbox / name / "status.json").read_bytes()
        )
        return found


async def stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait for their end, whatever it is."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

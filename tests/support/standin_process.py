"""Start stand-in engines from tests: as plain processes, or under our own supervision."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from inbox_daemon.contract.config import Config
from inbox_daemon.engine import Timing, open_engine
from inbox_daemon.engine.base import Engine, EngineInfo, EngineState, NoReply, Reply, Room
from inbox_daemon.run.budget import Budget

PROGRAM = Path(__file__).with_name("standin.py")
CHAT = "/v1/chat/completions"
LONG_S = 30.0
# As the real one in its order of events, but with a test's patience.
QUICK = Timing(
    start_timeout_s=20,
    start_poll_s=0.02,
    poll_s=0.05,
    confirm_s=0.1,
    restart_s=0.05,
    backoff_s=0.05,
    backoff_max_s=0.4,
    loss_grace_s=1,
    stop_grace_s=1,
)


def command(*options: str) -> list[str]:
    """Make an [engine] command that runs a stand-in."""
    return [sys.executable, str(PROGRAM), "--socket", "{socket}", "--model", "standin", *options]


def chat(text: str, **more: object) -> bytes:
    """Make the body of a chat request with one user message."""
    return orjson.dumps({"messages": [{"role": "user", "content": text}], **more})


def echoed(body: bytes) -> str:
    """Take the text out of a stand-in's answer to a chat."""
    return str(json.loads(body)["choices"][0]["message"]["content"])


@contextlib.asynccontextmanager
async def running_standin(*options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a stand-in without supervision; it listens when this begins."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), *options, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@dataclass
class Watched:
    """An engine under supervision, and every state that it has shown."""

    engine: Engine = field(init=False)
    seen: list[EngineInfo] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_change(self) -> None:
        """Take note of a change."""
        self.seen.append(self.engine.info)
        self._changed.set()

    async def until(self, wanted: Callable[[EngineInfo], bool]) -> EngineInfo:
        """Wait for a state that is wanted, and return it."""
        while not wanted(self.engine.info):
            self._changed.clear()
            await self._changed.wait()
        return self.engine.info


async def ask(watched: Watched, text: str) -> Reply | NoReply:
    """Send a chat with this text."""
    return await watched.engine.send(CHAT, chat(text), "r-1", LONG_S, ample_room())


def ample_room() -> Room:
    """Room for any answer."""
    return Budget(1 << 40).hold(0)


async def ready(watched: Watched, generation: int = 0) -> EngineInfo:
    """Wait until the engine of that generation is ready."""
    return await watched.until(
        lambda info: info.state is EngineState.READY and info.generation == generation
    )


@contextlib.asynccontextmanager
async def supervised(
    config: Config, state_dir: Path, timing: Timing | None = QUICK
) -> AsyncIterator[Watched]:
    """Run the engine of a configuration until the end of the block."""
    watched = Watched()
    watched.engine = open_engine(config, state_dir, on_change=watched.on_change, timing=timing)
    task = asyncio.create_task(watched.engine.run())
    try:
        yield watched
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def standin_config(tmp_path: Path, *options: str, **engine: object) -> Config:
    """Make a configuration whose engine is a stand-in with these options."""
    return Config.model_validate(
        {"spool": tmp_path, "engine": {"command": command(*options), **engine}}
    )


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"

"""The governor: what the card, the engine's kind and the runner's word allow."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from builders import config, job_record, make_spool, request
from inbox_daemon.engine.base import EngineInfo, EngineState, Fault, Load, Reply
from inbox_daemon.governor import MIN_WINDOW, Governor
from inbox_daemon.gpu import GpuSample
from inbox_daemon.jobqueue import JobQueue
from inbox_daemon.jobrun import JobRun
from inbox_daemon.ledger import Ledger
from inbox_daemon.runner import Runner
from inbox_daemon.window import DEFAULT_WINDOW

VLLM: dict[str, Any] = {"engine": {"model": "/models/one"}}
COMMAND: dict[str, Any] = {"engine": {"model": "one", "command": ["serve", "{socket}"]}}
ENDPOINT: dict[str, Any] = {"endpoint": {"url": "http://gpu-box:8000"}} | VLLM
CHILDREN = {"vllm": VLLM, "command": COMMAND}
NOT_OURS_TO_JUDGE = {"command": COMMAND, "endpoint": ENDPOINT, "nothing": {}}

HEALTHY = GpuSample("card", others_percent=10, temperature_c=60)
SILENT = GpuSample("card", healthy=False, problem="card cannot be used: it is gone")


def governor(sections: dict[str, Any]) -> Governor:
    """A governor of a daemon with that configuration."""
    return Governor(config(**sections))


def read(governed: Governor, *samples: GpuSample | None) -> list[bool]:
    """Let a governor read the card, and return whether it was closed after each reading."""
    closed = []
    for sample in samples:
        governed.read_gpu(sample)
        closed.append(governed.closed)
    return closed


# The card


def test_card_that_stops_answering_holds_everything_until_it_answers() -> None:
    """A vLLM of ours is sent nothing while its card is silent, and the reason says so."""
    governed = governor(VLLM)
    assert read(governed, HEALTHY, SILENT, SILENT) == [False, True, True]
    assert governed.window == 0
    assert "it is gone): nothing is sent until it does" in (governed.reason or "")
    assert read(governed, HEALTHY) == [False]
    assert governed.window == DEFAULT_WINDOW
    assert governed.reason is None


@pytest.mark.parametrize("kind", NOT_OURS_TO_JUDGE)
def test_silent_card_holds_no_engine_that_may_not_use_it(kind: str) -> None:
    """A server elsewhere or a command of the operator's goes on without this machine's card."""
    governed = governor(NOT_OURS_TO_JUDGE[kind])
    assert read(governed, HEALTHY, SILENT) == [False, False]
    assert governed.reason is None


def test_card_that_never_answered_holds_nothing() -> None:
    """Where NVML cannot be asked from the start, the engine alone shows whether it works."""
    assert read(governor(VLLM), SILENT, SILENT) == [False, False]


def test_no_card_is_normal() -> None:
    """A machine without a card holds nothing back, with the largest chunks."""
    governed = governor(VLLM)
    assert read(governed, None) == [False]
    assert (governed.window, governed.chunk_size, governed.reason) == (DEFAULT_WINDOW, 5000, None)


def test_hot_card_that_falls_silent_is_still_hot_when_it_answers() -> None:
    """Silence is no cooling: closed for heat, it opens only below the temperature for that."""
    governed = governor(VLLM)
    hot, warm = GpuSample("card", temperature_c=90), GpuSample("card", temperature_c=78)
    assert read(governed, hot, SILENT, warm, HEALTHY) == [True, True, True, False]


@pytest.mark.parametrize("kind", CHILDREN)
def test_memory_that_others_use_makes_chunks_small(kind: str) -> None:
    """With an engine of ours it is known which memory is its own."""
    governed = governor(CHILDREN[kind])
    read(governed, GpuSample("card", others_percent=85))
    assert governed.chunk_size == 1000


def test_memory_of_somebodys_server_is_not_held_against_chunks() -> None:
    """The server behind an endpoint may hold the whole card: that is what it is there for."""
    governed = governor(ENDPOINT)
    read(governed, GpuSample("card", others_percent=95))
    assert governed.chunk_size == 5000


# The window


def test_window_that_is_the_limit_grows_whatever_the_sample_shows() -> None:
    """The runner's word counts, and without it a window that is not full stays."""
    told, untold = governor(VLLM), governor(VLLM)
    told.read_engine(Load(100, 0), 100, 40, 1.0, limited=True)
    untold.read_engine(Load(100, 0), 100, 40, 1.0, limited=False)
    assert told.window > DEFAULT_WINDOW
    assert untold.window == DEFAULT_WINDOW


def test_window_cut_for_heat_does_not_grow_meanwhile() -> None:
    """What heat keeps back is not the window's limit: once cool, it is what it was."""
    governed = governor(VLLM)
    read(governed, GpuSample("card", temperature_c=84))
    cut = governed.window
    assert MIN_WINDOW <= cut < DEFAULT_WINDOW
    for second in range(20):
        governed.read_engine(Load(cut, 0), cut, 10, float(second), limited=True)
    read(governed, HEALTHY)
    assert governed.window == DEFAULT_WINDOW


def test_idle_night_beside_other_clients_keeps_the_window() -> None:
    """A server that others fill while we send nothing leaves the next job its window."""
    governed = governor(ENDPOINT)
    for second in range(1000):
        governed.read_engine(Load(512, 500), 0, 0, float(second), limited=False)
    assert governed.window == DEFAULT_WINDOW


# The runner's word, and its obedience


class Answering:
    """An engine in memory that answers the requests it holds when it is told to."""

    def __init__(self) -> None:
        """Begin ready and with nothing in flight."""
        self.info = EngineInfo(EngineState.READY, models=("one",))
        self.held: list[asyncio.Future[None]] = []

    async def send(self, url: str, body: bytes, request_id: str, timeout_s: float) -> Reply | Fault:
        """Hold a request until `answer`."""
        self.held.append(asyncio.get_running_loop().create_future())
        await self.held[-1]
        return Reply(200, b"{}", request_id)

    def answer(self, count: int) -> None:
        """Answer so many of those that have waited longest."""
        for _ in range(count):
            self.held.pop(0).set_result(None)

    async def run(self) -> None:
        """Nothing is to be kept up."""

    async def wait_ready(self) -> None:
        """It is ready."""

    async def lost(self, generation: int) -> bool:
        """It lives."""
        return False

    async def restart(self, reason: str) -> None:
        """It needs no restart."""

    def kill(self) -> None:
        """There is no process."""


async def wait_for(waiting: Coroutine[Any, Any, Any], timeout: float) -> object:  # noqa: ASYNC109 - as asyncio's
    """Wait as asyncio.wait_for does from Python 3.12 on: without a task of its own."""
    async with asyncio.timeout(timeout):
        return await waiting


async def settle(engine: Answering, held: int) -> None:
    """Let the loop turn until so many requests are with the engine, or clearly never."""
    for _ in range(2000):
        if len(engine.held) == held:
            break
        await asyncio.sleep(0.001)
    assert len(engine.held) == held


def start(root: Path, requests: int, engine: Answering, governed: Governor) -> Runner:
    """A runner over a job that is running, on a real spool and ledger."""
    spool, queue = make_spool(root), JobQueue()
    ledger = Ledger(spool.ledger)
    record = job_record(requests=requests)
    path = spool.input_path(record.id)
    path.parent.mkdir()
    path.write_bytes(b"".join(request(str(number)) + b"\n" for number in range(requests)))
    queue.add(record, JobRun(record, spool, ledger))

    async def publish(run: JobRun) -> None:
        queue.remove(run.record.id)

    return Runner(config(**VLLM), spool, ledger, queue, engine, governed, publish)


@contextlib.asynccontextmanager
async def turning(runner: Runner) -> AsyncIterator[None]:
    """Let a runner's loop turn meanwhile."""
    loop = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        loop.cancel()
        await asyncio.wait({loop})
        await runner.drain(0)


@pytest.mark.parametrize("waits", [asyncio.wait_for, wait_for], ids=["as here", "as from 3.12 on"])
async def test_place_of_an_answered_request_is_filled_in_the_same_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: object
) -> None:
    """Whatever way the loop is woken, what woke it no longer takes a place in the window."""
    engine, governed = Answering(), governor(VLLM)
    runner = start(tmp_path, 2 * DEFAULT_WINDOW, engine, governed)
    monkeypatch.setattr(asyncio, "wait_for", waits)
    monkeypatch.setattr(Runner, "_patience", lambda _: 60.0)
    async with turning(runner):
        await settle(engine, DEFAULT_WINDOW)
        for count in (1, 7, 1):
            engine.answer(count)
            await settle(engine, DEFAULT_WINDOW)


async def test_runner_says_whether_the_window_keeps_requests_back(tmp_path: Path) -> None:
    """It is the limit while there is more to send, and not once all is sent."""
    engine, governed = Answering(), governor(VLLM)
    runner = start(tmp_path, DEFAULT_WINDOW + 3, engine, governed)
    words = []
    async with turning(runner):
        await settle(engine, DEFAULT_WINDOW)
        words.append(runner.limited)
        engine.answer(3)
        await settle(engine, DEFAULT_WINDOW)
        words.append(runner.limited)
    assert words == [True, False]

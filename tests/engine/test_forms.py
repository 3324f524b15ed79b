"""A server with a faster form that cannot do everything, as vLLM's Rust front end is."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import pytest

from inbox_daemon.engine.base import EngineKind, EngineState, NoReply, NoReplyKind, Reply
from inbox_daemon.engine.process.child import Launch
from inbox_daemon.engine.process.servers import ChildServer
from inbox_daemon.engine.supervisor import Supervisor
from standin_process import CHAT, PROGRAM, QUICK, Watched, ample_room, chat

LACKS = ("--lacks", "/v1/embeddings")
EMBED = orjson.dumps({"input": "text"})
Run = Callable[..., contextlib.AbstractAsyncContextManager[Watched]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run an engine whose faster form is started with extra options."""

    @contextlib.asynccontextmanager
    async def run(*fast_options: str) -> AsyncIterator[Watched]:
        def launch(socket: Path, fast: bool) -> Launch:  # noqa: FBT001 - as ChildServer calls it
            words = (sys.executable, str(PROGRAM), "--socket", str(socket))
            return Launch((*words, *(fast_options if fast else ())), dict(os.environ))

        server = ChildServer(
            launch, tmp_path / "note", EngineKind(owned=True), has_fast_form=lambda: True
        )
        watched = Watched()
        watched.engine = Supervisor(server, QUICK, watched.on_change)
        task = asyncio.create_task(watched.engine.run())
        try:
            yield watched
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return run


async def test_a_path_that_the_faster_form_lacks_brings_the_other(run: Run) -> None:
    """The first such request costs a restart; then it is answered, as are all later ones."""
    async with run(*LACKS) as watched:
        await watched.engine.wait_ready()
        replies = await asyncio.gather(
            *(
                watched.engine.send("/v1/embeddings", EMBED, f"r-{n}", 30, ample_room())
                for n in range(20)
            )
        )
        assert {reply.kind for reply in replies if isinstance(reply, NoReply)} == {
            NoReplyKind.CONNECTION
        }
        assert len([reply for reply in replies if isinstance(reply, NoReply)]) == 20
        assert await watched.engine.lost(0)
        info = await watched.until(lambda info: info.state is EngineState.READY)
        assert (info.generation, info.restarts) == (1, 1)
        reply = await watched.engine.send("/v1/embeddings", EMBED, "again", 30, ample_room())
        assert isinstance(reply, Reply)
        assert reply.status == 200


async def test_a_404_about_the_model_is_an_answer(run: Run) -> None:
    """A path that is served may still answer 404, and that reaches the caller."""
    async with run(*LACKS) as watched:
        await watched.engine.wait_ready()
        reply = await watched.engine.send(CHAT, chat("x", model="unknown"), "r", 30, ample_room())
        assert isinstance(reply, Reply)
        assert reply.status == 404
        assert watched.engine.info.generation == 0


async def test_a_path_that_no_form_serves_is_an_answer(run: Run) -> None:
    """Once the safer form runs, a 404 is the server's answer."""
    async with run("--die-at-start", "RuntimeError: no") as watched:
        await watched.engine.wait_ready()
        reply = await watched.engine.send("/v1/nothing", EMBED, "r", 30, ample_room())
        assert isinstance(reply, Reply)
        assert reply.status == 404


async def test_a_faster_form_that_does_not_start_is_given_up(run: Run) -> None:
    """After a failure of unknown cause the safer form is started at once."""
    async with run("--die-at-start", "RuntimeError: option not supported") as watched:
        await watched.engine.wait_ready()
        assert watched.engine.info.restarts == 1
        assert "option not supported" in str(watched.engine.info.last_error)


async def test_a_failure_with_a_known_cause_keeps_the_faster_form(run: Run) -> None:
    """A full GPU is no fault of the form, so the same form is tried again after a pause."""
    async with run("--die-at-start", "OutOfMemoryError: CUDA out of memory") as watched:
        info = await watched.until(lambda info: info.restarts == 2)
        assert "the GPU is too small or too full" in str(info.last_error)

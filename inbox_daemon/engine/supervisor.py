"""Keep one engine up: start it, watch it, notice its death, restart it.

Purpose: the `Engine` of base.py, for a child and for a remote server alike.

    STOPPED ──run()──► STARTING ──alive──► READY
                          ▲  │ ended,        │ ended, says it is sick, gone,
              pause over  │  │ too slow      │ or restart()
                          │  ▼               ▼
                         BACKOFF ◄───────────┘   generation + 1

Invariants: an engine that fails raises nothing here and is tried without end, ever more
slowly; the first reason for an engine's end is the one that counts; the next one starts
when all processes of the last one are gone.
An engine that dies idle soon after it was ready, before any answer, counts as one that could
not be started: what kills it is not the work, and starts without a pause wear out the card.
Known limit: an engine that answers /health but computes nothing is not noticed here;
the worker sees that and calls `restart`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from inbox_daemon.engine.base import (
    EngineInfo,
    EngineKind,
    EngineState,
    Load,
    NoReply,
    NoReplyKind,
    Reply,
    Room,
)
from inbox_daemon.engine.client import MAX_ANSWER_BYTES, Client, ModelList, Probe
from inbox_daemon.engine.evidence import Sign
from inbox_daemon.engine.health import StartedEngine, Timing
from inbox_daemon.engine.process.servers import Server

_NOT_FOUND = 404
_SERVER_ERROR = 500
# What an answer says that knows no such model, in the first bytes of it.
_MODEL, _MAX_ERROR = b"model", 2000
_LOGGED_LINES = 10
# How much of an error is shown of a server that is out.
_SHOWN = 200
# The request that is sent again is a small one; the name that it is sent under.
_MAX_CONTROL_BYTES, _CONTROL, _CONTROL_S = 65536, "control", 60.0
log = logging.getLogger(__name__)

# Of an engine that does not run.
_NO_LOAD = Load()


class Supervisor:
    """The engine as the rest of the daemon knows it (base.py: Engine)."""

    def __init__(
        self,
        server: Server,
        timing: Timing,
        on_change: Callable[[], None],
        configured_model: str = "",
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        """Supervise `server`; `on_change` is called after each change of state.

        Of an answer at most `max_answer_bytes` are read.
        """
        self._server, self._max_answer_bytes = server, max_answer_bytes
        self._timing = timing
        self._on_change = on_change
        self._info = EngineInfo(
            EngineState.STOPPED, since=time.monotonic(), configured_model=configured_model
        )
        self._engine: StartedEngine | None = None
        self._ready = asyncio.Event()
        # The engine that was started last, until the pause after its end is known.
        self._last: StartedEngine | None = None
        self._retry_at: float | None = None
        self._failures = 0
        self._starts = 0
        # Since when (in seconds since 1970) no request was answered, and what was met last.
        self._out_since: float | None = None
        self._trouble = ""
        self._asked_to_wait_s = 0.0
        # The newest request that was answered, to tell a server that is out from a bad request.
        self._control: tuple[str, bytes] | None = None
        self._controlling = asyncio.Lock()
        # The share of requests that failed while others were answered, until the engine's end.
        self._share = 0.0

    @property
    def kind(self) -> EngineKind:
        """What the server is."""
        return self._server.kind

    @property
    def info(self) -> EngineInfo:
        """The newest known facts."""
        load = self._engine.load if self._engine else _NO_LOAD
        if load is not self._info.load:  # asked for in each turn of the runner's loop
            self._info = replace(self._info, load=load)
        if self._retry_at is None:
            return self._info
        return replace(self._info, retry_in_s=max(0.0, self._retry_at - time.monotonic()))

    def pids(self) -> tuple[int, ...]:
        """Its processes; /proc is read for them until it is ready, as new ones come."""
        ready = self._info.state is EngineState.READY
        return self._info.pids if ready else self._server.pids

    async def run(self) -> None:
        """Keep the engine up until cancelled, then stop it."""
        try:
            await self._attempt(self._server.prepare())
            while True:
                await self._attempt(self._live())
                await self._attempt(self._clear_up())
                delay = self._delay()
                self._retry_at = time.monotonic() + delay
                self._on_change()
                await asyncio.sleep(delay)
                self._retry_at = None
        finally:
            engine, self._engine, self._retry_at = self._engine, None, None
            try:
                if engine:
                    await engine.close()
                await self._server.stop(self._timing.stop_grace_s)
            finally:
                self._become(replace(self._info, state=EngineState.STOPPED, pids=()))

    async def wait_ready(self) -> None:
        """Return as soon as the engine is ready."""
        await self._ready.wait()

    async def send(
        self, url: str, body: bytes, request_id: str, timeout_s: float, room: Room
    ) -> Reply | NoReply:
        """Send one request; NoReply at once while the engine is not ready."""
        engine = self._engine
        if engine is None or not self._ready.is_set():
            return NoReply(NoReplyKind.CONNECTION, f"the engine is {self._info.state}")
        kept = (url, body) if len(body) <= _MAX_CONTROL_BYTES else None
        sending = engine.post(url, body, request_id, timeout_s, room)
        del body  # or it would be held until the answer is there
        reply, sign = await sending
        self._note(engine, kept, reply, sign)
        if isinstance(reply, NoReply):
            return reply
        engine.answered = engine.answered or reply.status < _SERVER_ERROR
        if reply.status == _NOT_FOUND and _MODEL in reply.body[:_MAX_ERROR]:
            engine.models_doubted.set()
        if reply.status == _NOT_FOUND and engine.substitutable:
            # Distinguish a path that this form of the server lacks from an answer of the engine.
            served = await engine.client.serves(url)
            if engine.over.done():
                return NoReply(NoReplyKind.CONNECTION, "the engine ended meanwhile")
            if served:
                return reply
            self._server.substitute()
            self._end(engine, f"this form of the server has no {url}; it is replaced by the other")
            return NoReply(
                NoReplyKind.CONNECTION, f"the server, which has no {url}, is being replaced"
            )
        return reply

    async def lost(self, generation: int) -> bool:
        """Look whether that engine is dead; one that is slow to answer counts as alive.

        A server of others is lost too where no request is answered (engine/evidence.py).
        """
        engine = self._engine
        if engine and self._is_ready(generation):
            found = engine.examine() if self.kind.owned else self._disproved(engine)
            reason = await found
            if reason:
                self._end(engine, reason)
        return not self._is_ready(generation)

    def _note(
        self,
        engine: StartedEngine,
        kept: tuple[str, bytes] | None,
        reply: Reply | NoReply,
        sign: Sign,
    ) -> None:
        """Draw the conclusions of a reply for the server that gave it.

        `kept` is the request, if it is small enough to be sent again as a control.
        """
        if engine is not self._engine or engine.over.done():
            return
        if isinstance(reply, Reply) and reply.retry_after_s is not None:
            self._asked_to_wait_s = reply.retry_after_s
        if sign is Sign.ANSWER:
            self._out_since = None
            self._control = kept or self._control
            if not self._info.proven:
                self._become(replace(self._info, proven=True))
        elif sign is not Sign.NOTHING:
            self._trouble = _words_of(reply)
            if not self.kind.owned and engine.evidence.out:
                self._end(engine, self._out_words())

    async def _disproved(self, engine: StartedEngine) -> str | None:
        """Return why a server counts as out after a failure; None where it answers others.

        Where no other request is answered in time, one that was answered before is sent again
        to tell a server that is out from a request that always fails.
        """
        if not engine.evidence.proven:
            return self._out_words()
        since = time.monotonic()
        if await engine.answers(since) or engine.over.done():
            return None
        # Unlike a vLLM of ours, a server that looks well need not be looked at twice.
        if await engine.client.health() is not Probe.ALIVE:
            reason = await engine.examine()
            if reason is not None:
                return reason
        if self._control is None:
            return None
        async with self._controlling:
            return None if await self._control_answers(engine, since) else self._out_words()

    async def _control_answers(self, engine: StartedEngine, since: float) -> bool:
        """Return whether a request is answered that was before, or another one by now.

        Where a share of all requests fails it may be among them, so it is tried as often as
        it takes to be more than chance.
        """
        if self._control is None:
            return False
        url, body = self._control
        for _ in range(max(1, engine.evidence.needed)):
            if engine.evidence.answered_at >= since or engine.over.done():
                return True
            _, sign = await engine.post(url, body, _CONTROL, _CONTROL_S)
            if sign is Sign.ANSWER:
                return True
        return False

    def _out_words(self) -> str:
        """Return the sentence for a server that answers no request, and since when."""
        self._out_since = self._out_since or time.time()
        moment = datetime.fromtimestamp(self._out_since, UTC).astimezone()
        return f"it has answered no request since {moment:%Y-%m-%d %H:%M:%S} ({self._trouble})"

    async def accepts_us(self) -> bool:
        """Ask the engine for its models; no where it does not run."""
        return self._engine is not None and await self._engine.client.accepts_us()

    async def refresh_load(self) -> None:
        """Read the figures now; an engine that is not ready has none."""
        engine = self._engine
        if engine is not None and self._ready.is_set():
            await engine.read_load()

    async def restart(self, reason: str) -> None:
        """Declare the engine dead and kill it; it is restarted as after a death."""
        if self._engine:
            self._end(self._engine, reason)

    def kill(self) -> None:
        """Kill a child with all its processes, without waiting; for a forced exit."""
        self._server.kill()

    def _is_ready(self, generation: int) -> bool:
        return self._info.generation == generation and self._info.state is EngineState.READY

    # One engine.

    async def _attempt(self, step: Coroutine[Any, Any, None]) -> None:
        """Take a step; whatever it raises is the end of this engine, not of the daemon."""
        try:
            await step
        except OSError as error:
            self._fail(f"the engine cannot be started: {error}")
        except Exception as error:
            log.exception("engine_supervision_failed")
            self._fail(f"the engine cannot be supervised: {error!r}")

    async def _live(self) -> None:
        self._starts += 1
        state = EngineState.STARTING
        self._become(replace(self._info, state=state, restarts=self._starts - 1))
        client = Client(await self._server.start(), max_answer_bytes=self._max_answer_bytes)
        share, substitutable = self._share, self._server.has_substitute
        engine = StartedEngine(client, self._timing, substitutable=substitutable, share=share)
        self._engine = self._last = engine
        tasks = [
            asyncio.create_task(self._server.ended()),
            asyncio.create_task(self._watch(engine)),
        ]
        following = asyncio.create_task(self._follow_models(engine))
        try:
            await asyncio.wait({*tasks, engine.over}, return_when=asyncio.FIRST_COMPLETED)
            reason = next((task.result() for task in tasks if task.done()), "")
            self._end(engine, reason)
        finally:
            for task in (*tasks, following):
                task.cancel()
            await asyncio.gather(*tasks, following, return_exceptions=True)

    async def _watch(self, engine: StartedEngine) -> str:
        """Bring the engine up and watch it; returns what is wrong with it."""
        trouble = await engine.until_alive()
        if trouble is not None:
            return self._server.not_ready(self._timing.start_timeout_s, trouble)
        # The figures too, so that the first status of a ready engine has them.
        models, version, _ = await asyncio.gather(
            engine.client.models(), engine.client.version(), engine.read_load()
        )
        if engine.over.done():
            return engine.over.result()
        models = models or ModelList()
        if not self.kind.owned and self._control is not None:
            if not await self._control_answers(engine, time.monotonic()):
                return self._out_words()
            self._out_since = None
        engine.ready_at = time.monotonic()
        self._become(
            replace(
                self._info,
                state=EngineState.READY,
                proven=self.kind.owned or engine.evidence.proven,
                models=models.names,
                max_model_len=models.max_model_len,
                version=version,
                pids=self._server.pids,
            )
        )
        log.info("engine_ready", extra={"models": models.names, "version": version})
        return await engine.watch()

    async def _follow_models(self, engine: StartedEngine) -> None:
        """Keep the list of models true: adapters are loaded and backends added at run time."""
        await self._ready.wait()
        async for found in engine.follow_models():
            before = self._info.models
            if found.names != before and self._ready.is_set():
                self._control = None  # its model may be gone
                log.info("models_changed", extra={"models": found.names, "before": before})
                length = found.max_model_len
                self._become(replace(self._info, models=found.names, max_model_len=length))

    # Its end.

    def _end(self, engine: StartedEngine, reason: str) -> None:
        """Declare an engine over, once; its processes are ended by `run`, not here."""
        if engine is self._engine and not engine.over.done():
            engine.over.set_result(reason)
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        was_ready = self._info.state is EngineState.READY
        log.warning("engine_lost" if was_ready else "engine_failed", extra={"reason": reason})
        generation = self._info.generation + was_ready
        state = EngineState.BACKOFF
        self._become(
            replace(self._info, state=state, generation=generation, last_error=reason, pids=())
        )

    async def _clear_up(self) -> None:
        """Stop what is left of the engine, then read its last lines."""
        engine, self._engine = self._engine, None
        if engine:
            self._share = engine.evidence.share
            await engine.close()
        await self._server.stop(self._timing.loss_grace_s)
        error, lines = self._server.explain(self._info.last_error or ""), self._server.lines
        self._become(replace(self._info, last_error=error, last_lines=lines))
        log.warning("engine_ended", extra={"reason": error, "lines": lines[-_LOGGED_LINES:]})

    def _delay(self) -> float:
        last, self._last = self._last, None
        if last is not None and last.ready_at is not None:
            if last.answered or time.monotonic() - last.ready_at > self._timing.proven_s:
                self._failures = 0
                return self._timing.restart_s
            if last.asked and self.kind.owned:  # the bisection decides how long it goes on so
                return self._timing.restart_s
        elif self._server.start_differently():
            return self._timing.restart_s
        self._failures += 1
        # The exponent stays small, as the power of a large one is no float any more.
        doubled = self._timing.backoff_s * 2.0 ** min(self._failures - 1, 20)
        asked_s, self._asked_to_wait_s = self._asked_to_wait_s, 0.0
        return max(min(self._timing.backoff_max_s, doubled), asked_s)

    def _become(self, info: EngineInfo) -> None:
        if info.state is not self._info.state:
            info = replace(info, since=time.monotonic())
        self._info = info
        if info.state is EngineState.READY:
            self._ready.set()
        else:
            self._ready.clear()
        self._on_change()


def _words_of(reply: Reply | NoReply) -> str:
    """Return what came back in place of an answer, in words."""
    if isinstance(reply, NoReply):
        return reply.message
    text = reply.body[:_MAX_ERROR].decode("utf-8", "replace").strip()
    shown = " ".join(text.split())[:_SHOWN]
    return f"it answers {reply.status}" + (f": {shown}" if shown else "")

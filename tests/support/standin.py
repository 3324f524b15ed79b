"""A stand-in engine: an OpenAI-compatible server that computes nothing and fails on demand.

Run as a program: `python tests/standin.py --socket S [options]` or with `--port P`.
Its answers are in standin_answers.py, its faults in standin_faults.py.  It listens
like vLLM: nothing before it is ready, then /health, /v1/models, /version, /metrics.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from standin_answers import PATHS, answer, count_tokens, error, last_text
from standin_faults import Fault, find_faults
from standin_options import parse_options

VERSION = "0.0.standin"
DEATH = "EngineCore encountered an issue. See stack trace (above) for the root cause."
_MAX_BODY = 1 << 28
_FOREVER = 1e6


class Standin:
    """The server's state: what runs, what was executed, whether it is dead."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Read the executions that earlier stand-ins with this log have noted."""
        self.options = options
        self.dead = False
        self.frozen = False
        self.running = 0
        self.waiting = 0
        self.tokens = 0
        self._sleepers: set[asyncio.Future[None]] = set()
        self._slots = asyncio.Semaphore(options.slots) if options.slots else None
        self._random = random.Random(options.seed)
        self._executions = Counter(_noted(options.log))
        self._log = _open_append(options.log)

    # What is always there.

    async def health(self, _request: web.Request) -> web.Response:
        """Answer 200 until the engine is dead, then 503."""
        return web.Response(status=503 if self.dead else 200)

    async def models(self, _request: web.Request) -> web.Response:
        """List the model, and those of --models-file."""
        length = self.options.max_model_len
        entries = [
            {"id": name, "object": "model", "max_model_len": length} for name in self._served()
        ]
        return _json({"object": "list", "data": entries})

    def _served(self) -> list[str]:
        more = self.options.models_file
        return [self.options.model, *(more.read_text().split() if more and more.exists() else ())]

    async def version(self, _request: web.Request) -> web.Response:
        """Tell the version."""
        return _json({"version": VERSION})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Tell the figures that vLLM tells, in its names."""
        use = self.running / self.options.slots if self.options.slots else 0.0
        label = f'{{engine="0",model_name="{self.options.model}"}}'
        values = {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting,
            "kv_cache_usage_perc": use,
            "num_preemptions_total": 0,
            "prompt_tokens_total": self.tokens,
            "generation_tokens_total": self.tokens,
        }
        lines = [f"vllm:{name}{label} {value}" for name, value in values.items()]
        return web.Response(text="# HELP vllm:x Nothing.\n" + "\n".join(lines) + "\n")

    # Requests.

    async def execute(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, or fail as its text asks."""
        raw = await request.read()
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return _error(400, "There was an error parsing the body", "BadRequestError")
        refusal = self._refusal(body)
        if refusal:
            return refusal
        async with self._slot():
            return await self._run(request, body)

    def _refusal(self, body: dict[str, Any]) -> web.Response | None:
        model = body.get("model")
        if model is not None and model not in self._served():
            return _error(404, f"The model `{model}` does not exist.", "NotFoundError")
        length = self.options.max_model_len
        if count_tokens(body) > length:
            message = f"This model's maximum context length is {length} tokens."
            return _error(400, message, "BadRequestError")
        return None

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            if self._slots:
                await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if self._slots:
                self._slots.release()

    async def _run(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = last_text(body)
        faults = self._note(request, text)
        await self._compute(faults)
        if self.dead:
            return _error(500, DEATH)
        self.tokens += count_tokens(body)
        name = next((fault.name for fault in faults if fault.name != "slow"), "")
        document = orjson.dumps(answer(request.path, body, self.options.model, text))
        if name in ("reset", "truncate"):
            return await _break_off(request, document if name == "truncate" else None)
        return _response(faults[0] if faults else None, document)

    def _note(self, request: web.Request, text: str) -> list[Fault]:
        self._executions[text] += 1
        if self._log is not None:
            name = request.headers.get("X-Request-Id", "")
            line = {"pid": os.getpid(), "request_id": name, "url": request.path, "text": text}
            os.write(self._log, orjson.dumps(line) + b"\n")
        count = self._executions[text]
        return [fault for fault in find_faults(text) if fault.hits(count)]

    async def _compute(self, faults: list[Fault]) -> None:
        seconds = self.options.latency
        if self.options.jitter:
            seconds *= self._random.uniform(1 - self.options.jitter, 1 + self.options.jitter)
        for fault in faults:
            if fault.name == "slow":
                seconds += fault.value
            elif fault.name == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault.name == "crash":
                self._die()
            elif fault.name in ("hang", "freeze"):
                self.frozen = self.frozen or fault.name == "freeze"
                seconds = _FOREVER
        if self.frozen:
            seconds = _FOREVER
        if seconds > 0:
            await self._sleep(seconds)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the engine lives."""
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        self._sleepers.add(sleeper)
        alarm = loop.call_later(seconds, _wake, sleeper)
        try:
            await sleeper
        finally:
            alarm.cancel()
            self._sleepers.discard(sleeper)

    def _die(self) -> None:
        """Die as vLLM does: answer all with 500, be unhealthy for a while, exit with status 0."""
        if not self.dead:
            self.dead = True
            for sleeper in self._sleepers:
                _wake(sleeper)
            print("vllm.v1.engine.exceptions.EngineDeadError: " + DEATH, flush=True)  # noqa: T201
            asyncio.get_running_loop().call_later(self.options.death_delay, os._exit, 0)


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _response(fault: Fault | None, document: bytes) -> web.Response:
    if fault is None:
        pass
    elif fault.status:
        return _error(fault.status, f"asked to answer {fault.status}", "AskedForError")
    elif fault.name == "garbage":
        return web.Response(text="<html>this is no JSON</html>")
    elif fault.name == "empty":
        return web.Response()
    elif fault.name == "big":
        document = orjson.dumps({"big": "x" * int(fault.value)})
    elif fault.name == "pretty":
        document = orjson.dumps(orjson.loads(document), option=orjson.OPT_INDENT_2)
    return web.Response(body=document, content_type="application/json")


async def _break_off(request: web.Request, document: bytes | None) -> web.StreamResponse:
    """Send half of the document, or nothing, and reset the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    if document:
        response.content_length = len(document)
        await response.prepare(request)
        await response.write(document[: len(document) // 2])
    if request.transport:
        request.transport.close() if document else request.transport.abort()
    return response


def _json(document: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(document), content_type="application/json")


def _error(status: int, message: str, kind: str = "InternalServerError") -> web.Response:
    body = error(status, message, kind)
    return web.Response(status=status, body=body, content_type="application/json")


def _noted(log: Path | None) -> list[str]:
    if log is None or not log.exists():
        return []
    return [orjson.loads(line)["text"] for line in log.read_bytes().splitlines()]


def _open_append(path: Path | None) -> int | None:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if path else None


def _app(standin: Standin) -> web.Application:
    app = web.Application(client_max_size=_MAX_BODY)
    app.router.add_get("/v1/models", standin.models)
    if not standin.options.bare:
        app.router.add_get("/health", standin.health)
        app.router.add_get("/version", standin.version)
        app.router.add_get("/metrics", standin.metrics)
    for path in PATHS:
        if path not in standin.options.lacks:
            app.router.add_post(path, standin.execute)
    return app


def _listen(options: argparse.Namespace) -> socket.socket:
    if options.port is not None:
        return socket.create_server(("127.0.0.1", options.port), backlog=4096)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options.socket)
    listener.listen(4096)
    return listener


async def serve(options: argparse.Namespace, standin: Standin) -> None:
    """Listen, and answer until SIGTERM."""
    runner = web.AppRunner(_app(standin), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await asyncio.sleep(options.start_delay)
    listener = _listen(options)
    await web.SockSite(runner, listener, backlog=4096).start()
    print("listening", flush=True)  # noqa: T201 - tests read it
    if options.port is not None:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)  # noqa: T201 - likewise
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.cleanup()


def _begin(options: argparse.Namespace) -> None:
    """Note the start; die if this one is to; spawn what is to be left behind."""
    if options.starts:
        with options.starts.open("a") as starts:
            starts.write(f"{os.getpid()}\n")
        started = len(options.starts.read_text().splitlines())
        if started <= options.die_starts:
            sys.exit("RuntimeError: this start was asked to fail")
    if options.die_at_start is not None:
        sys.exit(options.die_at_start)
    if options.helper:
        # As vLLM's engine process: in the session, but not ended with its parent.
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])


if __name__ == "__main__":
    chosen = parse_options(__doc__)
    _begin(chosen)
    asyncio.run(serve(chosen, Standin(chosen)))

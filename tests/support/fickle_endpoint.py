"""An endpoint whose bad night a test directs: a router that is always well, and its backends.

Purpose: every way in which a server that others run fails, switched while requests fly.
Invariants: it answers in OpenAI's shapes as the stand-in does, has no metrics, and says that
it is well (200 at /health and /v1/models) whatever its backends do; it runs in a thread of the
test's process on 127.0.0.1 and ends with the block.
"""

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from standin_answers import answer, last_text
from standin_faults import find_faults

MODEL = "standin"
# What the backends do: answer, or fail in one of these ways.
Failure = Callable[[web.Request], Any]


def _words(
    status: int, text: str = "", content_type: str = "text/plain", **headers: str
) -> Failure:
    def fail(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, content_type=content_type, headers=headers)

    return fail


def _json(status: int, document: object) -> Failure:
    return _words(status, orjson.dumps(document).decode(), "application/json")


async def reset(request: web.Request) -> web.Response:
    """Break the connection."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def silence(_request: web.Request) -> web.Response:
    """Answer nothing for a while, then that there is no room."""
    await asyncio.sleep(0.3)
    return web.Response(status=408)


# As the programs do that are named: vllm-router, smg, LiteLLM's proxy, nginx, vLLM.
FAILURES: dict[str, Failure] = {
    "503 text": _words(503, "Service Unavailable: no available workers"),
    "500 json": _json(500, {"error": {"message": "connection refused", "code": 500}}),
    "502 html": _words(502, "<html><h1>502 Bad Gateway</h1></html>", "text/html"),
    "504 html": _words(504, "<html><h1>504 Gateway Time-out</h1></html>", "text/html"),
    "408 empty": silence,
    "429 retry-after": _words(429, "slow down", **{"Retry-After": "1"}),
    "404 model": _json(404, {"error": {"message": "The model `standin` does not exist."}}),
    "200 empty": _words(200),
    "200 html": _words(200, "<html>maintenance</html>", "text/html"),
    "302": _words(302, Location="https://login.invalid/"),
    "reset": reset,
}


@dataclass
class FickleEndpoint:
    """The server, and what it saw.

    `failure` is how it fails now, None where it answers; `share` is how many of the requests do,
    by chance, once it has got `after` of them.  `limit` refuses what is over so many at a time,
    `slots` lets it wait; an answer takes `latency_s`.
    """

    failure: Failure | None = None
    share: float = 1.0
    after: int = 0
    limit: int | None = None
    slots: int | None = None
    latency_s: float = 0.01
    port: int = 0
    executions: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    most: int = 0
    # Set with each request that failed.
    failed: int = 0
    # How long the backends are away after a request has killed them.
    restart_s: float = 0.2
    _random: random.Random = field(default_factory=lambda: random.Random(7))
    _inside: int = 0
    _served: int = 0
    _dead: asyncio.Event | None = None
    _semaphore: asyncio.Semaphore | None = None

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    async def _execute(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        text = last_text(body)
        self._served += 1
        failing = self.failure is not None and self._served > self.after
        if self.failure is not None and failing and self._random.random() < self.share:
            self.failed += 1
            found = self.failure(request)
            response: web.StreamResponse = await found if asyncio.iscoroutine(found) else found
            return response
        if self.limit is not None and self._inside >= self.limit:
            self.refused += 1
            return web.Response(status=429, text="too many requests")
        self.executions[text] += 1
        self._inside += 1
        self.most = max(self.most, self._inside)
        try:
            return await self._answer(request, body, text)
        finally:
            self._inside -= 1

    async def _answer(
        self, request: web.Request, body: dict[str, Any], text: str
    ) -> web.StreamResponse:
        if self.slots is not None and self._semaphore is None:
            self._semaphore = asyncio.Semaphore(self.slots)
        async with self._semaphore or contextlib.nullcontext():
            dead = self._dead = self._dead or asyncio.Event()
            fault = next((f for f in find_faults(text) if f.hits(self.executions[text])), None)
            if fault is not None and fault.name == "kill":
                asyncio.get_running_loop().call_later(self.latency_s, dead.set)
                asyncio.get_running_loop().call_later(
                    self.latency_s + self.restart_s, setattr, self, "_dead", None
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(dead.wait(), self.latency_s * (5 if fault else 1))
            if dead.is_set():
                return await reset(request)
        if fault is not None and fault.status is not None:
            error = {"error": {"message": f"asked for {fault.status}", "type": "Asked"}}
            return web.json_response(error, status=fault.status)
        return web.json_response(answer(request.path, body, MODEL, text))

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/{path:.*}", self._execute)
        return app


@contextlib.contextmanager
def fickle_endpoint(**options: Any) -> Iterator[FickleEndpoint]:  # noqa: ANN401 - as the class takes them
    """Run one until the end of the block."""
    endpoint, loop, up = FickleEndpoint(**options), asyncio.new_event_loop(), threading.Event()

    async def serve() -> web.AppRunner:
        runner = web.AppRunner(endpoint.app(), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        endpoint.port = runner.addresses[0][1]
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(serve())
        up.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert up.wait(30)
    try:
        yield endpoint
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)

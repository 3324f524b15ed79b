"""The engine of the soak: the stand-in, with weather over all requests and a journal.

    SOAK_JOURNAL=J SOAK_WEATHER=W python server.py --socket S [options]

The journal has a line when an execution begins and one when it ends, written before the
answer is sent: {"at", "server", "n", "id", "what", "text"} and {"at", "server", "n", "what",
"kind", "status"}, with `kind` ok, refused (a 4xx) or failed.  The weather is a file,
{"kind", "share", "seconds"}: what happens to that share of the requests.  A request's
`[[large=N]]` asks for an answer of N bytes.
"""

import asyncio
import json
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

import standin
from standin_answers import last_text
from standin_options import parse_options

_LARGE = re.compile(r"\[\[large=(\d+)\]\]")
_TEXT_CHARS = 120
_LONG_S = 1e5
_REFUSED, _FAILED = 400, 500


class SoakServer(standin.Standin):
    """A stand-in that notes what it does."""

    def __init__(self, options: Any, journal: Path, weather: Path) -> None:  # noqa: ANN401 - argparse
        """Open the journal."""
        super().__init__(options)
        self._weather_path, self._weather_seen = weather, (0, 0)
        self._weather: dict[str, Any] = {}
        self._fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._name, self._count = f"{os.getpid()}-{time.monotonic_ns()}", 0
        self._chance = random.Random(self._name)

    async def execute(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, or do what the weather does."""
        body = await request.read()
        text = last_text(orjson.loads(body))
        self._count += 1
        number, name = self._count, request.headers.get("X-Request-Id", "")
        self._write(n=number, what="begun", id=name, text=text[:_TEXT_CHARS])
        response = await self._answer(request, text)
        self._write(n=number, what="ended", kind=_kind(response), status=response.status)
        return response

    async def _answer(self, request: web.Request, text: str) -> web.StreamResponse:
        weather = self._look_out()
        kind = weather.get("kind", "calm")
        if kind != "calm" and self._chance.random() < weather.get("share", 1.0):
            stormy = await self._storm(kind, weather.get("seconds", 1.0), request)
            if stormy is not None:
                return stormy
        response = await super().execute(request)
        large = _LARGE.search(text)
        if large and response.status == 200 and isinstance(response, web.Response):
            whole = orjson.loads(_bytes_of(response))
            whole["padding"] = "x" * int(large[1])
            response = web.Response(body=orjson.dumps(whole), content_type="application/json")
        return response

    async def _storm(
        self, kind: str, seconds: float, request: web.Request
    ) -> web.StreamResponse | None:
        if kind == "slow":
            await asyncio.sleep(seconds)
        elif kind == "hang":
            await asyncio.sleep(_LONG_S)
        elif kind == "reset":
            if request.transport:
                request.transport.abort()
            return web.Response(status=599)
        elif kind == "garbage":
            return web.Response(text="<html>no JSON</html>")
        elif kind.isdecimal():
            error = {"error": {"message": f"the weather is {kind}", "code": int(kind)}}
            return web.json_response(error, status=int(kind))
        return None

    def _look_out(self) -> dict[str, Any]:
        try:
            found = self._weather_path.stat()
            seen = found.st_mtime_ns, found.st_ino
            if seen != self._weather_seen:
                self._weather, self._weather_seen = (
                    json.loads(self._weather_path.read_bytes()),
                    seen,
                )
        except (OSError, ValueError):
            return {}
        return self._weather

    def _write(self, **fields: object) -> None:
        line = {"at": time.monotonic(), "server": self._name, **fields}
        os.write(self._fd, orjson.dumps(line) + b"\n")


def _kind(response: web.StreamResponse) -> str:
    if response.status == 200:
        body = _bytes_of(response) if isinstance(response, web.Response) else b""
        return "ok" if body.startswith(b"{") else "failed"
    return "refused" if _REFUSED <= response.status < _FAILED else "failed"


def _bytes_of(response: web.Response) -> bytes:
    return response.body if isinstance(response.body, bytes) else b""


def main() -> None:
    """Serve until SIGTERM."""
    options = parse_options(__doc__)
    weather = Path(os.environ["SOAK_WEATHER"])
    if weather.exists() and json.loads(weather.read_bytes()).get("kind") == "down":
        sys.exit("RuntimeError: the weather does not let it start")
    server = SoakServer(options, Path(os.environ["SOAK_JOURNAL"]), weather)
    asyncio.run(standin.serve(options, server))


if __name__ == "__main__":
    main()

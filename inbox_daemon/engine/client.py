"""HTTP to one server: over a Unix socket, or to an address of the network.

Purpose: send a request's bytes and bring back the answer's; ask the server how it is.
Invariants: nothing here raises for what the server does or fails to do; a body is
passed on byte for byte; no number of requests in flight is refused or queued here.
Known limits: no proxy and no redirect is followed; an endpoint that wants an API key
cannot be used; an answer is held in memory whole, up to `max_answer_bytes`.
"""

import asyncio
import os
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

import aiohttp
import orjson
from aiohttp.abc import AbstractStreamWriter

from inbox_daemon import __version__
from inbox_daemon.contract.config import without_password
from inbox_daemon.engine.base import Load, NoReply, NoReplyKind, Reply, Room
from inbox_daemon.engine.load import parse_load

MAX_ANSWER_BYTES = 64 * 1024 * 1024
# What the server says of itself is small.
_MAX_PAGE_BYTES = 8 * 1024 * 1024
# A body is handed to the connection in pieces of this many bytes: on most Pythons aiohttp would
# copy it whole to join it with its headers.
_PIECE_BYTES = 1 << 18
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=5)
_CONNECT_S = 10
# The rest of a request has a deadline of ours, which stands still while an answer waits for room.
_CONNECT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
# vLLM's server closes a connection that was idle for 5 s; a request written to it at
# that moment would be lost, so ours are let go well before.
_KEEPALIVE_S = 2.0
_NO_SUCH_METHOD = 501
_SERVER_ERROR = 500
_NOT_FOUND = 404
_OK = 200
_CLIENT_ERROR = 400
# An answer within this share of its request's time did not use it up.
_EARLY_SHARE = 0.9
# A server that asks for more than a day is asked again all the same.
_MAX_RETRY_AFTER_S = 86400.0
# What a request's name in a header may be, so that it can be written into a document.
_NAME = re.compile(r"[!-~]{1,200}")
_MAX_WORDS = 500
# TimeoutError is an OSError; the other two are what a session says that was closed.
_BROKEN = (aiohttp.ClientError, OSError, ValueError, RuntimeError)


class Probe(StrEnum):
    """What a look at /health showed.

    SICK: the server says itself that it cannot serve.  GONE: nothing listens, or the
    connection broke.  SLOW: connected, but no answer in time, as a busy server does.
    """

    ALIVE = "alive"
    SICK = "sick"
    GONE = "gone"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class ModelList:
    """What /v1/models says; the length counts tokens and is the first model's."""

    names: tuple[str, ...] = ()
    max_model_len: int | None = None


class Client:
    """One server's client.  Make and use it inside the running event loop."""

    def __init__(self, address: str, *, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        """Take `unix:/path`, `http://host:port` or `https://host:port`, each with a prefix.

        Of an answer to a request at most `max_answer_bytes` are read.
        """
        self._base, self._session = _open_session(address, keepalive_timeout=_KEEPALIVE_S)
        # A look at the server is worth something only by a new connection: old ones go on
        # when its socket is gone and nothing else can reach it.
        _, self._looks = _open_session(address, force_close=True)
        self._max_answer_bytes = max_answer_bytes
        # What the last look at /health met, in words, unless it was alive.
        self.trouble: str | None = None

    async def close(self) -> None:
        """Drop all connections; what is in flight ends as a CONNECTION fault."""
        await self._session.close()
        await self._looks.close()

    async def post(
        self, url: str, body: bytes, request_id: str, timeout_s: float, room: Room | None
    ) -> Reply | NoReply:
        """Send a JSON body to the path `url` and wait at most `timeout_s` for all of the answer.

        What the answer waits for `room` is no part of that; None: it need not be counted.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                # Each step that is left out counts here: this runs for every request.  As a
                # payload the body need not be looked up by its type, and `async with` would
                # take two coroutines more.
                kind = aiohttp.BytesPayload if len(body) <= _PIECE_BYTES else _InPieces
                sending = self._session.post(
                    self._base + url,
                    data=kind(body, content_type="application/json"),
                    headers={"X-Request-Id": request_id},
                    timeout=_CONNECT_TIMEOUT,
                    allow_redirects=False,
                )
                del body  # the session lets it go once it is sent
                response = await sending
                try:
                    answer = await self._read(response, self._max_answer_bytes, room, deadline)
                finally:
                    response.release()
        except aiohttp.ConnectionTimeoutError:
            return NoReply(NoReplyKind.CONNECTION, f"no connection within {_CONNECT_S} s")
        except TimeoutError:
            return NoReply(NoReplyKind.TIMEOUT, f"no answer within {timeout_s:g} s")
        except _BROKEN as error:
            return NoReply(NoReplyKind.CONNECTION, _explain(error))
        if isinstance(answer, NoReply):
            return answer
        # A header may hold any bytes, and this one is written into results.
        named = response.headers.get("X-Request-Id", "")
        name = named if _NAME.fullmatch(named) else request_id
        if response.status < _CLIENT_ERROR:
            return Reply(response.status, answer, name)
        early = time.monotonic() - started < _EARLY_SHARE * timeout_s
        after_s = retry_after(response.headers.get("Retry-After", ""), time.time())
        return Reply(response.status, answer, name, after_s, early)

    async def health(self) -> Probe:
        """Look at /health.

        A server without that path is alive by answering at all; 5xx is a server that
        says itself that it cannot serve (vLLM: 503 once its engine process died).
        """
        try:
            status, _ = await self._fetch("/health", self._looks)
        except TimeoutError:
            self.trouble = f"no answer within {_PROBE_TIMEOUT.total:g} s"
            return Probe.SLOW
        except _BROKEN as error:
            self.trouble = _explain(error)
            return Probe.GONE
        sick = status >= _SERVER_ERROR and status != _NO_SUCH_METHOD
        self.trouble = f"/health answers {status}" if sick else None
        return Probe.SICK if sick else Probe.ALIVE

    async def models(self) -> ModelList | None:
        """Ask which model names requests may use; None when the server does not say."""
        entries = (await self._get_json("/v1/models")).get("data")
        if not isinstance(entries, list):
            return None
        models = [entry for entry in entries if isinstance(entry, dict)]
        lengths = [entry.get("max_model_len") for entry in models]
        return ModelList(
            tuple(str(entry["id"]) for entry in models if "id" in entry),
            next((length for length in lengths if isinstance(length, int)), None),
        )

    async def accepts_us(self) -> bool:
        """Return whether the server gives us its list of models; False if it refuses us."""
        answer = await self._get("/v1/models")
        return answer is not None and answer[0] == _OK

    async def version(self) -> str | None:
        """Ask for the server's version; None when it has none to tell."""
        version = (await self._get_json("/version")).get("version")
        return version if isinstance(version, str) else None

    async def load(self) -> Load:
        """Ask for the engine's figures; all None when the server has no metrics."""
        answer = await self._get("/metrics")
        if answer is None or answer[0] != _OK:
            return Load()
        return parse_load(answer[1].decode(errors="replace"))

    async def serves(self, url: str) -> bool:
        """Return whether the server knows the path: GET is the wrong method there, but not 404."""
        answer = await self._get(url)
        return answer is None or answer[0] != _NOT_FOUND

    async def _get(self, path: str) -> tuple[int, bytes] | None:
        try:
            return await self._fetch(path)
        except _BROKEN:
            return None

    async def _fetch(
        self, path: str, session: aiohttp.ClientSession | None = None
    ) -> tuple[int, bytes]:
        async with (session or self._session).get(
            self._base + path, timeout=_PROBE_TIMEOUT, allow_redirects=False
        ) as response:
            answer = await self._read(response, _MAX_PAGE_BYTES)
        if isinstance(answer, NoReply):
            raise aiohttp.ClientPayloadError(answer.message)
        return response.status, answer

    async def _get_json(self, path: str) -> dict[str, Any]:
        answer = await self._get(path)
        if answer is None or answer[0] != _OK:
            return {}
        try:
            document = orjson.loads(answer[1])
        except orjson.JSONDecodeError:
            return {}
        return document if isinstance(document, dict) else {}

    async def _read(
        self,
        response: aiohttp.ClientResponse,
        most: int,
        room: Room | None = None,
        deadline: asyncio.Timeout | None = None,
    ) -> bytes | NoReply:
        """Read a body of at most `most` bytes, as there is `room`; the `deadline` waits for that.

        A length that the server has said is taken at once, so that an answer which is begun
        can be ended.
        """
        length = response.content_length
        if length is None or length <= most:
            parts, size = list[bytes](), 0
            if length and room is not None:
                await _take(room, length, deadline)
            while size <= most:
                part = await response.content.readany()
                if not part:
                    return b"".join(parts)  # one part is not copied
                size += len(part)
                parts.append(part)
                if length is None and room is not None:
                    await _take(room, len(part), deadline)
        response.close()
        return NoReply(NoReplyKind.TOO_LARGE, f"the answer is over {most} bytes")


async def _take(room: Room, count: int, deadline: asyncio.Timeout | None) -> None:
    """Take room for a part of an answer; a deadline stands still until there is some."""
    waiting = room.take(count)
    if waiting is None:
        return
    if deadline is None:
        await waiting
        return
    loop, ends = asyncio.get_running_loop(), deadline.when()
    left_s = None if ends is None else ends - loop.time()
    deadline.reschedule(None)
    await waiting
    deadline.reschedule(None if left_s is None else loop.time() + left_s)


class _InPieces(aiohttp.BytesPayload):
    """A large body, written as the connection takes it and never copied as a whole."""

    def __init__(self, value: bytes, content_type: str) -> None:
        """Take the body; not as its parent does, which warns of large ones."""
        aiohttp.Payload.__init__(self, value, content_type=content_type)
        self._size = len(value)

    async def write_with_length(
        self,
        writer: AbstractStreamWriter,
        content_length: int | None,  # noqa: ARG002 - the payload's own length, as the client sets it
    ) -> None:
        """Write all of it."""
        view = memoryview(self._value)
        for start in range(0, len(view), _PIECE_BYTES):
            await writer.write(view[start : start + _PIECE_BYTES])


def _open_session(address: str, **kept: Any) -> tuple[str, aiohttp.ClientSession]:  # noqa: ANN401 - as the connector takes them
    connector: aiohttp.BaseConnector
    if address.startswith("unix:"):
        base = "http://localhost"
        connector = aiohttp.UnixConnector(address.removeprefix("unix:"), limit=0, **kept)
    else:
        # OpenAI's own clients are given the address with /v1, which our paths hold already.
        base = address.rstrip("/").removesuffix("/v1")
        connector = aiohttp.TCPConnector(limit=0, **kept)
    return base, aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # Bodies come back as they were written, so none may be compressed on the way.
        headers={
            "Accept-Encoding": "identity",
            "Accept": "application/json",
            "User-Agent": f"inbox-daemon/{__version__}",
        },
        auto_decompress=False,
    )


def retry_after(value: str, now: float) -> float | None:
    """Return what a Retry-After asks for, in seconds from `now` (since 1970) on.

    It holds seconds or a date (RFC 9110, 10.2.3); None for anything else.
    """
    try:
        if value.isascii() and value.isdigit():
            return float(min(int(value), _MAX_RETRY_AFTER_S))
        wanted = parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(wanted - now, 0.0), _MAX_RETRY_AFTER_S)


def _explain(error: Exception) -> str:
    """Return why a connection failed, in words; what is not known to us in the library's."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            words = f"the name {error.host} cannot be resolved"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            words = f"TLS failed: {error.os_error or error}"
        case aiohttp.ClientConnectorError() if error.errno:
            words = os.strerror(error.errno).lower()
        case aiohttp.ClientConnectorError():
            words = str(error)
        case _:
            words = f"{type(error).__name__}: {error}"
    # The library quotes bytes of the server that need not be text.
    return without_password(words)[:_MAX_WORDS].encode("utf-8", "backslashreplace").decode()

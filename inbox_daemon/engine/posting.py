"""POST over HTTP/1.1, by hand: the one request that is sent by the hundred thousand.

Purpose: send a JSON body and bring back status, body and `X-Request-Id`, for a quarter
of the CPU time that a general client takes; bench/RESULTS.md has the figures.
Invariants: a body is passed on byte for byte; a connection carries one request at a
time, and is used again only after an answer that was read to its exact end; what is not
understood closes the connection and is an error, never a guess.
Known limits: no TLS, no proxy, no redirect, no compression, no trailers; header lines
that are folded are refused.  Source: RFC 9112.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

# vLLM's server closes a connection that was idle for 5 s; a request written to it at
# that moment would be lost, so ours are let go well before.
KEEPALIVE_S = 2.0
CONNECT_S = 10.0
_MAX_HEAD_BYTES = 1 << 16
_END = b"\r\n\r\n"
_LINE = b"\r\n"
_BODILESS = frozenset({204, 304})
_CODE, _DIGITS, _HEX = (
    re.compile(pattern) for pattern in (rb"[1-9][0-9]{2}", rb"[0-9]{1,15}", rb"[0-9A-Fa-f]{1,12}")
)


class ProtocolError(ValueError):
    """What came back is no answer of HTTP/1.1 that we read."""


class TooLargeError(ValueError):
    """The answer is larger than it may be."""

    def __init__(self, limit: int) -> None:
        """Name the limit, in bytes."""
        super().__init__(f"the answer is over {limit} bytes")


class ConnectError(ConnectionError):
    """Nobody took the connection in time."""


class Answer(NamedTuple):
    """What the server said; `request_id` is None when it named none."""

    status: int
    body: bytes
    request_id: str | None


class Connection(asyncio.Protocol):
    """One connection, and the one request that is on it."""

    def __init__(self, pool: "Pool") -> None:
        """Belong to a pool."""
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._parser: _Parser | None = None
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """Say whether another request may be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes) -> asyncio.Future[Answer]:
        """Send a request; the future gets its answer, or OSError or ValueError."""
        assert self._transport is not None  # noqa: S101 - a pool hands out what is connected
        self._answer = self._pool.loop.create_future()
        self._parser = _Parser(self._pool.max_body_bytes)
        self._transport.write(head + body)
        return self._answer

    def close(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: Exception) -> None:
        """End the request with an error, and the connection."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()

    # -- asyncio.Protocol -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the way to the server."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read on; the last bytes of an answer make the connection free."""
        parser, answer = self._parser, self._answer
        if parser is None or answer is None or answer.done():
            self.close()  # nobody has asked for this
            return
        try:
            complete = parser.feed(data)
        except ValueError as error:
            self.fail(error)
            return
        if complete:
            self._finish(parser, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """End what was waited for; an answer without a length ends like this."""
        self._pool.forget(self)
        parser, answer = self._parser, self._answer
        if answer is None or answer.done():
            return
        if exc is None and parser is not None and parser.ends_with_connection:
            self._finish(parser, answer)
        else:
            answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def _finish(self, parser: "_Parser", answer: asyncio.Future[Answer]) -> None:
        self._parser = self._answer = None
        if not parser.reusable:
            self.close()
        answer.set_result(parser.answer())


class Pool:
    """All connections to one server."""

    def __init__(
        self,
        connect: Callable[[Callable[[], Connection]], Awaitable[tuple[object, Connection]]],
        host: str,
        max_body_bytes: int,
    ) -> None:
        """Connect with `connect`; `host` is what the server is told that it is."""
        self.loop = asyncio.get_running_loop()
        self.max_body_bytes = max_body_bytes
        self._connect, self._host = connect, host
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._closed = False

    def close(self) -> None:
        """Break all connections and what is in flight on them."""
        self._closed = True
        for connection in list(self._all):
            connection.fail(ConnectionAbortedError("the client was closed"))

    def forget(self, connection: Connection) -> None:
        """Take note that a connection is gone."""
        self._all.discard(connection)

    async def post(self, path: str, body: bytes, request_id: str, timeout_s: float) -> Answer:
        """Send a JSON body and wait at most `timeout_s` seconds for all of the answer.

        Raises TimeoutError, OSError, ValueError.
        """
        if self._closed:
            raise ConnectionAbortedError("the client was closed")
        head = self._head(path, body, request_id)
        connection = self._take() or await self._open()
        answer = connection.send(head, body)
        alarm = self.loop.call_later(timeout_s, connection.fail, TimeoutError())
        try:
            return await answer
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            alarm.cancel()
            self._give_back(connection)

    def _head(self, path: str, body: bytes, request_id: str) -> bytes:
        if not (path.isprintable() and request_id.isprintable()):
            raise ProtocolError("a path or a request's id would break the line that it is in")
        return (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: application/json\r\n"
            f"Accept-Encoding: identity\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode("latin-1")

    def _take(self) -> Connection | None:
        """The connection that was used last, so that the others may be let go."""
        fresh = time.monotonic() - KEEPALIVE_S
        while self._idle and self._idle[0].idle_since < fresh:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _open(self) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await self._connect(lambda: Connection(self))
        except TimeoutError:
            raise ConnectError from None
        self._all.add(connection)
        if self._closed:  # meanwhile
            connection.close()
        return connection

    def _give_back(self, connection: Connection) -> None:
        if connection.usable and not self._closed:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)


class _Parser:
    """One answer, from its first byte to its last."""

    __slots__ = (
        "_body",
        "_buffer",
        "_chunked",
        "_ended",
        "_left",
        "_limit",
        "_request_id",
        "_size",
        "_status",
        "ends_with_connection",
        "reusable",
    )

    def __init__(self, limit: int) -> None:
        """Hold a body of at most `limit` bytes."""
        self._limit, self._size = limit, 0
        self._buffer = bytearray()
        self._status = 0
        self._request_id: str | None = None
        # Bytes until the end of the body or of the chunk; None: nobody said, or between chunks.
        self._left: int | None = None
        self._body: list[bytes] = []
        self._chunked = self._ended = self.ends_with_connection = False
        self.reusable = True

    def answer(self) -> Answer:
        """The answer, once it is complete."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Answer(self._status, body, self._request_id)

    def feed(self, data: bytes) -> bool:
        """Read on; True when the answer is complete.

        Raises ProtocolError, TooLargeError.
        """
        self._buffer += data
        while not self._status:
            end = self._buffer.find(_END)
            if end < 0:
                if len(self._buffer) > _MAX_HEAD_BYTES:
                    raise ProtocolError("the answer's head does not end")
                return False
            head = bytes(self._buffer[:end])
            del self._buffer[: end + len(_END)]
            self._read_head(head)
        return self._read_chunks() if self._chunked else self._read_body()

    # -- the head -------------------------------------------------------------------

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(_LINE)
        version, _, rest = first.partition(b" ")
        code = rest[:3]
        if not (version.startswith(b"HTTP/1.") and _CODE.fullmatch(code)):
            raise ProtocolError("what came back is not HTTP/1.1")
        if code < b"200":  # an interim answer; the real one follows
            return
        self._status = int(code)
        self.reusable = version == b"HTTP/1.1"
        self._measure(self._read_headers(lines))

    def _read_headers(self, lines: list[bytes]) -> int | None:
        """Take what matters; return the length that was announced."""
        length: bytes | None = None
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or name.strip() != name or not name:
                raise ProtocolError("a header of the answer is no header")
            name, value = name.lower(), value.strip()
            if name == b"content-length":
                if length not in {None, value} or not _DIGITS.fullmatch(value):
                    raise ProtocolError("the answer's Content-Length is no length")
                length = value
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked" or self._chunked:
                    raise ProtocolError("the answer's Transfer-Encoding is not chunked")
                self._chunked = True
            elif name == b"connection":
                self.reusable = self.reusable and b"close" not in value.lower()
            elif name == b"x-request-id":
                self._request_id = value.decode("latin-1")
        return None if length is None else int(length)

    def _measure(self, length: int | None) -> None:
        """Find out how the body ends."""
        if self._status in _BODILESS:
            self._left, self._chunked = 0, False
        elif self._chunked:
            if length is not None:
                raise ProtocolError("the answer has both a length and chunks")
        elif length is not None:
            self._left = length
            self._hold(length)
        else:
            self.ends_with_connection, self.reusable = True, False

    def _hold(self, size: int) -> None:
        """Raise TooLargeError when a body of so many bytes more is too large."""
        self._size += size
        if self._size > self._limit:
            raise TooLargeError(self._limit)

    # -- the body -------------------------------------------------------------------

    def _read_body(self) -> bool:
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._left is None:  # until the connection ends
            self._hold(len(data))
            self._body.append(data)
            return False
        if len(data) > self._left:
            self.reusable = False  # more than was announced: nothing after it can be trusted
            data = data[: self._left]
        self._body.append(data)
        self._left -= len(data)
        return self._left == 0

    def _read_chunks(self) -> bool:
        while (line := self._read_chunk()) is not None:
            if self._ended:  # what follows are trailers, and then an empty line
                if not line:
                    self.reusable = self.reusable and not self._buffer
                    return True
                continue
            size = line.partition(b";")[0].strip()
            if not _HEX.fullmatch(size):
                raise ProtocolError("a chunk of the answer has no size")
            self._left = int(size, 16)
            self._hold(self._left)
            if self._left == 0:
                self._ended, self._left = True, None
        return False

    def _read_chunk(self) -> bytes | None:
        """Take the rest of a chunk, and return the line after it; None: more must come."""
        if self._left:
            part = bytes(self._buffer[: self._left])
            del self._buffer[: len(part)]
            self._body.append(part)
            self._left -= len(part)
        if self._left == 0:
            if len(self._buffer) < len(_LINE):
                return None
            if not self._buffer.startswith(_LINE):
                raise ProtocolError("a chunk of the answer is longer than its size")
            del self._buffer[: len(_LINE)]
            self._left = None
        return self._read_line() if self._left is None else None

    def _read_line(self) -> bytes | None:
        end = self._buffer.find(_LINE)
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise ProtocolError("a line of the answer does not end")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + len(_LINE)]
        return line

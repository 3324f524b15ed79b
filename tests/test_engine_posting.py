"""POST by hand: what is read, what is refused, and when a connection is used again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_daemon.engine.base import Fault, FaultKind, Reply
from inbox_daemon.engine.client import Client
from inbox_daemon.engine.posting import (
    Answer,
    Pool,
    ProtocolError,
    TooLargeError,
    _Parser,
)

LIMIT = 1000
LONG_S = 30.0
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Request-Id: x1\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nhel\r\n2;name=value\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
)
INTERIM = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + PLAIN
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
GOOD = {
    PLAIN: Answer(200, b"hello", "x1"),
    CHUNKED: Answer(200, b"hello", None),
    INTERIM: Answer(200, b"hello", "x1"),
    EMPTY: Answer(204, b"", None),
}


def fed(*parts: bytes, limit: int = LIMIT) -> tuple[bool, _Parser]:
    """Feed bytes in parts; say whether the answer is complete after the last."""
    parser = _Parser(limit)
    complete = False
    for part in parts:
        assert not complete
        complete = parser.feed(part)
    return complete, parser


@pytest.mark.parametrize("data", GOOD, ids=["length", "chunks", "interim", "empty"])
def test_an_answer_is_read_whole(data: bytes) -> None:
    """Each form of a body gives status, body and the server's id, and frees the connection."""
    complete, parser = fed(data)
    assert complete
    assert parser.answer() == GOOD[data]
    assert parser.reusable


@pytest.mark.parametrize("data", GOOD, ids=["length", "chunks", "interim", "empty"])
def test_where_bytes_are_cut_does_not_matter(data: bytes) -> None:
    """An answer that comes byte by byte, or in two parts cut anywhere, is the same."""
    complete, parser = fed(*(data[n : n + 1] for n in range(len(data))))
    assert complete
    assert parser.answer() == GOOD[data]
    for cut in range(1, len(data)):
        complete, parser = fed(data[:cut], data[cut:])
        assert complete
        assert parser.answer() == GOOD[data]


@given(
    st.lists(st.binary(min_size=1, max_size=50), max_size=8),
    st.lists(st.integers(1, 400), max_size=10),
)
def test_any_chunks_give_their_bytes(chunks: list[bytes], cuts: list[int]) -> None:
    """Whatever the chunks hold and wherever the stream is cut, the body is their sum."""
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    borders = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    complete, parser = fed(*(data[start:end] for start, end in pairwise(borders)))
    assert complete
    assert parser.answer().body == b"".join(chunks)


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    """Whatever comes, the parser waits, is complete, or says what is wrong."""
    first = b"HTTP/1.1 200 OK\r\n"
    for start in (b"", first, first + b"Transfer-Encoding: chunked\r\n\r\n"):
        with contextlib.suppress(ProtocolError, TooLargeError):
            fed(start + data)


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nhel\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000,
    ],
)
def test_what_is_not_understood_is_refused(head: bytes) -> None:
    """Two readings of one answer are an error, and never a guess."""
    with pytest.raises(ProtocolError):
        fed(head)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001,
    ],
    ids=["length", "chunk", "until-closed"],
)
def test_a_body_over_the_limit_is_refused_early(data: bytes) -> None:
    """An answer that says that it will be too large is not waited for."""
    with pytest.raises(TooLargeError, match="the answer is over 1000 bytes"):
        fed(data)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + b"more",
        CHUNKED + b"more",
        PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["more", "more-after-chunks", "close", "http-1.0"],
)
def test_a_connection_is_not_used_again_where_the_answer_forbids_it(data: bytes) -> None:
    """Bytes after the end, the server's wish and the old protocol end the connection."""
    complete, parser = fed(data)
    assert complete
    assert parser.answer().body == b"hello"
    assert not parser.reusable


# -- connections ----------------------------------------------------------------------


@asynccontextmanager
async def serving(serve: Serve, path: Path | None = None) -> AsyncIterator[int]:
    """Run a server by hand, on a socket or on a port, which the block gets.

    A failed assertion in it fails the test.
    """
    running: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.append(asyncio.create_task(handle(reader, writer)))

    if path is not None:
        server = await asyncio.start_unix_server(start, path)
        port = 0
    else:
        server = await asyncio.start_server(start, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
    await asyncio.gather(*running)


@asynccontextmanager
async def served(path: Path, serve: Serve) -> AsyncIterator[Client]:
    """Run such a server on a socket, and a client of it."""
    async with serving(serve, path):
        client = Client(f"unix:{path}")
        try:
            yield client
        finally:
            await client.close()


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one request: its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


async def test_a_request_is_written_as_http_has_it(tmp_path: Path) -> None:
    """Path, host, id, types and length are in the head, and the body follows byte for byte."""
    seen: list[tuple[bytes, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(PLAIN)

    async with served(tmp_path / "s", serve) as client:
        assert await client.post("/v1/x", b"\x00\xffbody", "r-1", LONG_S) == Reply(
            200, b"hello", "x1"
        )
    [(head, body)] = seen
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/x HTTP/1.1"
    assert {b"Host: localhost", b"X-Request-Id: r-1", b"Content-Length: 6"} <= {*lines}
    assert body == b"\x00\xffbody"


async def test_a_connection_is_used_again(tmp_path: Path) -> None:
    """Requests one after the other take one connection; those at a time one each."""
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        while True:
            await request_of(reader)
            writer.write(PLAIN)

    async with served(tmp_path / "s", serve) as client:
        for _ in range(5):
            assert isinstance(await client.post("/x", b"{}", "r", LONG_S), Reply)
        assert len(connections) == 1
        await asyncio.gather(*(client.post("/x", b"{}", "r", LONG_S) for _ in range(4)))
        assert len(connections) == 4


async def test_an_answer_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    """What an old server sends until it closes is the body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhel")
        await writer.drain()
        writer.write(b"lo")
        writer.close()

    async with served(tmp_path / "s", serve) as client:
        for _ in range(2):
            assert await client.post("/x", b"{}", "r", LONG_S) == Reply(200, b"hello", "r")


@pytest.mark.parametrize("answer", [b"", PLAIN[:-1], CHUNKED[:-2]], ids=["none", "body", "chunk"])
async def test_a_connection_that_ends_too_early_is_a_fault(tmp_path: Path, answer: bytes) -> None:
    """An answer that is cut is no answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer)
        writer.close()

    async with served(tmp_path / "s", serve) as client:
        fault = await client.post("/x", b"{}", "r", LONG_S)
        assert isinstance(fault, Fault)
        assert fault.kind is FaultKind.CONNECTION


async def test_a_server_that_has_closed_in_the_meantime_costs_nothing(tmp_path: Path) -> None:
    """A kept connection that the server has closed is not sent anything."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(PLAIN)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with served(tmp_path / "s", serve) as client:
        for _ in range(3):
            closed.clear()
            assert isinstance(await client.post("/x", b"{}", "r", LONG_S), Reply)
            await closed.wait()
            await asyncio.sleep(0)


async def test_bytes_that_nobody_asked_for_end_a_kept_connection(tmp_path: Path) -> None:
    """What comes between two requests is never taken for the second one's answer."""
    more = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(PLAIN)
        await more.wait()
        writer.write(PLAIN.replace(b"hello", b"wrong"))
        assert await reader.read() == b""

    async with served(tmp_path / "s", serve) as client:
        assert isinstance(await client.post("/x", b"{}", "r", LONG_S), Reply)
        assert client._pool is not None
        [kept] = client._pool._idle
        more.set()
        while kept.usable:
            await asyncio.sleep(0)
        more.clear()
        reply = await client.post("/x", b"{}", "r", LONG_S)
        assert isinstance(reply, Reply)
        assert reply.body == b"hello"
        more.set()


async def test_an_id_that_would_break_its_line_is_a_fault(tmp_path: Path) -> None:
    """No id and no path can add a header of its own."""

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""

    async with served(tmp_path / "s", serve) as client:
        for path, name in (("/x", "r\r\nA: b"), ("/x HTTP/1.1\r\nA: b", "r")):
            assert isinstance(await client.post(path, b"{}", name, LONG_S), Fault)


async def test_a_large_body_arrives_whole_while_answers_come(tmp_path: Path) -> None:
    """A body beyond every buffer is sent, and an answer as large is read."""
    body = bytes(range(256)) * 40_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, received = await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(received) + received)
        await writer.drain()

    async with served(tmp_path / "s", serve) as client:
        reply = await client.post("/x", body, "r", LONG_S)
        assert isinstance(reply, Reply)
        assert reply.body == body


async def test_idle_connections_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was idle for too long is closed and not used again."""
    monkeypatch.setattr("inbox_daemon.engine.posting.KEEPALIVE_S", -1.0)
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        await request_of(reader)
        writer.write(PLAIN)
        assert await reader.read() == b""

    async with served(tmp_path / "s", serve) as client:
        for _ in range(3):
            assert isinstance(await client.post("/x", b"{}", "r", LONG_S), Reply)
        assert len(connections) == 3


async def test_a_server_that_takes_no_connection_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is not taken in time is told apart from an answer that is late."""
    monkeypatch.setattr("inbox_daemon.engine.posting.CONNECT_S", 0.05)

    async def never(_: object) -> None:
        await asyncio.sleep(LONG_S)

    client = Client(f"unix:{tmp_path / 's'}")
    monkeypatch.setattr(client, "_pool", Pool(partial(never), "localhost", LIMIT))  # type: ignore[arg-type]
    fault = await client.post("/x", b"{}", "r", LONG_S)
    assert fault == Fault(FaultKind.CONNECTION, "no connection within 10 s")
    await client.close()


async def test_an_address_with_a_prefix_and_a_port_is_used_as_it_is() -> None:
    """Host, port and prefix of a network address reach the server."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await request_of(reader)
        seen.append(head)
        writer.write(PLAIN)

    async with serving(serve) as port:
        client = Client(f"http://127.0.0.1:{port}/prefix/v1")
        assert isinstance(await client.post("/v1/x", b"{}", "r", LONG_S), Reply)
        await client.close()
    assert seen[0].startswith(b"POST /prefix/v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port)


async def test_an_address_with_a_password_is_left_to_aiohttp() -> None:
    """A user and a password in an address go into the header that they belong into."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, _ = await request_of(reader)
        seen.append(head)
        writer.write(PLAIN)

    async with serving(serve) as port:
        client = Client(f"http://user:secret@127.0.0.1:{port}")
        assert await client.post("/v1/x", b"{}", "r", LONG_S) == Reply(200, b"hello", "x1")
        await client.close()
    assert b"\r\nAuthorization: Basic dXNlcjpzZWNyZXQ=\r\n" in seen[0]

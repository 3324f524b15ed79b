"""The HTTP client against a real server on a real socket."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import cast

import orjson
import pytest

from inbox_daemon.engine.base import Load, NoReply, NoReplyKind, Reply, Room
from inbox_daemon.engine.client import Client, Probe
from inbox_daemon.engine.load import parse_load
from standin_process import CHAT, ample_room, chat, echoed, running_standin

LONG_S = 30.0


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """Connect to a stand-in over its Unix socket."""
    path = tmp_path / "s"
    async with running_standin("--socket", str(path), "--latency", "0.001"):
        client = Client(f"unix:{path}", max_answer_bytes=100_000)
        yield client
        await client.close()


async def ask(
    client: Client, text: str, timeout_s: float = LONG_S, room: Room | None = None
) -> Reply | NoReply:
    """Send a chat with this text."""
    return await client.post(CHAT, chat(text), "r-1", timeout_s, room or ample_room())


async def test_a_request_is_answered_with_status_body_and_its_own_id(client: Client) -> None:
    """The reply has status 200, the server's bytes and the id that was sent."""
    reply = await ask(client, "grüß dich")
    assert isinstance(reply, Reply)
    assert (reply.status, reply.request_id) == (200, "r-1")
    assert echoed(reply.body) == "echo: grüß dich"


@pytest.mark.parametrize(
    "marker", ["[[reset]]", "[[truncate]]", "[[kill]]"], ids=["reset", "truncated", "killed"]
)
async def test_a_broken_answer_is_a_connection_fault(client: Client, marker: str) -> None:
    """A reset, a truncated answer and a server that vanishes are all CONNECTION faults."""
    fault = await ask(client, marker)
    assert isinstance(fault, NoReply)
    assert fault.kind is NoReplyKind.CONNECTION
    assert fault.message


async def test_an_answer_that_does_not_come_is_a_timeout(client: Client) -> None:
    """A request that hangs is a TIMEOUT fault after its own time, not a CONNECTION one."""
    fault = await ask(client, "[[hang]]", timeout_s=0.05)
    assert fault == NoReply(NoReplyKind.TIMEOUT, "no answer within 0.05 s")


async def test_a_server_that_lists_its_models_accepts_us(client: Client) -> None:
    """A server that does not answer, or not on that path, does not accept us."""
    assert await client.accepts_us()
    await ask(client, "[[kill]]")
    assert not await client.accepts_us()


async def test_an_answer_over_the_cap_is_a_fault(client: Client) -> None:
    """An answer larger than the cap is abandoned instead of held in memory."""
    fault = await ask(client, "[[big=200000]]")
    assert fault == NoReply(NoReplyKind.TOO_LARGE, "the answer is over 100000 bytes")


async def test_a_length_over_the_cap_is_not_read(tmp_path: Path) -> None:
    """Of an answer whose length says that it is over the cap nothing is waited for."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    client = Client(f"unix:{tmp_path / 's'}", max_answer_bytes=100_000)
    assert await ask(client, "x") == NoReply(
        NoReplyKind.TOO_LARGE, "the answer is over 100000 bytes"
    )
    await client.close()
    server.close()


class Doors:
    """Room that opens when the test says so."""

    def __init__(self) -> None:
        """Be closed."""
        self.open = asyncio.Event()
        self.asked: list[int] = []

    def take(self, count: int) -> Awaitable[object]:
        """Wait for the door."""
        self.asked.append(count)
        return self.open.wait()


async def test_an_answer_waits_for_room_and_its_time_stands_still(client: Client) -> None:
    """An answer's length is asked for before it is read; the wait is no part of the timeout."""
    room = Doors()
    task = asyncio.create_task(ask(client, "[[big=50000]]", 0.5, cast("Room", room)))
    while not room.asked:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.6)
    assert not task.done()
    room.open.set()
    reply = await task
    assert isinstance(reply, Reply)
    assert room.asked == [len(reply.body)]


async def test_an_answer_without_a_length_is_counted_as_it_comes(tmp_path: Path) -> None:
    """What a chunked answer brings is counted part by part, and reading stops with no room."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            writer.write(b"%x\r\n%s\r\n" % (50_000, b"x" * 50_000))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    client, room = Client(f"unix:{tmp_path / 's'}"), Doors()
    task = asyncio.create_task(ask(client, "x", room=cast("Room", room)))
    while not room.asked:
        await asyncio.sleep(0.01)
    assert not task.done()
    room.open.set()
    reply = await task
    assert isinstance(reply, Reply)
    assert len(reply.body) == sum(room.asked) == 5_000_000
    assert len(room.asked) > 2
    await client.close()
    server.close()


async def test_a_large_body_arrives_whole(client: Client) -> None:
    """A body that is written in pieces reaches the server as one."""
    text = "grüß dich " * 100_000
    reply = await client.post(CHAT, chat(text), "r-1", LONG_S, ample_room())
    assert isinstance(reply, Reply)
    assert reply.status == 400  # more words than it takes: so it has read them all


async def test_an_error_status_is_a_reply(client: Client) -> None:
    """What the server says about a request is a reply, whatever its status."""
    reply = await ask(client, "[[429]]")
    assert isinstance(reply, Reply)
    assert reply.status == 429
    assert orjson.loads(reply.body)["error"]["code"] == 429


@pytest.mark.parametrize("marker", ["[[garbage]]", "[[pretty]]", "[[empty]]"])
async def test_a_body_is_passed_on_as_it_is(client: Client, marker: str) -> None:
    """Bytes that are no compact JSON come through untouched."""
    reply = await ask(client, marker)
    assert isinstance(reply, Reply)
    expected = {"[[garbage]]": b"<html>", "[[pretty]]": b'{\n  "id"', "[[empty]]": b""}
    assert reply.body.startswith(expected[marker])


async def test_many_requests_are_in_flight_at_once(client: Client) -> None:
    """Five hundred requests wait for their answers together, for as long as it takes."""
    tasks = [asyncio.create_task(ask(client, f"[[hang]] {n}")) for n in range(500)]
    while (await client.load()).running != 500:
        pass
    await client.close()
    assert {type(reply) for reply in await asyncio.gather(*tasks)} == {NoReply}


async def test_closing_ends_what_is_in_flight(client: Client) -> None:
    """Requests without an answer become faults when the client is closed."""
    tasks = [asyncio.create_task(ask(client, "[[hang]]")) for _ in range(5)]
    while (await client.load()).running != 5:
        pass
    await client.close()
    faults = await asyncio.gather(*tasks)
    assert {fault.kind for fault in faults if isinstance(fault, NoReply)} == {
        NoReplyKind.CONNECTION
    }


async def test_a_closed_client_answers_with_faults(client: Client) -> None:
    """A request that comes too late is a fault, not an exception."""
    await client.close()
    assert isinstance(await ask(client, "late"), NoReply)
    assert await client.health() is Probe.GONE


async def test_a_request_may_be_cancelled(client: Client) -> None:
    """Cancelling a request ends it and leaves the client usable."""
    task = asyncio.create_task(ask(client, "[[hang]]"))
    while (await client.load()).running != 1:
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(await ask(client, "next"), Reply)


async def test_the_servers_facts_are_read(client: Client) -> None:
    """Health, models, version and load are read from the server's pages."""
    models = await client.models()
    assert await client.health() is Probe.ALIVE
    assert models is not None
    assert (models.names, models.max_model_len) == (("standin",), 2048)
    assert await client.version() == "0.0.standin"
    assert await client.load() == Load(0, 0, 0.0, 0, 0)


async def test_a_missing_path_is_not_taken_for_a_wrong_method(client: Client) -> None:
    """A path that the server serves is recognised without sending it a request."""
    assert await client.serves(CHAT)
    assert not await client.serves("/v1/nothing")


async def test_a_missing_socket_is_gone(tmp_path: Path) -> None:
    """With no socket a request gets a fault, and the health is GONE."""
    client = Client(f"unix:{tmp_path / 'none'}")
    fault = await ask(client, "hello")
    assert isinstance(fault, NoReply)
    assert fault.kind is NoReplyKind.CONNECTION
    assert await client.health() is Probe.GONE
    await client.close()


async def test_a_server_without_those_pages_is_alive(tmp_path: Path) -> None:
    """A 404 for /health is an answer, so the server lives; its load and version are unknown."""
    path = tmp_path / "s"
    async with running_standin("--socket", str(path), "--bare"):
        client = Client(f"unix:{path}")
        assert await client.health() is Probe.ALIVE
        assert await client.load() == Load()
        assert await client.version() is None
        await client.close()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_a_network_address_is_taken_with_and_without_v1(suffix: str) -> None:
    """The address that OpenAI's clients are given works as it is."""
    async with running_standin("--port", "0") as process:
        address = await _address(process, suffix)
        client = Client(address)
        assert isinstance(await ask(client, "hello"), Reply)
        assert await client.health() is Probe.ALIVE
        await client.close()


@pytest.mark.parametrize(
    ("answer", "health"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Probe.ALIVE),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", Probe.SICK),
        (b"HTTP/1.1 501 No\r\nContent-Length: 0\r\n\r\n", Probe.ALIVE),
        (b"this is not HTTP\r\n\r\n", Probe.GONE),
        (b"", Probe.GONE),
    ],
    ids=["ok", "sick", "no-such-method", "not-http", "closed"],
)
async def test_health_by_what_comes_back(tmp_path: Path, answer: bytes, health: Probe) -> None:
    """Each kind of answer to /health has its meaning, and none raises."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    client = Client(f"unix:{tmp_path / 's'}")
    assert await client.health() is health
    await client.close()
    server.close()


async def test_bytes_that_are_not_http_are_a_fault(tmp_path: Path) -> None:
    """A server of another protocol gives a CONNECTION fault for a request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\x00\xff garbage\r\n\r\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    client = Client(f"unix:{tmp_path / 's'}")
    fault = await ask(client, "hello")
    assert isinstance(fault, NoReply)
    assert fault.kind is NoReplyKind.CONNECTION
    await client.close()
    server.close()


def test_the_load_is_summed_over_engines() -> None:
    """Counts are added over data-parallel engines, and the fullest KV cache counts."""
    text = """# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="x"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 1e+03
vllm:generation_tokens_total{engine="0",model_name="m"} 24.0
http_requests_total 7.0
"""
    assert parse_load(text) == Load(7, 5, 0.5, 2, 1024)


def test_the_load_knows_the_older_name_of_the_cache() -> None:
    """The older name of the KV cache's use is read too."""
    assert parse_load("vllm:gpu_cache_usage_perc 0.75\n") == Load(kv_cache_use=0.75)


@pytest.mark.parametrize("text", ["", "vllm:num_requests_running{ oops\n", "<html>"])
def test_a_load_that_is_not_understood_is_unknown(text: str) -> None:
    """Text in another format gives unknown figures instead of an error."""
    assert parse_load(text) == Load()


def test_the_engine_package_imports_no_torch() -> None:
    """The daemon's side of the engine stays small: neither torch nor vLLM is imported."""
    program = "import sys, inbox_daemon.engine; print({'torch', 'vllm'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert run.stdout == b"set()\n"


async def _address(process: asyncio.subprocess.Process, suffix: str) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    return line.decode().strip() + suffix

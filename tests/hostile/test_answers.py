"""Whatever a server answers has a verdict, and lines that can be written down."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from builders import JOB_ID
from inbox_daemon.engine.base import NoReply, Reply
from inbox_daemon.engine.client import Client
from inbox_daemon.request.line import error_line, output_line
from inbox_daemon.run.outcomes import Action, judge
from standin_process import ample_room

PLAIN = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: cmpl-1\r\n"
    b"Content-Length: 27\r\nConnection: close\r\n\r\n"
    b'{"usage":{"total_tokens":1}}'[:27]
)
MUTANTS = 400


def answer(*headers: bytes, status: bytes = b"200 OK", body: bytes = b"{}") -> bytes:
    """An answer with further headers."""
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, *headers, b"", body])


HOSTILE = {
    "a name that is no text": answer(b"X-Request-Id: \xff\xfe"),
    "a name with a control character": answer(b"X-Request-Id: a\x7fb"),
    "a name of 4,000 letters": answer(b"X-Request-Id: " + b"a" * 4000),
    "an empty name": answer(b"X-Request-Id:"),
    "a reason that is no text": answer(status=b"500 \xff\xfe"),
    "a status line that is no text": b"HTTP/1.1 \xff\xfe\xfd\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a header that is no text": answer(b"\xff\xfe: \xff\xfe"),
    "a status of 999": answer(status=b"999 Odd"),
    "an error that is no text": answer(status=b"400 Bad", body=b'{"error":{"message":"\xff"}}'),
    "an error with half a character": answer(
        status=b"400 Bad", body=b'{"error":{"message":"\\ud800"}}'
    ),
    "an error whose parts are other things": answer(
        status=b"400 Bad", body=b'{"error":{"message":[1],"type":{},"code":1e400}}'
    ),
    "a number that no double holds": answer(body=b'{"usage":{"prompt_tokens":1e999}}'),
    "a count of a billion digits' worth": answer(
        body=b'{"usage":{"prompt_tokens":' + b"9" * 5000 + b"}}"
    ),
    "a deep result": answer(body=b'{"a":' * 900 + b"1" + b"}" * 900),
    "a body that is a number": answer(body=b"1"),
    "chunks without an end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    "a size that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: \xc2\xb2\r\n\r\n{}",
    "nothing": b"",
}


class Server:
    """A server that answers everything with the same bytes."""

    def __init__(self) -> None:
        """Answer nothing yet."""
        self.bytes = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.bytes)
        writer.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Server, Client]]:
    """A server of raw bytes and a client of it."""
    server = Server()
    listening = await asyncio.start_unix_server(server.serve, tmp_path / "s")
    client = Client(f"unix:{tmp_path}/s")
    async with listening:
        yield server, client
        await client.close()


async def write_down(client: Client) -> Reply | NoReply:
    """Send a request and write what would go into the job's files."""
    reply = await client.post("/v1/completions", b"{}", "ours", 5.0, ample_room())
    verdict = judge(reply)
    if verdict.action is Action.RESULT:
        assert isinstance(reply, Reply)
        line = b"".join(output_line(JOB_ID, 1, "a", reply.status, reply.request_id, reply.body))
    else:
        code, response = verdict.code or "x", verdict.response
        line = error_line(JOB_ID, 1, "a", code, verdict.message, response)
    assert line.count(b"\n") == 1
    orjson.loads(line)
    return reply


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_answer_can_be_written_down(
    served: tuple[Server, Client], name: str
) -> None:
    """Its line in output.jsonl or errors.jsonl is JSON, whatever bytes came."""
    server, client = served
    server.bytes = HOSTILE[name]
    reply = await write_down(client)
    if isinstance(reply, Reply):
        assert reply.request_id == "ours"


async def test_a_mutated_answer_can_be_written_down(served: tuple[Server, Client]) -> None:
    """The same for a usual answer with bytes of it changed, left out or repeated."""
    server, client = served
    chance = random.Random(7)
    for _ in range(MUTANTS):
        mutant = bytearray(PLAIN)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(mutant))
            match chance.randrange(3):
                case 0:
                    mutant[place] = chance.randrange(256)
                case 1:
                    del mutant[place]
                case _:
                    mutant[place:place] = mutant[place : place + chance.randint(1, 9)]
        server.bytes = bytes(mutant)
        await write_down(client)

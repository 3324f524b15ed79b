"""The three kinds of engine: a command of the operator's, an endpoint, none at all."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from inbox_daemon.contract.config import Config
from inbox_daemon.engine import Timing, open_engine
from inbox_daemon.engine.base import EngineInfo, EngineKind, EngineState, NoReply, Reply
from standin_process import QUICK, ask, ready, running_standin, supervised


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["/nonexistent/server"], "names a program that does not exist"),
        ([__file__], "cannot be run"),
        ([sys.executable, "-c", "import vllm_not_here"], "No module named 'vllm_not_here'"),
    ],
    ids=["missing", "no-program", "import-error"],
)
async def test_a_command_that_cannot_run_is_explained(
    tmp_path: Path, command: list[str], sentence: str
) -> None:
    """Each kind of wrong command has a sentence of its own for the operator."""
    config = Config.model_validate({"spool": tmp_path, "engine": {"command": command}})
    async with supervised(config, tmp_path) as watched:
        info = await watched.until(lambda info: info.retry_in_s is not None)
        assert sentence in str(info.last_error)


async def test_no_configuration_is_reported(tmp_path: Path) -> None:
    """Without model, command and URL nothing is started, and the sentence says what to set."""
    async with supervised(Config(spool=tmp_path), tmp_path, None) as watched:
        info = await watched.until(lambda info: info.retry_in_s is not None)
        assert info.state is EngineState.BACKOFF
        assert "no engine is configured; set [engine] model" in str(info.last_error)
        assert info.retry_in_s == pytest.approx(5, abs=1)
        assert isinstance(await ask(watched, "hello"), NoReply)


async def test_a_remote_server_is_used_where_it_is(tmp_path: Path) -> None:
    """An endpoint is neither started nor stopped, and still serves afterwards."""
    path = tmp_path / "s"
    config = Config.model_validate({"spool": tmp_path, "endpoint": {"url": f"unix:{path}"}})
    async with running_standin("--socket", str(path)) as process:
        async with supervised(config, tmp_path) as watched:
            info = await ready(watched)
            assert (info.pids, info.models) == ((), ("standin",))
            assert isinstance(await ask(watched, "hello"), Reply)
        assert process.returncode is None


async def test_a_remote_server_may_go_and_come_back(tmp_path: Path) -> None:
    """An endpoint that vanishes is lost, waited for, and used again."""
    path = tmp_path / "s"
    config = Config.model_validate({"spool": tmp_path, "endpoint": {"url": f"unix:{path}"}})
    async with supervised(config, tmp_path, Timing(start_timeout_s=0.2, poll_s=0.05)) as watched:
        info = await watched.until(lambda info: info.last_error is not None)
        assert str(path) in str(
            (await watched.until(lambda i: i.retry_in_s is not None)).last_error
        )
        assert info.generation == 0
    async with supervised(config, tmp_path) as watched:
        async with running_standin("--socket", str(path)):
            await ready(watched)
        await watched.until(lambda info: info.generation == 1)
        path.unlink()
        async with running_standin("--socket", str(path)):
            await ready(watched, generation=1)


@pytest.mark.parametrize(
    ("engine", "endpoint", "kind"),
    [
        ({"model": "m"}, {}, EngineKind(owned=True, computes_here=True)),
        ({"model": "m", "command": ["serve"]}, {}, EngineKind(owned=True)),
        ({"model": "m"}, {"url": "http://127.0.0.1:1"}, EngineKind()),
        ({}, {}, EngineKind()),
    ],
    ids=["vllm", "command", "endpoint", "none"],
)
def test_an_engine_knows_its_kind(
    tmp_path: Path, engine: dict[str, object], endpoint: dict[str, object], kind: EngineKind
) -> None:
    """Only vLLM is known to compute here, and a remote server is not ours."""
    settings = {"spool": tmp_path, "engine": engine, "endpoint": endpoint}
    config = Config.model_validate(settings)
    assert open_engine(config, tmp_path, on_change=lambda: None).kind == kind


def test_an_engine_knows_its_models() -> None:
    """The configured name comes first, else the first that the server lists; or none is known."""
    info = EngineInfo(EngineState.READY, models=("a", "b"))
    assert (info.default_model, sorted(info.known_models)) == ("a", ["a", "b"])
    named = EngineInfo(EngineState.READY, models=("a",), configured_model="mine")
    assert (named.default_model, sorted(named.known_models)) == ("mine", ["a", "mine"])
    unknown = EngineInfo(EngineState.STARTING)
    assert (unknown.default_model, unknown.known_models) == (None, frozenset())


def free_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def refused(address: str, tmp_path: Path) -> str:
    """The sentence for an endpoint that never serves."""
    config = Config.model_validate({"spool": tmp_path, "endpoint": {"url": address}})
    timing = Timing(start_timeout_s=0.2, start_poll_s=0.02)
    async with supervised(config, tmp_path, timing) as watched:
        info = await watched.until(lambda info: info.retry_in_s is not None)
        return str(info.last_error)


async def test_an_endpoint_that_refuses_connections_is_shown_as_that(tmp_path: Path) -> None:
    """The sentence says what happened, where, and what to do."""
    address = f"http://127.0.0.1:{free_port()}"
    sentence = await refused(address, tmp_path)
    assert "connection refused" in sentence
    assert f"{address}; start it there, or correct [endpoint] url" in sentence


async def test_a_password_in_the_address_is_not_shown(tmp_path: Path) -> None:
    """The sentence goes into the health and the log, and both are read by others."""
    sentence = await refused(f"http://me:s3cret@127.0.0.1:{free_port()}", tmp_path)
    assert "http://127.0.0.1:" in sentence
    assert "s3cret" not in sentence


async def test_a_socket_that_is_missing_is_shown_as_that(tmp_path: Path) -> None:
    """The sentence names the Unix socket that does not exist."""
    assert "no such file or directory" in await refused(f"unix:{tmp_path}/none", tmp_path)


async def test_a_name_that_does_not_resolve_is_shown_as_that(tmp_path: Path) -> None:
    """The name is in the sentence; `.invalid` never resolves (RFC 6761)."""
    sentence = await refused("http://engine.invalid:8000", tmp_path)
    assert "the name engine.invalid cannot be resolved" in sentence


async def test_a_server_without_tls_is_shown_as_that(tmp_path: Path) -> None:
    """HTTPS to a port without TLS has a sentence of its own, not a library's message."""
    server = await asyncio.start_server(_say_hello, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert "TLS failed" in await refused(f"https://127.0.0.1:{port}", tmp_path)


async def _say_hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello\r\n")
    writer.close()


async def test_a_server_that_says_it_cannot_serve_is_shown_with_its_answer(tmp_path: Path) -> None:
    """A proxy whose server is down answers 502 for it."""
    server = await asyncio.start_server(_say_502, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert "/health answers 502" in await refused(f"http://127.0.0.1:{port}", tmp_path)


async def _say_502(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
    writer.close()


async def test_an_endpoint_that_went_away_is_shown_with_what_it_meets_now(tmp_path: Path) -> None:
    """It had served; the sentence says what the newest look met, not only that it is gone."""
    server = await asyncio.start_server(_say_200, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = Config.model_validate({"spool": tmp_path, "endpoint": {"url": address}})
    async with server, supervised(config, tmp_path, QUICK) as watched:
        await watched.engine.wait_ready()
        server.close()
        info = await watched.until(lambda info: info.generation == 1)
        assert "does not answer any more (connection refused)" in str(info.last_error)


async def _say_200(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    writer.close()

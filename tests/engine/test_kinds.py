"""The three kinds of engine: a command of the operator's, an endpoint, none at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from inbox_daemon.contract.config import Config
from inbox_daemon.engine import Timing
from inbox_daemon.engine.base import EngineState, NoReply, Reply
from standin_process import ask, ready, running_standin, supervised


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
    """Each way in which a command is wrong gives the operator its own sentence."""
    config = Config.model_validate({"spool": tmp_path, "engine": {"command": command}})
    async with supervised(config, tmp_path) as watched:
        info = await watched.until(lambda info: info.retry_in_s is not None)
        assert sentence in str(info.last_error)


async def test_no_configuration_is_told_and_waited_with(tmp_path: Path) -> None:
    """Without model, command and URL nothing is started, and the sentence says what to set."""
    async with supervised(Config(spool=tmp_path), tmp_path, None) as watched:
        info = await watched.until(lambda info: info.retry_in_s is not None)
        assert info.state is EngineState.BACKOFF
        assert "no engine is configured; set [engine] model" in str(info.last_error)
        assert info.retry_in_s == pytest.approx(5, abs=1)
        assert isinstance(await ask(watched, "hello"), NoReply)


async def test_a_server_of_somebody_else_is_used_where_it_is(tmp_path: Path) -> None:
    """An endpoint is neither started nor stopped: it serves before and after."""
    path = tmp_path / "s"
    config = Config.model_validate({"spool": tmp_path, "endpoint": {"url": f"unix:{path}"}})
    async with running_standin("--socket", str(path)) as process:
        async with supervised(config, tmp_path) as watched:
            info = await ready(watched)
            assert (info.pids, info.models) == ((), ("standin",))
            assert isinstance(await ask(watched, "hello"), Reply)
        assert process.returncode is None


async def test_a_server_of_somebody_else_may_go_and_come_back(tmp_path: Path) -> None:
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


def test_the_limit_of_open_files_is_raised(tmp_path: Path) -> None:
    """A daemon born with room for few connections makes room for all that are allowed."""
    program = (
        "import resource; from pathlib import Path;"
        "from inbox_daemon.contract.config import Config;"
        "from inbox_daemon.engine import open_engine;"
        "open_engine(Config(), Path(), on_change=print);"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    shell = ["sh", "-c", 'ulimit -S -n 256; ulimit -H -n 4096; exec "$@"', "sh"]
    run = subprocess.run([*shell, sys.executable, "-c", program], capture_output=True, check=True)
    assert run.stdout == b"(4096, 4096)\n"

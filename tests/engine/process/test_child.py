"""One server process: its start, its output, its end."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from inbox_daemon.engine.process.child import KEPT_LINES, Child, Launch, clean, describe_exit
from processes import descendants
from standin_programs import STUBBORN, WAIT, WITH_HELPER, noted, until_lines

GRACE_S = 20.0
Start = Callable[..., Awaitable[Child]]


@pytest.fixture
async def start(record: Path) -> AsyncIterator[Start]:
    """Start Python programs as children, and end them after the test."""
    children: list[Child] = []

    async def start(*program: str) -> Child:
        words = program if len(program) > 1 else (sys.executable, "-c", *program)
        children.append(await Child.start(Launch(words, dict(os.environ)), record, record.parent))
        return children[-1]

    yield start
    for child in children:
        await child.stop(0)


async def test_the_end_of_the_process_is_described(start: Start) -> None:
    """An exit status and a signal are both named."""
    assert await (await start("raise SystemExit(3)")).wait() == "exit status 3"
    child = await start("import os; os.kill(os.getpid(), 9)")
    assert await child.wait() == "killed by SIGKILL"


@pytest.mark.parametrize("turns", range(5))
async def test_a_start_that_is_cancelled_leaves_no_process(record: Path, turns: int) -> None:
    """However far it has come, as when the daemon ends while the engine is started."""
    before = {child.pid for child in descendants(os.getpid())}
    launch = Launch((sys.executable, "-c", WAIT), dict(os.environ))
    starting = asyncio.create_task(Child.start(launch, record, record.parent))
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await starting).stop(0)
    assert {child.pid for child in descendants(os.getpid())} <= before


def test_an_unknown_signal_keeps_its_number() -> None:
    """A signal without a name is described by its number."""
    assert describe_exit(-250) == "killed by signal 250"


async def test_both_streams_are_kept_without_control_characters(start: Start) -> None:
    """Output and errors are kept as clean lines, one for each step of a progress bar."""
    program = (
        r"import sys; print('\x1b[31mred\x1b[0m\a'); print('1%\r50%\r99%'); sys.exit('bad\x07')"
    )
    child = await start(program)
    await child.wait()
    await child.stop(0)
    assert child.lines == ("red", "1%", "50%", "99%", "bad")


async def test_only_the_newest_lines_are_kept(start: Start) -> None:
    """A child with much output neither blocks nor fills the memory."""
    child = await start("for n in range(100_000): print('line', n)")
    assert await child.wait() == "exit status 0"
    await child.stop(0)
    assert child.lines[-1] == "line 99999"
    assert len(child.lines) == KEPT_LINES


async def test_a_line_with_an_error_is_kept_longer(start: Start) -> None:
    """An error's line survives the long traceback that follows it."""
    child = await start("print('ValueError: why')\nfor n in range(500): print('  File', n)")
    await child.wait()
    await child.stop(0)
    assert child.lines[0] == "ValueError: why"
    assert child.lines[-1] == "  File 499"
    assert len(child.lines) == KEPT_LINES + 1


async def test_access_lines_do_not_push_out_the_others(start: Start) -> None:
    """Access lines are not kept, so the line with the cause stays."""
    line = '(APIServer pid=1) INFO: 127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 500 Internal'
    child = await start(f"print('RuntimeError: why')\nfor n in range(99): print({line!r})")
    await child.wait()
    await child.stop(0)
    assert child.lines == ("RuntimeError: why",)


async def test_a_flood_does_not_fill_the_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a flood the log gets a part and the number of the rest, and the last lines are kept."""
    caplog.set_level(logging.INFO, "inbox_daemon.engine.output")
    child = await start("for n in range(100_000): print(n % 10)\nprint('the end')")
    await child.wait()
    await child.stop(0)
    logged = [record for record in caplog.records if record.message == "engine_line"]
    [dropped] = [record for record in caplog.records if record.message == "engine_lines_dropped"]
    assert len(logged) + vars(dropped)["lines"] == 100_001
    assert len(logged) < 2000
    assert child.lines[-2:] == ("9", "the end")


async def test_a_line_without_an_end_is_cut(start: Start) -> None:
    """A megabyte without a newline is kept as a bounded piece of its end."""
    child = await start("print('x' * 1_000_000 + 'end')")
    await child.wait()
    await child.stop(0)
    assert child.lines[0].endswith("xend")
    assert len(child.lines[0]) <= 2000


def test_bytes_that_are_no_text_are_kept_readable() -> None:
    """Broken UTF-8, C1 controls and a title sequence become plain text."""
    assert clean(b"\xff\x1b]0;title\x07a\xc2\x9bb\x00c  ") == "\ufffdabc"


async def test_a_command_that_does_not_exist_ends_with_127(start: Start) -> None:
    """The child's last line says that the program is missing, as a shell does."""
    child = await start("/nonexistent/server", "--flag")
    assert await child.wait() == "exit status 127"
    await child.stop(0)
    assert child.lines == ("/nonexistent/server: command not found",)


async def test_a_file_that_is_no_program_ends_with_126(start: Start) -> None:
    """A file that may not be run has another status than one that is missing."""
    child = await start(__file__, "--flag")
    assert await child.wait() == "exit status 126"
    await child.stop(0)
    assert "cannot be started: Permission denied" in child.lines[0]


async def test_stop_ends_every_process_of_the_session(start: Start, record: Path) -> None:
    """A helper that outlives the first process is ended too, and the note is removed."""
    child = await start(WITH_HELPER + WAIT)
    await until_lines(child, 2)
    pids = child.pids()
    assert len(pids) == 2
    assert noted(record)
    await child.stop(GRACE_S)
    assert child.pids() == ()
    assert not noted(record)


async def test_stop_kills_what_ignores_the_request(start: Start) -> None:
    """A process that ignores TERM is killed when its grace is over."""
    child = await start(STUBBORN)
    await until_lines(child, 1)
    await child.stop(0.05)
    assert await child.wait() == "killed by SIGKILL"


async def test_stop_finds_the_helper_after_its_parent_is_gone(start: Start) -> None:
    """The first process killed with -9 leaves no orphan once the child is stopped."""
    child = await start(WITH_HELPER + WAIT)
    await until_lines(child, 2)
    leader, helper = sorted(child.pids())
    os.kill(leader, signal.SIGKILL)
    assert await child.wait() == "killed by SIGKILL"
    assert child.pids() == (helper,)
    await child.stop(GRACE_S)
    assert child.pids() == ()


async def test_a_cancelled_stop_kills_at_once(start: Start) -> None:
    """A stop that is cancelled during the grace leaves no process behind either."""
    child = await start(STUBBORN)
    await until_lines(child, 1)
    stopping = asyncio.create_task(child.stop(GRACE_S))
    await asyncio.sleep(0)
    stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stopping
    assert await child.wait() == "killed by SIGKILL"


async def test_kill_needs_no_waiting(start: Start) -> None:
    """A forced exit kills all processes and returns at once."""
    child = await start(WITH_HELPER + STUBBORN)
    await until_lines(child, 2)
    child.kill()
    assert await child.wait() == "killed by SIGKILL"
    await child.stop(0)
    assert child.pids() == ()


async def test_the_child_is_born_with_pipes_that_break(start: Start) -> None:
    """SIGPIPE is not ignored in the child, as it would be in one that Python starts."""
    child = await start("grep", "SigIgn", "/proc/self/status")
    await child.wait()
    await child.stop(0)
    ignored = int(child.lines[0].split()[1], 16)
    assert not ignored >> (signal.SIGPIPE - 1) & 1


async def test_a_child_without_a_note_does_not_run(tmp_path: Path) -> None:
    """When the note cannot be written, the child is ended and the error raised."""
    launch = Launch((sys.executable, "-c", WAIT), dict(os.environ))
    with pytest.raises(OSError, match="missing"):
        await Child.start(launch, tmp_path / "missing" / "engine.json", tmp_path)


async def test_a_process_that_tidies_shared_memory_has_time_for_it(start: Start) -> None:
    """A process that ignores TERM and waits for the others has time to clean up."""
    tidy = (
        "import signal, sys; signal.signal(15, signal.SIG_IGN); print('up', flush=True);"
        " sys.stdin.read(); print('tidied', flush=True)"
    )
    child = await start(
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {tidy!r}],"
        f" stdin=subprocess.PIPE); {WAIT}"
    )
    await until_lines(child, 2)
    await child.stop(0)
    assert child.lines[-1] == "tidied"

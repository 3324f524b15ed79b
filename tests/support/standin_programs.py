"""Programs that stand in for any server process, and ways to wait for them."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from inbox_daemon.engine.process.child import Child

# Prints a line when it is ready, so that a test need not guess.
WAIT = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); " + WAIT
# A second process in the same group, as vLLM's engine process is.
WITH_HELPER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAIT!r}]); "


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again until it is so."""
    while not condition():
        await asyncio.sleep(0.01)


async def until_lines(child: Child, count: int) -> None:
    """Wait until the child has printed so many lines."""
    await until(lambda: len(child.lines) >= count)


def noted(record: Path) -> bool:
    """Return whether there is a note of a running child."""
    return record.exists()

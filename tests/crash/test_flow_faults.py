"""A failed attach of strace concerns its own point, and is tried again first."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flow import DONE
from flow_faults import ATTACHES, Stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]
FAKE = """#!/bin/sh
count=$(cat {count} 2>/dev/null || echo 0)
echo $((count + 1)) > {count}
if [ "$count" -lt {failures} ]; then
    echo "strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted" >&2
    exit 1
fi
exec {strace} "$@"
"""
Fail = Callable[[int], Path]


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Put a strace before the real one that fails a number of times; return its count's file."""
    real = shutil.which("strace")

    def make(failures: int) -> Path:
        folder, count = tmp_path / "bin", tmp_path / "count"
        folder.mkdir(exist_ok=True)
        count.unlink(missing_ok=True)
        text = FAKE.format(count=count, failures=failures, strace=real)
        (folder / "strace").write_text(text)
        (folder / "strace").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return count

    return make


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A place for runs."""
    (tmp_path / "stage").mkdir()
    with Stage(tmp_path / "stage") as opened:
        yield opened


def test_an_attach_that_fails_is_tried_again(stage: Stage, failing: Fail) -> None:
    """The run begins once strace is there, and is traced from its first call."""
    count = failing(ATTACHES - 1)
    with stage.base() as base:
        run = stage.run(base, [])
        assert (run.status, "openat" in run.trace) == (DONE, True)
    assert int(count.read_text()) == ATTACHES


def test_one_failed_attach_is_one_failed_run(stage: Stage, failing: Fail) -> None:
    """The runs after it, traced or not, are in step with the server."""
    failing(ATTACHES)
    with stage.base() as base, pytest.raises(AssertionError, match="does not attach"):
        stage.run(base, [])
    with stage.base() as base:
        assert stage.run(base, []).status == DONE
    with stage.base() as base:
        assert stage.run(base, None).status == DONE


def test_a_run_that_breaks_off_is_one_failed_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was between server and test, the next run has a server of its own."""
    read = Stage._read
    monkeypatch.setattr(Stage, "_read", lambda self: int(f"{read(self)}x"))
    with stage.base() as base, pytest.raises(ValueError, match="invalid literal"):
        stage.run(base, None)
    monkeypatch.setattr(Stage, "_read", read)
    with stage.base() as base:
        assert stage.run(base, None).status == DONE

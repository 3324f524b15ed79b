"""What a run leaves out is said in one line, with its remedy."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skips import REMEDY, skip_line

SCRIPT = Path(__file__).parents[2] / "scripts" / "test-packages"


def test_a_run_that_skips_nothing_says_so() -> None:
    """The line is there in any case, so its absence means that the run broke off."""
    assert skip_line([], 9) == "skipped: none of 9"


def test_skips_are_counted_by_reason() -> None:
    """The most frequent first, and the command that mends what can be installed."""
    reasons = ["Skipped: rsync is not installed"] * 2 + ["only root may mount"]
    line = skip_line(reasons, 20)
    assert line.startswith("skipped: 3 of 20: 2 because rsync is not installed; 1 because only")
    assert line.endswith(REMEDY)
    assert "\n" not in line
    assert REMEDY not in skip_line(["only root may mount"], 20)


@pytest.fixture
def programs() -> Iterator[Path]:
    """A folder for a PATH on which nothing is installed; any user may read it."""
    folder = Path(tempfile.mkdtemp(prefix="inbox-"))
    folder.chmod(0o755)
    for name in ("bash", "grep", "rm", "chmod", "env"):
        (folder / name).symlink_to(str(shutil.which(name)))
    shutil.copy(SCRIPT, folder / SCRIPT.name)
    yield folder
    shutil.rmtree(folder)


def program(folder: Path, name: str, text: str) -> None:
    """Put a script on the PATH."""
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (folder / name).chmod(0o755)


def run(folder: Path, *words: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script on that PATH, as another user if one is named."""
    return subprocess.run(
        ["/bin/bash", str(folder / SCRIPT.name), *words],
        env={"PATH": str(folder)},
        user=user,
        capture_output=True,
        text=True,
        check=False,
    )


def test_with_everything_there_nothing_is_done(programs: Path) -> None:
    """No apt is needed, and none is asked."""
    program(programs, "dpkg-query", "echo installed")
    done = run(programs)
    assert (done.returncode, done.stderr) == (0, "test packages: all there\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_root_the_command_is_named(programs: Path) -> None:
    """Before a test run that is no failure, as a command of its own it is."""
    program(programs, "dpkg-query", "exit 1")
    done = run(programs, "--if-possible", user=65534)
    assert (done.returncode, "'sudo make test-packages' installs them" in done.stderr) == (0, True)
    assert run(programs, user=65534).returncode == 1


def test_on_another_system_the_packages_are_named(programs: Path) -> None:
    """Where there is no dpkg the reader has to know what to look for."""
    done = run(programs)
    assert (done.returncode, "rsync" in done.stderr) == (1, True)
    assert run(programs, "--if-possible").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages")
def test_as_root_what_is_missing_is_installed(programs: Path, tmp_path: Path) -> None:
    """Only what is missing, and a failure of apt fails the command."""
    asked = tmp_path / "asked"
    program(programs, "dpkg-query", '[ "${@: -1}" = rsync ] || echo installed')
    program(programs, "apt-get", f'echo "$@" >> {asked}')
    assert run(programs).returncode == 0
    assert asked.read_text().splitlines()[-1].endswith(" rsync")
    program(programs, "apt-get", "exit 100")
    done = run(programs)
    assert (done.returncode, "apt could not install: rsync" in done.stderr) == (1, True)
    assert run(programs, "--if-possible").returncode == 0

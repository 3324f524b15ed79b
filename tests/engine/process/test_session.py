"""What a killed daemon leaves behind is ended, and no other process is."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from inbox_daemon.engine.process.child import Child, Launch
from inbox_daemon.engine.process.session import (
    Leader,
    Note,
    leader_of,
    make_folder,
    read_record,
    reap_orphans,
    remove_folder,
    write_record,
)
from standin_process import alive
from standin_programs import STUBBORN, WAIT, WITH_HELPER, noted, until, until_lines


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that is no engine."""
    with subprocess.Popen([sys.executable, "-c", WAIT], stdout=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def write_note(record: Path, leader: Leader) -> None:
    """Note a child without a folder that could be removed."""
    write_record(record, Note(leader, "/nonexistent"))


PARENT = """
import asyncio, os, sys
from pathlib import Path
from inbox_daemon.engine.process.child import Child, Launch

async def main():
    launch = Launch((sys.executable, "-c", sys.argv[2]), dict(os.environ))
    child = await Child.start(launch, Path(sys.argv[1]), Path(sys.argv[3]))
    while len(child.lines) < 2:
        await asyncio.sleep(0.01)
    print(*sorted(child.pids()), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@contextlib.contextmanager
def killed_daemon(record: Path, program: str, folder: Path) -> Iterator[list[int]]:
    """Run another daemon with this child, kill it with -9, and return the child's pids."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(record), program, str(folder)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_a_daemon_killed_with_9_leaves_no_engine(record: Path) -> None:
    """The kernel kills the first process, and the next daemon kills the helper that is left."""
    folder = make_folder()
    with killed_daemon(record, WITH_HELPER + STUBBORN, folder) as (leader, helper):
        await until(lambda: not alive(leader))
        assert alive(helper)
        assert await reap_orphans(record) == (helper,)
        await until(lambda: not alive(helper))
    assert not noted(record)
    assert not noted(folder)
    assert await reap_orphans(record) == ()


async def test_a_number_given_to_another_process_is_left_alone(
    record: Path, other_process: subprocess.Popen[bytes]
) -> None:
    """A process with the noted number but another start time is not ours."""
    leader = leader_of(other_process.pid)
    write_note(record, Leader(leader.pid, leader.started - 1, leader.boot_id))
    assert await reap_orphans(record) == ()
    assert other_process.poll() is None


async def test_a_note_from_before_a_reboot_names_no_process(
    record: Path, other_process: subprocess.Popen[bytes]
) -> None:
    """After a reboot all numbers are new, so a process with the noted one is not killed."""
    leader = leader_of(other_process.pid)
    write_note(record, Leader(leader.pid, leader.started, "another boot"))
    assert await reap_orphans(record) == ()
    assert other_process.poll() is None
    assert not noted(record)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "started": 1}'])
def test_a_note_that_cannot_be_read_names_no_process(record: Path, text: str) -> None:
    """With a broken note nothing is raised and nothing is killed."""
    record.write_text(text)
    assert asyncio.run(reap_orphans(record)) == ()


async def test_the_note_says_who_runs(record: Path) -> None:
    """The note holds the pid, the start time and the boot of the child that runs."""
    launch = Launch((sys.executable, "-c", WAIT), dict(os.environ))
    child = await Child.start(launch, record, record.parent)
    await until_lines(child, 1)
    note = read_record(record)
    assert note
    assert (note.leader.pid,) == child.pids()
    assert note == Note(leader_of(note.leader.pid), str(record.parent))
    await child.stop(0)


def test_the_sockets_folder_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is in systemd's runtime directory and closed to other users."""
    with tempfile.TemporaryDirectory(dir="/tmp") as given:
        monkeypatch.setenv("RUNTIME_DIRECTORY", f"{given}:/elsewhere")
        folder = make_folder()
        assert folder.parent == Path(given)
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_too_long_for_a_socket_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A socket's name has 107 bytes, so a longer runtime directory is passed over."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(long))
    folder = make_folder()
    assert folder.parent != long
    remove_folder(folder)
    assert not noted(folder)


def test_only_a_folder_of_an_engine_is_removed(tmp_path: Path) -> None:
    """Whatever a note says, nothing but an engine's own folder is touched."""
    (tmp_path / "file").touch()
    remove_folder(tmp_path)
    remove_folder(tmp_path / "nothing")
    assert (tmp_path / "file").exists()

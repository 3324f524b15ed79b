"""Short of memory, the kernel takes the engine: the real thing, in a memory group of its own."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon_process import MakeDaemon
from job_files import chats
from processes import wait_until

CGROUPS = Path("/sys/fs/cgroup")
LIMIT_BYTES = 400 << 20
# An engine whose first process takes all memory once the file `flag` is there.
GREEDY = """\
import os, subprocess, sys, time
flag, server = sys.argv[1], subprocess.Popen(sys.argv[2:])
while not os.path.exists(flag):
    if server.poll() is not None:
        sys.exit(1)
    time.sleep(0.02)
os.unlink(flag)
taken = []
while True:
    taken.append(bytearray(os.urandom(1 << 20)))
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a memory group"),
]


@dataclass(frozen=True)
class MemoryGroup:
    """A control group with a limit on memory, of either version of the kernel's interface."""

    folder: Path
    limit: str
    events: str

    def add(self, pid: int) -> None:
        """Put a process in; its children of later are in it by that."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        rows = (self.folder / self.events).read_text().splitlines()
        return int(dict(row.split() for row in rows)["oom_kill"])


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    """Return a group with little memory, or skip where none can be made."""
    name = f"inbox-daemon-test-{os.getpid()}"
    if (CGROUPS / "memory" / "memory.limit_in_bytes").exists():
        made = MemoryGroup(CGROUPS / "memory" / name, "memory.limit_in_bytes", "memory.oom_control")
    else:
        made = MemoryGroup(CGROUPS / name, "memory.max", "memory.events")
    try:
        made.folder.mkdir()
        (made.folder / made.limit).write_text(str(LIMIT_BYTES))
    except OSError as error:
        with contextlib.suppress(OSError):
            made.folder.rmdir()
        pytest.skip(f"no memory group can be made here: {error}")
    yield made
    wait_until(lambda: not (made.folder / "cgroup.procs").read_text(), "the end of all in it")
    made.folder.rmdir()


def test_the_kernel_takes_the_engine_and_the_daemon_goes_on(
    group: MemoryGroup, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """The engine takes all memory, is killed for it, and the same daemon finishes the job."""
    daemon = make_daemon()
    flag = tmp_path / "eat"
    server = daemon.sections["engine"]["command"]
    daemon.sections["engine"]["command"] = [sys.executable, "-c", GREEDY, str(flag), *server]
    daemon.start()
    before = daemon.process
    for process in (before, *daemon.engine_processes()):
        group.add(process.pid)
    lines = chats(20, {19: "[[hangx1]]"})  # in the middle until the engine is another
    daemon.drop("job", lines)
    daemon.wait_status(lambda s: s["jobs"] and s["jobs"][0]["completed"] > 0, "some answers")
    flag.touch()
    daemon.check_results("job", lines)
    assert group.kills > 0
    assert daemon.process == before
    assert len(daemon.engine_starts()) > 1

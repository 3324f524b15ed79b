"""Strike the flow at one system call at a time.

Purpose: find the calls by which a run changes its spool, run the flow with a fault at one
of them, and run it again without.
Invariants: only the first thread of a run is traced, and everything that touches the spool
is done there, so a call is named by its kind and by which one of its kind it is; a run
that was struck is always followed by one that is not.
Known limit: strace counts by kind, so calls that only read are skipped by their number.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

import pytest

FLOW = Path(__file__).with_name("flow.py")
# Whatever changes a folder, a file or its place on the disk; strace skips what the machine
# does not know.
_OPENS = {"open", "openat", "creat"}
_NAMES = {"rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"}
_NAMES |= {"unlink", "unlinkat", "rmdir"}
_RIGHTS = {"chmod", "fchmod", "fchmodat", "chown", "lchown", "fchown", "fchownat"}
_SYNCS = {"fsync", "fdatasync", "sync_file_range", "msync", "truncate", "ftruncate"}
# Those that a full disk makes fail.
GROWING = {"write", "writev", "pwrite64", "pwritev", "pwritev2", "mkdir", "mkdirat"}
GROWING |= {"fallocate", "sendfile", "copy_file_range"}
_TRACE = "trace=" + ",".join(
    f"?{name}" for name in sorted(_OPENS | _NAMES | _RIGHTS | _SYNCS | GROWING)
)
_CALL = re.compile(r"(\w+)\((.*)\) += (.*)")
_TRACER_S = 60
# Beside a loaded machine an attach may fail where the next one does not.
ATTACHES = 5
T = TypeVar("T")
WORKERS = 2
# A memory filesystem outlives a killed process as well as a disk does, and is faster.
_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Point:
    """One call of a run: the `number`-th one of its `call`, and the `place`-th of all."""

    call: str
    number: int
    place: int
    words: str

    def __str__(self) -> str:
        """The name of the point in a failure's report."""
        return f"{self.call} no. {self.number}: {self.words}"

    def strike(self, how: str) -> list[str]:
        """Tell strace to do `how`, such as error=EIO, at this call."""
        return [f"{self.call}:{how}:when={self.number}"]


def strike_from(points: Sequence[Point], first: Point, how: str) -> list[str]:
    """Tell strace to do `how` at a point, and at every later call of the points' kinds."""
    numbers: dict[str, int] = {}
    for point in points:
        if point.place >= first.place:
            numbers.setdefault(point.call, point.number)
    return [f"{call}:{how}:when={number}+" for call, number in numbers.items()]


@dataclass(frozen=True, slots=True)
class Run:
    """How a run ended: its exit status, and what strace saw of it."""

    status: int
    trace: str = ""

    @property
    def struck(self) -> bool:
        """Whether the fault happened."""
        return "INJECTED" in self.trace or "killed by SIGKILL" in self.trace


class Stage:
    """A place where the flow runs again and again, one run at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = self._serve()

    def __enter__(self) -> Self:
        """End the server with the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server."""
        self._end_server()

    def _serve(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(FLOW), "--serve"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def _end_server(self) -> None:
        self._server.kill()
        self._server.communicate()

    @contextlib.contextmanager
    def base(self) -> Iterator[Path]:
        """Give an empty folder for one story."""
        base = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield base
        finally:
            shutil.rmtree(base)

    def run(self, base: Path, faults: Sequence[str] | None = None) -> Run:
        """Run the flow on BASE: with these faults, traced without any, or (None) untraced.

        Whatever goes wrong here concerns this run alone: the next one has a new server.
        """
        try:
            if faults is None:
                self._write(f"{base}")
                self._read()
                return Run(self._read())
            return self._run_traced(base, faults)
        except BaseException:
            self._end_server()
            self._server = self._serve()
            raise

    def _run_traced(self, base: Path, faults: Sequence[str]) -> Run:
        words = ["-o", str(base / "trace"), "-s", "0"]
        if faults:
            struck = ",".join(fault.split(":")[0] for fault in faults)
            words += ["-e", f"trace={struck}", *(f"--inject={fault}" for fault in faults)]
        else:
            words += ["-y", "-e", _TRACE]
        said = ""
        for _ in range(ATTACHES):
            self._write(f"{base} traced")
            pid = self._read()
            attach = ["strace", "-p", str(pid), *words]
            with subprocess.Popen(attach, stderr=subprocess.PIPE) as tracer:
                assert tracer.stderr is not None
                said = tracer.stderr.readline().decode()
                if "attached" in said:
                    self._write("go")
                    status = self._read()
                    tracer.communicate(timeout=_TRACER_S)
                    return Run(status, (base / "trace").read_text(errors="replace"))
                tracer.kill()
            self._write("stay")  # the run has not begun: its process ends, and leaves nothing
            self._read()
        msg = f"strace does not attach, tried {ATTACHES} times: {said}"
        raise AssertionError(msg)

    def _write(self, line: str) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(f"{line}\n".encode())

    def _read(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


def points_of(run: Run, spool: Path) -> list[Point]:
    """The calls by which a traced run changed its spool, in their order."""
    counts: dict[str, int] = {}
    points: list[Point] = []
    for line in run.trace.splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        call, words = match[1], match[2]
        counts[call] = counts.get(call, 0) + 1
        changes = call not in _OPENS - {"creat"} or "O_CREAT" in words
        if changes and str(spool) in words:
            words = words.replace(f"{spool}/", "")
            points.append(Point(call, counts[call], len(points), words))
    return points


@dataclass(slots=True)
class Stages:
    """As many stages as there are cores to use, and the points that one run had."""

    stages: list[Stage]
    points: list[Point]

    def each(self, work: Callable[[Stage, Point], T], points: Sequence[Point]) -> list[T]:
        """Do the work at each point, in parallel; return what came of it, in their order."""
        free: SimpleQueue[Stage] = SimpleQueue()
        for stage in self.stages:
            free.put(stage)

        def on_free_stage(point: Point) -> T:
            stage = free.get()
            try:
                return work(stage, point)
            finally:
                free.put(stage)

        with ThreadPoolExecutor(len(self.stages)) as pool:
            return list(pool.map(on_free_stage, points))


@contextlib.contextmanager
def open_stages(folder: Path) -> Iterator[Stages]:
    """Make the stages, below memory where there is some, and find the points.

    Where strace cannot be used the test is skipped, but under CI=true it fails.
    """
    if shutil.which("strace") is None:
        _refuse("strace is not installed")
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else folder
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)))
        stages = [stack.enter_context(Stage(root)) for _ in range(WORKERS)]
        with stages[0].base() as base:
            try:
                run = stages[0].run(base, [])
            except AssertionError as error:
                _refuse(str(error))
            assert run.status == 0, (base / "log").read_text()
            points = points_of(run, base / "spool")
        yield Stages(stages, points)


def _refuse(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; faults cannot be injected")
    pytest.skip(f"{reason}; faults cannot be injected")

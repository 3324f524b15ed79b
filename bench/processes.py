"""The processes that a benchmark measures: the daemon, the stand-in engine, the bare client.

Purpose: start them, read their CPU time and memory from /proc, drop jobs as a careful
sender does, and see when they are published.
Invariants: all end with their block, whatever happens in it, and by the kernel when the
benchmark itself is killed; nothing lies outside of the folder that is given.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from inbox_daemon.engine.process import launch
from inbox_daemon.engine.process.session import SOCKET_NAME

Json = dict[str, Any]
CHECKOUT = Path(__file__).parent.parent
_LOOK_S = 0.005
_TICKS = os.sysconf("SC_CLK_TCK")
# The limits of the largest case: five jobs of 50,000 lines queued.
ROOMY = {"max_total_queued_requests": 1_000_000, "max_queue_depth": 16}


def bound_to_us(*words: str) -> list[str]:
    """A command whose process the kernel ends when ours ends."""
    return [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *words]


def environment(**more: str) -> dict[str, str]:
    """Our environment without another daemon's settings; modules are found in the checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INBOX_DAEMON_")}
    kept.pop("NOTIFY_SOCKET", None)
    paths = [str(CHECKOUT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)} | more


@contextmanager
def workplace(given: Path | None) -> Iterator[Path]:
    """A folder for one run, on the disk that was asked for; it goes with the block."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="inbox-bench-", dir=given) as name:
        yield Path(name)


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A folder with a short name: that of a socket may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="inbox-bench-") as name:
        yield Path(name)


@contextmanager
def standin(latency_s: float = 0.0, *more: str) -> Iterator[str]:
    """Run the lean engine, with `more` of its options; the block gets its address."""
    with socket_folder() as folder:
        path = folder / "standin.sock"
        words = [sys.executable, "-m", "bench.standin", "--socket", str(path)]
        words += ["--latency", str(latency_s), *more]
        process = subprocess.Popen(
            bound_to_us(*words), stdout=subprocess.PIPE, env=environment(), cwd=CHECKOUT
        )
        assert process.stdout is not None  # noqa: S101 - for the type
        process.stdout.readline()
        try:
            yield f"unix:{path}"
        finally:
            process.kill()
            process.communicate()


def run_bare(address: str, path: Path, width: int, *more: str) -> Json:
    """Run the bare client once, in a process of its own, with `more` of its options."""
    words = ["--address", address, "--file", str(path), "--width", str(width)]
    return run_json("bench.bare", *words, *more)


def run_json(module: str, *words: str) -> Json:
    """Run a module to its end; its last line of output is JSON.

    Raises RuntimeError: it failed; the message holds what it said.
    """
    command = bound_to_us(sys.executable, "-m", module, *words)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), cwd=CHECKOUT
    )
    if done.returncode:
        msg = f"{module} ended with status {done.returncode}: {done.stderr[-2000:]}"
        raise RuntimeError(msg)
    found: Json = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class Daemon:
    """One spool, and the daemon that runs on it."""

    def __init__(self, folder: Path, **sections: Json) -> None:
        """Write the configuration; nothing runs yet."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.spool, self.log = folder, folder / "spool", folder / "daemon.log"
        self._config = folder / "config.toml"
        self._runtime = Path(tempfile.mkdtemp(prefix="inbox-bench-"))
        self._child: subprocess.Popen[bytes] | None = None
        lines = [f"spool = {json.dumps(str(self.spool))}"]
        for name, section in {"limits": ROOMY, **sections}.items():
            lines += ["", f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in section.items())]
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, however it is."""
        if self._child is not None:
            with contextlib.suppress(RuntimeError):
                self.stop()
        shutil.rmtree(self._runtime, ignore_errors=True)

    # -- its life -------------------------------------------------------------------

    def start(self) -> float:
        """Start it; return the seconds until its first status."""
        words = [sys.executable, "-m", "inbox_daemon", "run", "--config", str(self._config)]
        began = time.perf_counter()
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                bound_to_us(*words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(RUNTIME_DIRECTORY=str(self._runtime)),
                cwd=CHECKOUT,
                start_new_session=True,
            )
        self.wait(lambda: self.status() is not None)
        return time.perf_counter() - began

    def wait_ready(self, patience_s: float = 900.0) -> float:
        """Wait until the engine is ready; return the seconds."""
        return self.wait(lambda: self.status_now()["engine"]["state"] == "ready", patience_s)

    def wait(self, look: "Any", patience_s: float = 900.0) -> float:  # noqa: ANN401 - a function
        """Look until it is so, while the daemon lives; return the seconds.

        Raises RuntimeError: the daemon ended, or it took too long.
        """
        began = time.perf_counter()
        while not look():
            if self._child is not None and self._child.poll() is not None:
                msg = f"the daemon ended with status {self._child.returncode}: {self.log_end()}"
                raise RuntimeError(msg)
            if time.perf_counter() - began > patience_s:
                msg = f"not seen within {patience_s:g} s; the log's end: {self.log_end()}"
                raise RuntimeError(msg)
            time.sleep(_LOOK_S)
        return time.perf_counter() - began

    def stop(self) -> None:
        """Drain and end it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it in the middle of everything."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.send_signal(number)
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            msg = f"the daemon did not end; the log's end: {self.log_end()}"
            raise RuntimeError(msg) from None

    def event_at(self, event: str, job: str) -> float:
        """When the log tells an event of a job, in seconds since 1970, to the millisecond.

        Raises RuntimeError: it does not.
        """
        for line in reversed(self.log.read_bytes().splitlines()):
            if event.encode() in line:
                found = json.loads(line)
                if (found["event"], found.get("job")) == (event, job):
                    return float(found["time"])
        msg = f"the log tells no {event} of {job}"
        raise RuntimeError(msg)

    def log_end(self) -> str:
        """The newest lines of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    # -- what it shows --------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Its process."""
        if self._child is None:
            raise RuntimeError("the daemon does not run")
        return self._child.pid

    def status(self) -> Json | None:
        """The health document of the daemon that runs now; None before its first."""
        with contextlib.suppress(FileNotFoundError):
            status: Json = json.loads((self.spool / "outbox" / "status.json").read_bytes())
            if self._child is not None and status["pid"] == self._child.pid:
                return status
        return None

    def status_now(self) -> Json:
        """The health document; there must be one."""
        return self.status() or {"engine": {"state": "unknown"}}

    def cpu_s(self) -> float:
        """The CPU seconds of its own process, all threads, children left out."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / _TICKS

    def memory_mib(self, name: str = "VmRSS") -> float:
        """Its memory now (VmRSS) or the most it ever had (VmHWM)."""
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        row = next(line for line in text.splitlines() if line.startswith(name))
        return int(row.split()[1]) / 1024

    def socket(self) -> Path:
        """The socket of the engine that it started."""
        return next(self._runtime.rglob(SOCKET_NAME))

    # -- jobs -----------------------------------------------------------------------

    def drop(self, path: Path, name: str) -> float:
        """Drop a file as a careful sender does; return the time at which it was there."""
        inbox = self.spool / "inbox"
        data = path.read_bytes()
        hidden = inbox / f".{name}.part"
        hidden.write_bytes(data)
        marker = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        ready = inbox / f".{name}.ready"
        ready.write_text(json.dumps(marker), encoding="utf-8")
        ready.rename(inbox / f"{name}.jsonl.ready")
        hidden.rename(inbox / f"{name}.jsonl")
        return time.time()

    def published(self, name: str) -> bool:
        """Return whether a job's folder is there with its results."""
        return (self.spool / "outbox" / name / "output.jsonl").exists()

    def run_job(self, path: Path, name: str) -> tuple[float, Json]:
        """Drop a job and wait for it; return the seconds and its status document."""
        dropped = self.drop(path, name)
        self.wait(lambda: self.published(name))
        seconds = time.time() - dropped
        return seconds, self.job_status(name)

    def job_status(self, name: str) -> Json:
        """The status document of a published job."""
        found: Json = json.loads((self.spool / "outbox" / name / "status.json").read_bytes())
        return found


def _toml(value: object) -> str:
    """A TOML value; JSON's forms of scalars and lists are a subset, its objects are not."""
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    return json.dumps(value)

"""Run the daemon as its user does: a real process on a spool, seen from outside.

Purpose: start, kill and stop daemons and stand-in engines, drop files as senders do, and
wait by looking at what the daemon shows.
Invariants: a daemon and all that it started end with `close`, also after a failed test, and
by the kernel if the test's own process is killed; nothing lies outside of the test's folders.
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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from inbox_daemon.engine.process import launch
from job_files import Json, Outputs, check_outputs, schema
from processes import PATIENCE_S, Found, Process, descendants, process, wait_until

STANDIN = Path(__file__).with_name("standin.py")
STOP_S = 30  # the promise of SIGTERM
FAST: dict[str, Json] = {
    "intake": {"settle_s": 0.2, "scan_interval_s": 0.2},
    "run": {"commit_interval_s": 0.2},
    "status": {"interval_s": 0.5},
}
_LOG_TAIL = 6000
_RUN = ("-m", "inbox_daemon", "run", "--config")


def bound_to_us(*words: str | Path) -> list[str]:
    """A command whose process the kernel kills when the test's process ends."""
    return [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """The environment without the settings of another daemon."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INBOX_DAEMON_")}
    kept.pop("NOTIFY_SOCKET", None)
    return kept | more


def inbox_daemon(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line to its end."""
    command = [sys.executable, "-m", "inbox_daemon", *map(str, words)]
    return subprocess.run(
        command,
        env=environment(COLUMNS="200", **env),
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


class DaemonProcess:
    """A spool with its configuration, and the daemon that runs on it.

    Each section of the configuration is a dict, laid over the one of FAST; the engine is a
    stand-in with `options` unless a section names another.
    """

    def __init__(self, folder: Path, *options: str, **sections: Json) -> None:
        """Prepare the configuration; nothing runs yet."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.spool, self.config = folder / "spool", folder / "config.toml"
        self.log = folder / "daemon.log"
        self.prefix: list[str] = []  # a program that starts the daemon in another way
        self._executions, self._starts = folder / "executions.jsonl", folder / "starts"
        # A socket's name may have 107 characters, and pytest's folders are long.
        self._runtime = Path(tempfile.mkdtemp(prefix="inbox-"))
        self._child: subprocess.Popen[bytes] | None = None
        self._left: list[Process] = []
        self.env: dict[str, str] = {}
        if (
            not {"model", "command"} & sections.get("engine", {}).keys()
            and "endpoint" not in sections
        ):
            sections["engine"] = {"command": self.standin(*options)} | sections.get("engine", {})
        self.sections = {
            name: FAST.get(name, {}) | sections.get(name, {}) for name in FAST | sections
        }

    def write_config(self) -> None:
        """Write the configuration, as the next start reads it."""
        lines = [f"spool = {json.dumps(str(self.spool))}"]
        for name, section in self.sections.items():
            lines += ["", f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in section.items())]
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def hold_engine(self) -> Path:
        """Let the stand-in start only once the file that is returned exists."""
        flag = self.folder / "go"
        script = f"until test -e '{flag}'; do sleep 0.05; done; exec \"$@\""
        command = self.sections["engine"]["command"]
        self.sections["engine"]["command"] = ["sh", "-c", script, "sh", *command]
        return flag

    def standin(self, *options: str) -> list[str]:
        """The command of a stand-in engine that notes its executions and its starts."""
        notes = ["--log", str(self._executions), "--starts", str(self._starts)]
        return [sys.executable, str(STANDIN), "--socket", "{socket}", *notes, *options]

    # -- its life -------------------------------------------------------------------

    def start(self, *, ready: bool = True, patience_s: float = PATIENCE_S) -> "DaemonProcess":
        """Start it; return when its engine is ready, or with the first status."""
        assert self._child is None
        self.write_config()
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                bound_to_us(*self.prefix, sys.executable, *_RUN, self.config),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(RUNTIME_DIRECTORY=str(self._runtime), **self.env),
                cwd=self.folder,
                start_new_session=True,
            )
        if ready:
            self.wait_ready(patience_s)
        else:
            self.wait(self.status, "its first health document")
        return self

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def wait_ready(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until the engine can answer."""
        self.wait_status(
            lambda s: s["engine"]["state"] == "ready", "a ready engine", patience_s=patience_s
        )

    @property
    def process(self) -> Process:
        """The daemon's process."""
        assert self._child is not None
        found = process(self._child.pid)
        assert found is not None
        return found

    def engine_processes(self) -> list[Process]:
        """The processes of the engine that runs under the daemon."""
        return descendants(self._child.pid) if self._child else []

    def kill(self) -> list[Process]:
        """SIGKILL the daemon, and nothing else; return what was running below it."""
        assert self._child is not None
        below = self.engine_processes()
        self._left += below
        self._child.kill()
        self._child.wait()
        self._child = None
        return below

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._child is not None
        self._child.send_signal(number)

    def wait_exit(self, patience_s: float = PATIENCE_S) -> int:
        """Wait for it to end by itself; return its exit status."""
        assert self._child is not None
        self._left += self.engine_processes()
        code = self._child.wait(patience_s)
        self._child = None
        return code

    def stop(self) -> None:
        """End it with SIGTERM, and hold it to the promises of that."""
        below = self.engine_processes()
        self.signal(signal.SIGTERM)
        assert self.wait_exit(STOP_S) == 0
        assert not [child.command for child in below if child.alive]

    def close(self) -> None:
        """End all that was ever started here, whatever state it is in."""
        if self._child:
            self.kill()
        for left in self._left:
            left.kill()
        shutil.rmtree(self._runtime, ignore_errors=True)

    # -- waiting --------------------------------------------------------------------

    def wait(self, look: Callable[[], Found], what: str, patience_s: float = PATIENCE_S) -> Found:
        """Wait until something is seen while the daemon runs; return it."""

        def look_alive() -> Found:
            found = look()
            ended = self._child is not None and self._child.poll() is not None
            assert found or not ended, f"the daemon ended while a test waited for {what}"
            return found

        return wait_until(look_alive, what, patience_s)

    def status(self) -> Json | None:
        """The health document of the daemon that runs now, None before its first."""
        with contextlib.suppress(FileNotFoundError):
            status: Json = json.loads((self.spool / "outbox" / "status.json").read_bytes())
            if self._child is None or status["pid"] == self._child.pid:
                return status
        return None

    def status_now(self) -> Json:
        """The health document; there must be one."""
        status = self.status()
        assert status is not None
        return status

    def wait_status(self, wanted: Callable[[Json], Any], what: str, **patience: float) -> Json:
        """Wait for a health document that is wanted; return it."""

        def look() -> Json | None:
            status = self.status()
            return status if status and wanted(status) else None

        found = self.wait(look, what, **patience)
        assert found is not None
        return found

    def wait_writings(self, count: int) -> None:
        """Wait until the health document was written this many times more."""
        last = self.status_now()["seq"] + count
        self.wait_status(lambda status: status["seq"] >= last, f"{count} more documents")

    def wait_active(self, name: str) -> Json:
        """Wait until a job is queued or running; return what the health says of it."""

        def find(status: Json) -> list[Json]:
            return [job for job in status["jobs"] if job["name"] == name]

        return find(self.wait_status(find, f"{name} among the active jobs"))[0]

    def wait_starts(self, count: int) -> None:
        """Wait until so many stand-ins were started."""
        self.wait(lambda: len(self.engine_starts()) >= count, f"{count} starts of the engine")

    def wait_executions(self, count: int) -> None:
        """Wait until the stand-in has begun so many executions."""
        self.wait(lambda: self.execution_count() >= count, f"{count} executions")

    # -- jobs -----------------------------------------------------------------------

    def drop(self, name: str, lines: Iterable[bytes]) -> None:
        """Drop a job as rsync does: under a hidden name first, then renamed."""
        target = self.spool / "inbox" / f"{name}.jsonl"
        hidden = target.with_name(f".{target.name}.part")
        hidden.write_bytes(b"".join(lines))
        hidden.rename(target)

    def drop_marker(self, name: str, data: bytes) -> None:
        """Drop a sender's word on what its complete file will be."""
        marker = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        path = self.spool / "inbox" / f"{name}.jsonl.ready"
        path.write_text(json.dumps(marker), encoding="utf-8")

    def dropped(self) -> set[str]:
        """The names that lie in inbox/ itself, whatever they are; lanes left out."""
        return {path.name for path in (self.spool / "inbox").iterdir()} - {"high", "low"}

    def wait_empty_inbox(self) -> None:
        """Wait until all was taken."""
        self.wait(lambda: not self.dropped(), "an empty inbox")

    def wait_outcome(self, name: str, patience_s: float = PATIENCE_S) -> Path:
        """Wait until a job was published; return its folder."""
        folder = self.spool / "outbox" / name
        self.wait((folder / "output.jsonl").exists, f"the results of {name}", patience_s)
        return folder

    def run_job(self, name: str, lines: list[bytes], patience_s: float = PATIENCE_S) -> Outputs:
        """Drop a job, wait for its results, and check them."""
        self.drop(name, lines)
        return check_outputs(lines, self.wait_outcome(name, patience_s))

    def check_results(self, name: str, lines: list[bytes]) -> Outputs:
        """Wait for a job's results and check them."""
        return check_outputs(lines, self.wait_outcome(name))

    def verify(self, name: str) -> int:
        """Let the product prove a job itself; the exit status."""
        return inbox_daemon("verify", name, "--config", self.config).returncode

    def wait_refusal(self, name: str, stem: str | None = None) -> Json:
        """Wait until a file was refused; return the reason, and hold the notice to it."""
        path = self.spool / "rejected" / f"{stem or name}.reason.json"
        self.wait(path.exists, f"the refusal of {name}")
        reason: Json = json.loads(path.read_bytes())
        schema("reason").validate(reason)
        assert (path.parent / reason["file"]).exists()
        return reason

    def notice(self, name: str) -> Json:
        """The status in a job's outbox folder."""
        path = self.spool / "outbox" / name / "status.json"
        self.wait(path.exists, f"a status of {name} in outbox/")
        status: Json = json.loads(path.read_bytes())
        schema("job-status").validate(status)
        return status

    # -- what the stand-in has noted --------------------------------------------------

    def executions(self) -> list[str]:
        """The texts whose execution the stand-in has begun, in order, repeats included."""
        data = self._executions.read_bytes() if self._executions.exists() else b""
        return [json.loads(line)["text"] for line in data.split(b"\n")[:-1]]

    def execution_count(self) -> int:
        """How many executions the stand-in has begun."""
        return self._executions.read_bytes().count(b"\n") if self._executions.exists() else 0

    def tries(self, number: int) -> int:
        """How often a request that `chats` made under that number was begun."""
        return sum(text.split()[1] == str(number) for text in self.executions())

    def engine_starts(self) -> list[int]:
        """The process of each stand-in that was started."""
        return (
            [int(pid) for pid in self._starts.read_text().split()] if self._starts.exists() else []
        )

    def engine_socket(self) -> Path:
        """The socket on which the engine listens."""
        (socket,) = self._runtime.glob("*/engine.sock")
        return socket

    def events(self, name: str) -> list[Json]:
        """The events of that name in the daemon's log."""
        lines = self.log.read_bytes().split(b"\n")
        events = [json.loads(line) for line in lines if line.startswith(b"{")]
        return [event for event in events if event["event"] == name]

    def report(self) -> str:
        """What helps to understand a failure: the last status and the end of the log."""
        status = json.dumps(self.status(), indent=1)[:_LOG_TAIL]
        log = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"{status}\n\n{log[-_LOG_TAIL:]}"


def _toml(value: object) -> str:
    """A TOML value; JSON's forms of scalars and lists are a subset, its objects are not."""
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    return json.dumps(value)


class StandinProcess:
    """A stand-in engine that is no child of the daemon."""

    def __init__(self, folder: Path, *options: str) -> None:
        """Start it; it listens when this returns."""
        self.log = folder / "endpoint-executions.jsonl"
        command = bound_to_us(sys.executable, STANDIN, *options, "--log", self.log)
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == "listening\n"
        self.address = ""
        if "--port" in options:
            self.address = self._child.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._child.communicate()


# What the fixtures of these names give.
MakeDaemon = Callable[..., DaemonProcess]
StartStandin = Callable[..., StandinProcess]

# Where a test keeps its daemons, so that a failed one shows what they said.
DAEMONS = pytest.StashKey[list[DaemonProcess]]()

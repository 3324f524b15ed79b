"""The daemon's process, as systemd treats it: whatever ends it, it comes back after a while.

Invariants: its runtime folder and its temporary folder are made again at each start, as
RuntimeDirectory= and PrivateTmp= are; what it leaves in its session is ended with it; all
ends with this process, by the kernel if it is killed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from daemon_process import bound_to_us, environment
from processes import Process, descendants, process
from soak.desk import Desk
from soak.history import End, Violation

_LOOK_S = 0.05
_CONFIG_STATUS = 78


class Supervisor(threading.Thread):
    """Keeps a daemon running until `close`."""

    def __init__(self, desk: Desk, restart_s: float, env: dict[str, str]) -> None:
        """Prepare it; `env` is added to the daemon's environment."""
        super().__init__(name="supervisor", daemon=True)
        self.desk, self.restart_s, self.env = desk, restart_s, env
        self.log = desk.folder / "daemon.log"
        self.runtime = Path(tempfile.mkdtemp(prefix="inbox-"))
        self.held = threading.Event()  # while set, it is not started again
        self.lock = threading.RLock()  # while held, it neither ends nor starts unnoticed
        self._child: subprocess.Popen[bytes] | None = None
        self._asked, self._asked_at = "", 0.0
        self.alive_since: float | None = None  # since a start or a SIGCONT; None: it is not
        self._closing = False

    def run(self) -> None:
        """Start it again and again."""
        while not self._closing:
            if self.held.is_set():
                time.sleep(_LOOK_S)
                continue
            self._start()
            assert self._child is not None
            while self._child.poll() is None:
                time.sleep(_LOOK_S)
            self._note_end()
            if not self._closing:
                time.sleep(self.restart_s)

    def _start(self) -> None:
        for name in ("run", "tmp"):
            shutil.rmtree(self.runtime / name, ignore_errors=True)
            (self.runtime / name).mkdir()
        env = environment(
            RUNTIME_DIRECTORY=str(self.runtime / "run"), TMPDIR=str(self.runtime / "tmp")
        )
        run = (sys.executable, "-m", "inbox_daemon", "run", "--config", self.desk.config)
        with self.lock, self.log.open("ab") as log:
            self._asked = ""
            self._child = subprocess.Popen(
                bound_to_us(*run),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env | self.env,
                cwd=self.desk.folder,
                start_new_session=True,
            )
            self.alive_since = time.monotonic()
        self.desk.act("supervisor", "start", pid=self._child.pid)

    def _note_end(self) -> None:
        assert self._child is not None
        with self.lock:
            now, self.alive_since = time.monotonic(), None
            took_s = now - self._asked_at if self._asked else 0.0
            end = End(now, self._child.returncode, self._asked, took_s)
            self.desk.history.ends.append(end)
        self.desk.act("supervisor", "ended", status=end.status, asked=end.asked)
        if end.status == _CONFIG_STATUS:
            self.desk.accuse([Violation("daemon_ended", "the configuration was refused", now)])
            self.held.set()

    # -- what others do to it ---------------------------------------------------------------

    def process(self) -> Process | None:
        """The daemon's process, None while there is none."""
        with self.lock:
            if self._child is None or self._child.poll() is not None:
                return None
            return process(self._child.pid)

    def engine_processes(self) -> list[Process]:
        """What runs below it."""
        found = self.process()
        return descendants(found.pid) if found else []

    def send(self, number: signal.Signals, asked: str) -> bool:
        """Send it a signal that ends it; False when it does not run."""
        with self.lock:
            if self.process() is None or self._child is None:
                return False
            if not self._asked:
                self._asked, self._asked_at = asked, time.monotonic()
            elif asked != "SIGTERM":
                self._asked = asked
            self._child.send_signal(number)
            return True

    def stand_still(self, seconds: float) -> None:
        """Stop it for a while, as a machine that swaps does."""
        with self.lock:
            found = self.process()
            if found is None:
                return
            self.desk.history.stopped.begin(time.monotonic())
            os.kill(found.pid, signal.SIGSTOP)
            self.alive_since = None
        time.sleep(seconds)
        with self.lock:
            if found.alive:
                os.kill(found.pid, signal.SIGCONT)
                self.alive_since = time.monotonic()
            self.desk.history.stopped.end(time.monotonic())

    def wait_end(self, patience_s: float) -> bool:
        """Wait until no daemon runs."""
        deadline = time.monotonic() + patience_s
        while self.process() is not None or self.alive_since is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        return True

    def close(self) -> None:
        """End it, whatever it does."""
        self._closing = True
        below = self.engine_processes()
        if found := self.process():
            found.kill()
        self.join(10)
        for left in below:
            left.kill()
        shutil.rmtree(self.runtime, ignore_errors=True)


def write_config(path: Path, spool: Path, sections: dict[str, dict[str, object]]) -> None:
    """Write a configuration; values are scalars and lists of words."""
    lines = [f"spool = {json.dumps(str(spool))}"]
    for name, section in sections.items():
        lines += ["", f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in section.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")

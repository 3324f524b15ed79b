"""Trouble: kills, a full disk, a clock that jumps, bad weather at the server.

Invariant: each ends what it began when it rests, so that the end of a run is quiet.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import standin
from daemon_process import bound_to_us
from soak.desk import Actor, Desk
from soak.ground import LEVELS, Ground
from soak.supervisor import Supervisor
from wall_clock import WallClock

SERVER = Path(__file__).with_name("server.py")
STANDIN = ("--slots", "32", "--latency", "0.02", "--jitter", "0.9", "--death-delay", "0.05")
JUMPS_S = (0, 0, 0, 40, 900, 7200, 86_400, -40, -900, -7200, -86_400)
_WEATHERS = ("slow", "hang", "reset", "garbage", "500", "503", "429", "401", "down")
_LOOK_S = 0.2


class Killer(Actor):
    """Kills and stops the daemon and its engine."""

    def __init__(
        self,
        desk: Desk,
        supervisor: Supervisor,
        endpoint: "EndpointServer",
        pause_s: tuple[float, float],
    ) -> None:
        """Know whom to kill."""
        super().__init__(desk, "killer", pause_s)
        self._supervisor, self._endpoint = supervisor, endpoint

    def turn(self) -> None:
        """Do one of these."""
        what = self.rng.choices(
            ("SIGKILL", "SIGTERM", "twice", "SIGSTOP", "engine", "down"), (30, 15, 5, 20, 26, 4)
        )[0]
        if what == "engine":
            self._kill_engine()
        elif what == "SIGSTOP":
            seconds = self.rng.choice((0.3, 1.0, 3.0, 6.0))
            self.act("SIGSTOP", seconds=seconds)
            self._supervisor.stand_still(seconds)
        elif what == "SIGTERM":
            self.act("SIGTERM")
            self._supervisor.send(signal.SIGTERM, "SIGTERM")
        elif what == "twice":
            self.act("SIGTERM twice")
            self._supervisor.send(signal.SIGTERM, "twice")
            time.sleep(self.rng.uniform(0, 0.5))
            self._supervisor.send(signal.SIGTERM, "twice")
        else:
            if what == "down":
                self._supervisor.held.set()
            self.act("SIGKILL")
            self._supervisor.send(signal.SIGKILL, "SIGKILL")
            if what == "down":
                self.desk.stop.wait(self.rng.uniform(5, 12))
                self._supervisor.held.clear()

    def _kill_engine(self) -> None:
        below = self._supervisor.engine_processes()
        self.act("engine", processes=len(below))
        if self._endpoint.wanted.is_set():
            self._endpoint.kill()
        elif below:
            self.rng.choice(below).kill()

    def rest(self) -> None:
        """The daemon may come back."""
        self._supervisor.held.clear()


class DiskFiller(Actor):
    """Fills the filesystem to one of its levels, and empties it again."""

    def __init__(self, desk: Desk, ground: Ground, pause_s: tuple[float, float]) -> None:
        """Know what to fill."""
        super().__init__(desk, "disk", pause_s)
        self._ground = ground

    def turn(self) -> None:
        """Fill and empty once."""
        level = self.rng.choice(LEVELS)
        self.act(f"fill to {level}")
        self.desk.history.short.begin(time.monotonic())
        self._ground.fill(level)
        self.desk.stop.wait(self.rng.uniform(1, 8))
        self.rest()

    def rest(self) -> None:
        """Take the ballast away."""
        self._ground.empty()
        # The daemon looks every two seconds, and commits after that.
        self.desk.history.short.end(time.monotonic() + 4)


class Clock(Actor):
    """Lets the daemon's wall clock jump; the monotonic one goes on."""

    def __init__(self, desk: Desk, pause_s: tuple[float, float]) -> None:
        """Begin with the right time."""
        super().__init__(desk, "clock", pause_s)
        self._clock = WallClock(desk.folder)

    @property
    def env(self) -> dict[str, str]:
        """What the daemon's environment needs."""
        return self._clock.env

    def turn(self) -> None:
        """Jump."""
        offset = self.rng.choice(JUMPS_S)
        self.act("jump" if offset else "right again", offset=offset)
        self._set(offset)

    def _set(self, offset: int) -> None:
        self._clock.set(seconds=offset)
        if offset:
            self.desk.history.astray.begin(time.monotonic())
        else:
            self.desk.history.astray.end(time.monotonic() + 1)

    def rest(self) -> None:
        """Show the right time."""
        self._set(0)


class Weather(Actor):
    """What happens to all requests at the server for a while."""

    def __init__(
        self, desk: Desk, endpoint: "EndpointServer", pause_s: tuple[float, float]
    ) -> None:
        """Begin with calm."""
        super().__init__(desk, "weather", pause_s)
        self._endpoint = endpoint
        self._write("calm", 0.0, 0.0)

    def turn(self) -> None:
        """One spell of bad weather."""
        kind, share = self.rng.choice(_WEATHERS), self.rng.choice((0.1, 0.5, 1.0))
        lasts_s = self.rng.uniform(0.5, 6)
        self.act(kind, share=share, seconds=lasts_s)
        self._write(kind, share, self.rng.uniform(0.2, 3))
        if kind == "down":
            self._endpoint.kill()
        self.desk.stop.wait(lasts_s)
        self.rest()

    def _write(self, kind: str, share: float, seconds: float) -> None:
        path = self.desk.weather_path
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"kind": kind, "share": share, "seconds": seconds}))
        new.replace(path)

    def rest(self) -> None:
        """Calm."""
        self._write("calm", 0.0, 0.0)


class EndpointServer(threading.Thread):
    """Keeps a server running that is no child of the daemon, while it is wanted."""

    def __init__(self, desk: Desk, socket: Path) -> None:
        """Prepare it; `start` begins."""
        super().__init__(name="endpoint", daemon=True)
        self.desk, self.socket, self.rng = desk, socket, desk.rng("endpoint")
        self.wanted = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix:{self.socket}"

    def run(self) -> None:
        """Start it again whenever it has ended."""
        while not self.desk.closed.wait(_LOOK_S):
            running = self._child is not None and self._child.poll() is None
            if self.wanted.is_set() and not running:
                # One that is back within the second in which the daemon looks twice was reset
                # for all that the daemon can see; a server with a model takes longer.
                self.desk.closed.wait(self.rng.uniform(3, 6))
                self._start()
            elif running and not self.wanted.is_set():
                self.kill()
        self.kill()

    def _start(self) -> None:
        self.socket.unlink(missing_ok=True)
        words = bound_to_us(sys.executable, SERVER, "--socket", self.socket, *STANDIN)
        with (self.desk.folder / "endpoint.log").open("ab") as log, self._lock:
            env = dict(os.environ) | server_env(self.desk)
            self._child = subprocess.Popen(words, stdout=log, stderr=log, env=env)
        self.desk.act("endpoint", "start")

    def kill(self) -> None:
        """SIGKILL it; it comes back after a while."""
        with self._lock:
            if self._child is not None:
                self._child.kill()
                self._child.wait()


def server_env(desk: Desk) -> dict[str, str]:
    """What the server's environment needs."""
    return {
        "PYTHONPATH": str(Path(standin.__file__).parent),
        "SOAK_JOURNAL": str(desk.journal_path),
        "SOAK_WEATHER": str(desk.weather_path),
    }


def server_command() -> list[str]:
    """The server as an [engine] command."""
    return [sys.executable, str(SERVER), "--socket", "{socket}", *STANDIN]

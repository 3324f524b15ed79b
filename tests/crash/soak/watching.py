"""The witness's own threads: they read the health, the daemon's figures and the journal.

Invariant: they only look; what they saw is judged by service_truths.py.
"""

import contextlib
import os
import time
from pathlib import Path

from processes import Process
from soak.desk import Actor, Desk
from soak.history import Violation
from soak.service_truths import Health, Sample, claims_to_be_up
from soak.supervisor import Supervisor

_TORN = 5


class HealthWatch(Actor):
    """Reads outbox/status.json as a web app does, several times a second."""

    def __init__(self, desk: Desk, supervisor: Supervisor) -> None:
        """Nothing was seen yet."""
        super().__init__(desk, "health", (0.08, 0.16))
        self.until = desk.closed
        self.health = Health()
        self._supervisor = supervisor
        self._reported = 0
        self._path = desk.spool / "outbox" / "status.json"

    def turn(self) -> None:
        """Look once, with the daemon's life held as it is."""
        with self._supervisor.lock:
            alive = self._supervisor.process() is not None
            since = self._supervisor.alive_since
            if alive or since is None:  # else it has ended, and its end is not noted yet
                self.health.look(self._read(), time.monotonic(), since)
        self.desk.accuse(self.health.faults[self._reported :])
        self._reported = len(self.health.faults)

    def _read(self) -> bytes | None:
        """Its content; on a full disk it is written over, so one that is torn is read again."""
        raw = None
        for _ in range(_TORN):
            with contextlib.suppress(FileNotFoundError):
                raw = self._path.read_bytes()
                if raw.rstrip().endswith(b"}"):
                    break
            time.sleep(0.02)
        return raw

    def judge_silence(self, ended_at: float) -> None:
        """After the end, once it is stale, no reader may take the service for up."""
        last, raw = self.health.last, self._read()
        if last is None or raw is None:
            return
        time.sleep(max(0.0, ended_at + last["stale_after_s"] + 0.5 - time.monotonic()))
        if claims_to_be_up(raw, time.time()):
            what = "the service is shown as up although no daemon lives"
            self.desk.accuse([Violation("status_of_the_dead", what, time.monotonic())])


class Meter(Actor):
    """Measures the daemon's process and what it writes."""

    def __init__(self, desk: Desk, supervisor: Supervisor, health: Health) -> None:
        """Nothing was measured yet."""
        super().__init__(desk, "meter", (1.0, 1.0))
        self.until = desk.closed
        self.samples: list[Sample] = []
        self._supervisor, self._health = supervisor, health

    def turn(self) -> None:
        """Measure once; take what the server has noted meanwhile."""
        self.desk.journal.catch_up()
        with self.desk.history.held():
            late, self.desk.history.late = self.desk.history.late, []
        self.desk.accuse(late)
        found = self._supervisor.process()
        if found is None or self._supervisor.alive_since is None:
            return
        with contextlib.suppress(OSError, StopIteration):  # it has just ended
            self.samples.append(self._measure(found))

    def _measure(self, found: Process) -> Sample:
        status = self._health.last
        idle = bool(status and status["pid"] == found.pid and not status["jobs"])
        return Sample(
            at=time.monotonic(),
            pid=found.pid,
            rss_bytes=_rss(found.pid),
            peak_bytes=found.rss_bytes,
            descriptors=len(list(Path(f"/proc/{found.pid}/fd").iterdir())),
            ledger_bytes=sum(p.stat().st_blocks * 512 for p in _files(self.desk.spool / "ledger")),
            log_bytes=self._supervisor.log.stat().st_size,
            idle=idle,
        )


def _rss(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]

"""One run of the soak: its parts, its phases, its quiet end.

Purpose: everything at once for a time, in phases with the server as [endpoint] and as [engine]
command by turns; then calm, until the queue is empty; then the last checks.
"""

import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from soak.clients import Fetcher, Orders, Reader
from soak.desk import Actor, Desk
from soak.ground import FLOOR_BYTES, FLOOR_INODES, Ground, best_kind
from soak.history import Rules, Violation
from soak.report import Report
from soak.senders import Sender
from soak.service_truths import judge_ends, judge_growth, judge_left, judge_log, list_left
from soak.supervisor import Supervisor, write_config
from soak.troubles import (
    Clock,
    DiskFiller,
    EndpointServer,
    Killer,
    Weather,
    server_command,
    server_env,
)
from soak.truths import judge_end
from soak.watching import HealthWatch, Meter

TROUBLES = ("kills", "disk", "clock", "weather", "orders", "readers")
SENDERS = 3
FETCHERS = 2
_STOP_S = 45.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run; times in seconds, `without` names some of TROUBLES."""

    seconds: float
    seed: int
    ground: str = field(default_factory=best_kind)
    without: frozenset[str] = frozenset()
    restart_s: float = 5.0
    phase_s: float = 600.0
    drain_s: float = 600.0


class Campaign:
    """One run in a folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Make the filesystem and the parts; nothing runs yet."""
        self.plan, self.folder = plan, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ground = Ground(plan.ground, folder)
        self.desk = Desk(folder, self.ground.root / "spool", plan.seed, Rules())
        self._paces()
        self.skipped = set(plan.without)
        if shutil.which("cc") is None:  # which makes what its clock is shifted by
            self.skipped.add("clock")
        if not self.ground.small:
            self.skipped.add("disk")
        env, clocks = server_env(self.desk), list[Clock]()
        if "clock" not in self.skipped:
            clocks.append(Clock(self.desk, self._pace(8, 30)))
            env |= clocks[0].env
        self.supervisor = Supervisor(self.desk, plan.restart_s, env)
        self.endpoint = EndpointServer(self.desk, self.supervisor.runtime / "endpoint.sock")
        self.health = HealthWatch(self.desk, self.supervisor)
        self.meter = Meter(self.desk, self.supervisor, self.health.health)
        self.orders = Orders(self.desk, self._pace(1.5, 5))
        self.troubles: dict[str, Actor] = {
            "kills": Killer(self.desk, self.supervisor, self.endpoint, self._pace(8, 40)),
            "disk": DiskFiller(self.desk, self.ground, self._pace(12, 45)),
            "weather": Weather(self.desk, self.endpoint, self._pace(6, 25)),
            "orders": self.orders,
            "readers": Reader(self.desk, self._pace(1, 4)),
        }
        for clock in clocks:
            self.troubles["clock"] = clock

    def _paces(self) -> None:
        """A short run has less of everything between two events."""
        self._tempo = min(1.0, max(0.4, self.plan.seconds / 300))

    def _pace(self, least_s: float, most_s: float) -> tuple[float, float]:
        return least_s * self._tempo, most_s * self._tempo

    def run(self) -> Report:
        """Run it to the end and return what was found; the folder keeps everything."""
        try:
            self._configure(endpoint=self.desk.rng("phases").random() < 0.5)
            self._make_spool()
            self._begin()
            self._pass_time()
            self._calm()
            self._drain()
            self._end()
        finally:
            self.desk.stop.set()
            self.desk.closed.set()
            self.ground.empty()
            self.supervisor.close()
            self.endpoint.join(10)
        return self._report()

    # -- the time of trouble --------------------------------------------------------------------

    def _configure(self, *, endpoint: bool) -> None:
        """Write the configuration of a phase."""
        rules = self.desk.rules
        engine: dict[str, object] = {"hang_s": 8.0, "start_timeout_s": 30.0}
        sections: dict[str, dict[str, object]] = {
            "intake": {"settle_s": 0.5, "scan_interval_s": 0.5, "incomplete_s": 8.0},
            "limits": {"max_queue_depth": 8, "max_total_queued_requests": 20_000},
            "run": {
                "max_attempts": rules.max_attempts,
                "request_timeout_s": rules.request_timeout_s,
                "commit_interval_s": rules.commit_interval_s,
                "drain_s": 3.0,
                "chunk_min": 50,
                "chunk_max": 200,
            },
            "status": {"interval_s": 1.0},
            "disk": {"min_free_bytes": FLOOR_BYTES, "min_free_inodes": FLOOR_INODES}
            if self.ground.small
            else {"min_free_bytes": 0, "min_free_inodes": 0},
        }
        if endpoint:
            sections["endpoint"] = {"url": self.endpoint.url}
            self.endpoint.wanted.set()
        else:
            sections["engine"] = engine | {"command": server_command()}
            self.endpoint.wanted.clear()
        self._is_endpoint = endpoint
        write_config(self.desk.config, self.desk.spool, sections)
        self.desk.act("campaign", "endpoint phase" if endpoint else "command phase")

    def _make_spool(self) -> None:
        """The folders are there before the first sender."""
        for name in ("inbox/high", "inbox/low", "outbox", "rejected"):
            (self.desk.spool / name).mkdir(parents=True)

    def _begin(self) -> None:
        self.endpoint.start()
        self.supervisor.start()
        self.senders = [Sender(self.desk, n, self._pace(0.3, 2.5)) for n in range(SENDERS)]
        self.fetchers = [Fetcher(self.desk, n, self._pace(0.5, 3)) for n in range(FETCHERS)]
        for actor in (self.health, self.meter, *self.senders, *self.fetchers):
            actor.start()
        for name, trouble in self.troubles.items():
            if name not in self.skipped:
                trouble.start()

    def _pass_time(self) -> None:
        end = time.monotonic() + self.plan.seconds
        phase_end = time.monotonic() + self.plan.phase_s
        while time.monotonic() < end:
            time.sleep(min(_LOOK_S, max(0.0, end - time.monotonic())))
            if time.monotonic() >= phase_end and end - time.monotonic() > 10:
                self._change_phase()
                phase_end = time.monotonic() + self.plan.phase_s

    def _change_phase(self) -> None:
        """Stop the daemon politely and start it with the other kind of engine."""
        self.supervisor.held.set()
        self.supervisor.send(signal.SIGTERM, "SIGTERM")
        if not self.supervisor.wait_end(_STOP_S):
            self.supervisor.send(signal.SIGKILL, "SIGKILL")
            self.supervisor.wait_end(_STOP_S)
        self._configure(endpoint=not self._is_endpoint)
        self.supervisor.held.clear()

    # -- the quiet end -------------------------------------------------------------------------

    def _calm(self) -> None:
        """All trouble ends; what senders and fetchers have begun goes on."""
        self.desk.act("campaign", "calm")
        self.desk.stop.set()
        for actor in (*self.troubles.values(), *self.senders):
            if actor.ident is not None:
                actor.join(_STOP_S * 2)
                if actor.is_alive():
                    what = f"{actor.name} does not come to its end"
                    self.desk.accuse([Violation("soak_fault", what, time.monotonic())])
        self.ground.empty()
        self.supervisor.held.clear()
        self.orders.resume_all()

    def _drain(self) -> None:
        """Wait until every file has its answer and the spool is empty."""
        deadline, asked = time.monotonic() + self.plan.drain_s, time.monotonic()
        while (left := self._left()) and time.monotonic() < deadline:
            for sender in self.senders:
                sender.resend()
            if time.monotonic() - asked > 30:  # one may have been lost with a full disk
                self.orders.resume_all()
                asked = time.monotonic()
            time.sleep(_LOOK_S)
        if left:
            status = self.health.health.last or {}
            what = f"after {self.plan.drain_s:g} s of calm: {left[:20]}; {status.get('worker')}"
            self.desk.accuse([Violation("no_end", what, time.monotonic())])
        self.desk.figures["drained in s"] = int(time.monotonic() - deadline + self.plan.drain_s)

    def _left(self) -> list[str]:
        """What still waits: files without an answer, and paths in the spool."""
        spool, odd = self.desk.spool, self.desk.oddities
        left = [job.name for job in self.desk.open_jobs() if job.drops]
        for name in ("claimed", "queued", "running", "inbox"):
            paths = (spool / name).rglob("*") if name == "inbox" else (spool / name).iterdir()
            skip = {spool / "inbox" / "high", spool / "inbox" / "low"} | odd
            left += [str(path.relative_to(spool)) for path in paths if path not in skip]
        return left + [path.name for path in (spool / "outbox").iterdir() if path.is_dir()]

    def _end(self) -> None:
        """Stop, and look at everything that is left."""
        desk = self.desk
        time.sleep(5.0)  # idle, for the meter
        status = self.health.health.last
        reasons = [] if status is None else status["reasons"]
        if status is None or [why for why in reasons if "in the last 10 minutes" not in why]:
            what = f"after the calm: {status and (status['status'], status['reasons'])}"
            desk.accuse([Violation("not_healthy", what, time.monotonic())])
        missing = [path for path in desk.oddities if not os.path.lexists(path)]
        desk.accuse([Violation("oddity_taken", str(path), time.monotonic()) for path in missing])
        self.supervisor.held.set()
        self.supervisor.send(signal.SIGTERM, "SIGTERM")
        if not self.supervisor.wait_end(_STOP_S):
            what = f"SIGTERM did not end it in {_STOP_S:g} s"
            desk.accuse([Violation("stop_slow", what, time.monotonic())])
        self.health.judge_silence(time.monotonic())
        desk.closed.set()
        for actor in (self.health, self.meter, *self.fetchers):
            actor.join(_STOP_S)
        self._judge_rest()

    def _judge_rest(self) -> None:
        desk = self.desk
        now, filled = time.monotonic(), bool(desk.history.short.spans)
        ours = {str(path.relative_to(desk.spool)) for path in desk.oddities}
        desk.accuse(judge_end(list(desk.jobs.values()), now))
        desk.accuse(judge_ends(desk.history, desk.rules))
        desk.accuse(judge_left(list_left(desk.spool), ours))
        with self.supervisor.log.open("rb") as log:
            desk.accuse(judge_log(log, desk.figures, filled=filled))
        figures = desk.figures
        weights = figures["jobs"] + len(desk.history.ends) + int(self.plan.seconds / 60)
        weights += sum(n for name, n in figures.items() if name.startswith(("weather:", "killer:")))
        desk.accuse(judge_growth(self.meter.samples, weights, Report.BOUNDS))

    def _report(self) -> Report:
        desk = self.desk
        return Report(
            folder=self.folder,
            seed=self.plan.seed,
            seconds=time.monotonic() - desk.begun,
            ground=self.ground.kind,
            skipped=sorted(self.skipped),
            figures=desk.figures,
            violations=desk.violations,
            samples=self.meter.samples,
            begun=desk.begun,
            ends=desk.history.ends,
            executions=desk.history.begun,
            stalest_s=self.health.health.worst_s,
        )

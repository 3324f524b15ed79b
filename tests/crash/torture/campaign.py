"""One filesystem, one seed: the daemon lives, loses its power, and lives again.

Purpose: a drop that was taken away is never lost, a published folder stays whole, a
committed result is never computed again, each line has exactly one outcome.
Jobs are dropped all the time; the power goes at a moment, at an event or at a step of
the seed's choice, sometimes during the recovery from the last cut; now and then
everything runs to its end and is checked.
Known limit: a seed repeats the jobs and the plan of the cuts; what the processes were
doing at that moment varies, least for cuts at a step.
"""

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from job_files import Json
from torture.disks import Disk
from torture.lives import Life, Plan, make_plan
from torture.load import Job, Kind, check_ended, check_whole, is_answered, make_job, send
from torture.witness import Phase

PATIENCE_S = 20.0
LATEST_CUT_S = 2.0
MOST_OPEN = 12
_LOOK_S = 0.003


@dataclass
class Campaign:
    """One filesystem, one seed, a number of cuts."""

    filesystem: str
    seed: int
    folder: Path
    faults: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)
    jobs: dict[str, Job] = field(default_factory=dict)
    done: dict[str, Job] = field(default_factory=dict)
    _made: int = 0
    _phase: int = 0
    _events: int = 0
    _recovered: bool = False
    _ready: bool = False

    def __post_init__(self) -> None:
        """Make the filesystem."""
        self.rng = random.Random(f"{self.filesystem} {self.seed}")
        self.disk = Disk(self.filesystem, self.folder)
        self.spool = self.disk.root / "spool"
        self.log = self.folder / "daemon.log"
        self._due: list[tuple[float, Job]] = []

    def run(self, cuts: int) -> None:
        """Cut the power this many times; a fault ends the campaign."""
        until_check = 0
        self._life_to_the_end()
        while self.figures["cuts"] < cuts and not self.faults:
            until_check = until_check or self.rng.choice((1, 1, 2, 3))
            self._life_with_a_cut(make_plan(self.rng))
            until_check -= 1
            if until_check == 0 or self.figures["cuts"] == cuts:
                self._life_to_the_end()

    # -- lives ----------------------------------------------------------------------

    def _start(self, plan: Plan | None) -> Life:
        self._phase += 1
        self._events, self._recovered, self._ready = 0, False, False
        step = int(plan.at) if plan and plan.way == "step" else None
        before = plan.before if plan else False
        seed = self.rng.randrange(1 << 30)
        phase = Phase(self._phase, self.spool, self.log, seed, self.disk.cut, step, before)
        return Life(phase)

    def _life_with_a_cut(self, plan: Plan) -> None:
        self._plan_drops()
        life = self._start(plan)
        try:
            self._wait_for_the_cut(life, plan)
        finally:
            life.kill()
            while not life.ended:
                self._take(life.events(PATIENCE_S))
            status = life.wait()
            self.disk.unmount()
        if status != -signal.SIGKILL and not self.figures["cut now"]:
            self.faults.append(f"the daemon ended with {status} before the power was cut")
        self.figures["cut now"] = 0
        self.figures["cuts"] += 1
        self.figures[f"cuts by {plan.way}"] += 1
        self.figures["cuts before recovery was over"] += not self._recovered
        self.disk.mount()
        self._check_after_cut()

    def _wait_for_the_cut(self, life: Life, plan: Plan) -> None:
        start = time.monotonic()
        latest = start + (plan.at if plan.way == "moment" else LATEST_CUT_S)
        while not life.ended:
            self._take(life.events(_LOOK_S))
            self._send_due(time.monotonic() - start)
            self._look_into_inbox()
            if plan.way == "event" and self._events >= plan.at:
                time.sleep(plan.delay_s)
                break
            if time.monotonic() >= latest:
                break
        self.figures["cut now"] = not life.ended
        self.disk.cut()

    def _life_to_the_end(self) -> None:
        """Let everything end, stop politely, and check every job."""
        self._plan_drops()
        life = self._start(None)
        start = time.monotonic()
        try:
            while not life.ended and not self._all_answered():
                self._take(life.events(_LOOK_S))
                self._send_due(time.monotonic() - start)
                self._look_into_inbox()
                if time.monotonic() - start > PATIENCE_S:
                    self.faults.append(f"no end: {self._open_names()}")
                    break
            os.kill(life.pid, signal.SIGTERM)
            asked = time.monotonic()
            while not life.ended and time.monotonic() - asked < PATIENCE_S:
                self._take(life.events(PATIENCE_S))
        finally:
            life.kill()
            status = life.wait()
        if status != 0:
            self.faults.append(f"the daemon ended with {status}")
        self._check_end()

    # -- the sender -----------------------------------------------------------------

    def _plan_drops(self) -> None:
        """Drop again what was not taken yet, as well as some old jobs; then new ones."""
        self.spool.joinpath("inbox", "high").mkdir(parents=True, exist_ok=True)
        self.spool.joinpath("inbox", "low").mkdir(exist_ok=True)
        for path in self.spool.glob("inbox/**/.*.part"):
            path.unlink()
        left = {path.name.split(".jsonl")[0] for path in self.spool.glob("inbox/**/*.jsonl*")}
        for job in [*self.jobs.values(), *self.done.values()]:
            if not job.acknowledged or job.name in left:
                send(job, self.spool)
        self._due = []
        for job in [*self.jobs.values(), *self.done.values()]:
            if job.acknowledged and job.kind is Kind.VALID and self.rng.random() < 0.05:
                self._due.append((self.rng.uniform(0, 0.3), job))
        room = MOST_OPEN - len(self.jobs)
        for _ in range(min(room, self.rng.randint(1, 6))):
            self._made += 1
            self._due.append((self.rng.uniform(0, 0.3), make_job(self.rng, self._made)))
        self._due.sort(key=lambda due: -due[0])

    def _send_due(self, now: float) -> None:
        while self._due and self._due[-1][0] <= now:
            _, job = self._due.pop()
            self.figures["drops"] += 1
            with contextlib.suppress(OSError):  # the power may be off already
                send(job, self.spool)
            if job.name not in self.done:
                self.jobs[job.name] = job

    def _look_into_inbox(self) -> None:
        """Count what left inbox/ as accepted, reported or not; empty files may be in transit."""
        try:
            names = {path.name for path in self.spool.glob("inbox/**/*.jsonl")}
        except OSError:  # the power is off
            return
        if not names and not (self.spool / "inbox").is_dir():
            return
        for job in self.jobs.values():
            if job.sent and f"{job.name}.jsonl" not in names and job.kind is Kind.VALID:
                job.acknowledged = True

    # -- what the daemon tells --------------------------------------------------------

    def _take(self, events: list[Json]) -> None:
        for event in events:
            self._events += 1
            self._recovered = self._recovered or event["event"] == "recovered"
            self._ready = self._ready or event["event"] == "ready"
            if event["event"] == "fault":
                self.faults.append(event["words"])
            elif event["event"] == "executed":
                self._executed(event["text"])
            elif (job := self._job(event.get("job"))) is not None:
                self._told(job, event)

    def _told(self, job: Job, event: Json) -> None:
        if event["event"] == "committed":
            for line in event["lines"]:
                if line - 1 in job.committed:
                    self.faults.append(f"{job.name} line {line} was committed twice")
                job.committed[line - 1] = self._phase
            self.figures["committed lines"] += len(event["lines"])
        elif event["event"] == "published":
            job.published = True
        elif event["event"] in {"accepted", "rejected"}:
            job.acknowledged = True
            if job.id not in {None, event.get("id")}:
                self.faults.append(f"{job.name} was accepted twice")
            job.id = event.get("id")

    def _executed(self, text: str) -> None:
        name, number = text.split()[:2]
        job = self._job(name)
        if job is None:
            self.faults.append(f"{text} was never sent")
            return
        job.executions[int(number)] += 1
        self.figures["executions"] += 1
        if int(number) in job.committed:
            self.faults.append(f"{text}: executed again although its result was committed")

    def _job(self, name: str | None) -> Job | None:
        return self.jobs.get(name or "") or self.done.get(name or "")

    # -- checks ---------------------------------------------------------------------

    def _check_after_cut(self) -> None:
        """Before anything is repaired: what was published is there and whole."""
        for job in [*self.jobs.values(), *self.done.values()]:
            if job.published:
                self.figures["folders found whole after a cut"] += 1
                self._hold(partial(check_whole, self.spool / "outbox" / job.name))
            self.figures["committed lines at a cut"] += len(job.committed)

    def _hold(self, check: Callable[[], None]) -> None:
        try:
            check()
        except (AssertionError, OSError, ValueError, KeyError) as error:
            self.faults.append(str(error) or repr(error))

    def _all_answered(self) -> bool:
        return self._ready and not self._due and not self._open_names()

    def _open_names(self) -> list[str]:
        waiting = [j.name for j in self.jobs.values() if not is_answered(j, self.spool)]
        inbox = [path.name for path in self.spool.glob("inbox/**/*.jsonl*")]
        return waiting + inbox

    def _check_end(self) -> None:
        """Everything has ended: each job line by line, and nothing left over."""
        for job in self.jobs.values():
            self._hold(partial(check_ended, job, self.spool))
            self.figures["jobs"] += 1
            self.figures["lines"] += len(job.lines)
            self.figures["repeated executions"] += job.repeated
        for name in ("claimed", "queued", "running"):
            left = [path.name for path in (self.spool / name).iterdir()]
            if left:
                self.faults.append(f"{name}/ still holds {left}")
        for path in (self.spool / "quarantine").iterdir():
            sent = self._job(path.name.split(".jsonl")[0])
            if sent is None or not sent.data.startswith(path.read_bytes()):
                self.faults.append(f"quarantine/ holds {path.name}, {path.stat().st_size} bytes")
        if not self.faults:
            self._collect()

    def _collect(self) -> None:
        """Take most folders away, as a web app does, and remember the jobs."""
        for job in self.jobs.values():
            if self.rng.random() < 0.8:
                shutil.rmtree(self.spool / "outbox" / job.name, ignore_errors=True)
                job.published = False
            self.done[job.name] = job
        self.jobs = {}
        for path in (self.spool / "quarantine").iterdir():
            path.unlink()
            self.figures["old drops set aside"] += 1
        os.sync()

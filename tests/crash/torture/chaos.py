"""The real daemon and a stand-in engine, both killed at random while they work.

    PYTHONPATH=tests/crash:tests/support python -m torture.chaos --kills 40 --jobs 12

Purpose: jobs with poison, slow, failing and passing requests; kill -9 for the daemon or
its engine at random moments; then every line of every job is held to exactly one
outcome, in input order, and the executions that were repeated are counted.
Known limit: kills that hit the engine each time that one suspect runs alone have shown
that request to be poison; those lines are counted, and bounded by the kills.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from daemon_process import DaemonProcess
from job_files import chats, check_outputs
from processes import wait_until
from standin_faults import find_faults

PATIENCE_S = 300.0
PASSING = ("[[500x1]]", "[[429x2]]", "[[resetx1]]", "[[slow=0.4]]", "[[garbagex1]]", "[[killx1]]")
# How a line with a lasting fault ends; one that passes is answered, or was tried too often.
ENDS = {"400": "invalid_request", "500": "max_attempts", "crash": "poison"}
LASTING = ("[[400]]", "[[500]]")


def make_marks(rng: random.Random, count: int, poison: int) -> dict[int, str]:
    """Faults for some of a job's lines."""
    marks = {n: rng.choice(PASSING + LASTING) for n in range(count) if rng.random() < 0.06}
    return marks | dict.fromkeys(rng.sample(range(count), poison), "[[crash]]")


class Chaos:
    """One run: its jobs, its kills, and what it found."""

    def __init__(self, daemon: DaemonProcess, seed: int, jobs: int, lines: int) -> None:
        """Make the jobs; a third of them hold a poison request."""
        self.rng = random.Random(seed)
        self.daemon = daemon
        self.marks = {
            f"job{n}": make_marks(self.rng, lines, poison=int(n % 3 == 0)) for n in range(jobs)
        }
        self.lines = {
            name: chats(lines, {n: f"{name} {marks.get(n, '')}".strip() for n in range(lines)})
            for name, marks in self.marks.items()
        }
        self.figures: Counter[str] = Counter()

    def run(self, kills: int) -> None:
        """Drop the jobs one after the other while killing, then check everything."""
        waiting = list(self.lines)
        self.daemon.start(ready=False)
        while self.figures["kills"] < kills or waiting:
            if waiting and self.rng.random() < 0.6:
                name = waiting.pop()
                self.daemon.drop(name, self.lines[name])
            time.sleep(self.rng.uniform(0.1, 1.2))
            if self.figures["kills"] < kills:
                self._kill()
        for name in self.lines:
            self.daemon.wait_outcome(name, PATIENCE_S)
        # A folder is shown before the last of its job is cleared away.
        self.daemon.stop()
        self.check()

    def _kill(self) -> None:
        engine = self.daemon.engine_processes()
        if engine and self.rng.random() < 0.5:
            self.rng.choice(engine).kill()
            self.figures["engine kills"] += 1
        else:
            below = self.daemon.kill()
            self.figures["daemon kills"] += 1
            wait_until(lambda: not any(p.alive for p in below), "the end of the engine")
            self.daemon.start(ready=False)
        self.figures["kills"] += 1

    # -- checks ---------------------------------------------------------------------

    def check(self) -> None:
        """Every line has exactly one outcome, and it is the right one.

        Raises AssertionError.
        """
        for name, lines in self.lines.items():
            outputs = check_outputs(lines, self.daemon.spool / "outbox" / name)
            reasons = outputs.reasons()
            for number in range(len(lines)):
                self._check_end(name, number, reasons.get(f"r{number}"))
            self.figures["lines"] += len(lines)
        assert self.figures["mistaken"] <= self.figures["engine kills"] // 5
        for folder in ("claimed", "queued", "running", "quarantine"):
            left = [path.name for path in (self.daemon.spool / folder).iterdir()]
            assert not left, f"{folder}/ still holds {left}"
        self._count_executions()

    def _check_end(self, name: str, number: int, reason: str | None) -> None:
        mark = self.marks[name].get(number, "")
        fault = next(iter(find_faults(mark)), None)
        what = f"{name} line {number + 1} {mark} ended as {reason}"
        if fault is not None and fault.times is None and fault.name in ENDS:
            wanted = ENDS[fault.name]
            mistaken = reason == "poison" and wanted != "poison"
            assert mistaken or reason == wanted, what
        else:
            assert reason in {None, "poison"} or (fault and fault.times), what
            mistaken = reason == "poison"
        self.figures["mistaken"] += bool(mistaken)

    def _count_executions(self) -> None:
        """Executions beyond a plain line's first are the price of the kills."""
        seen = Counter(self.daemon.executions())
        plain = [text for text in seen if "[[" not in text]
        self.figures["executions"] = sum(seen.values())
        self.figures["repeated executions of plain lines"] = sum(seen[t] - 1 for t in plain)
        self.figures["engine starts"] = len(self.daemon.engine_starts())


def options_of_engine() -> list[str]:
    """A stand-in that takes some time for each request."""
    return ["--slots", "32", "--latency", "0.02", "--jitter", "0.9", "--death-delay", "0.05"]


def make_daemon(folder: Path) -> DaemonProcess:
    """A daemon whose queue takes all jobs, with such an engine."""
    limits = {"max_queue_depth": 1000}
    return DaemonProcess(folder, *options_of_engine(), limits=limits, disk={"min_free_bytes": 0})


def main() -> int:
    """Run once; the folder stays when something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--lines", type=int, default=150)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    options = parser.parse_args()
    print(f"chaos: seed {options.seed}", flush=True)  # noqa: T201
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    daemon, begun = make_daemon(folder), time.monotonic()
    chaos = Chaos(daemon, options.seed, options.jobs, options.lines)
    try:
        chaos.run(options.kills)
    except AssertionError as error:
        print(f"chaos: FAILED: {error}; kept in {folder}")  # noqa: T201
        return 1
    finally:
        daemon.close()
    print(f"chaos: {dict(chaos.figures)} in {time.monotonic() - begun:.0f} s")  # noqa: T201
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

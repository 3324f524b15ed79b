"""What all actors share: folders, random numbers, the jobs, the record of actions.

Invariants: every action is one line of actions.jsonl, written before it is taken; a
violation is kept once, with the first of its kind in full.
"""

import json
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from job_files import Json
from soak.history import History, Journal, Rules, Violation
from soak.jobs import SentJob

_KEPT_OF_A_KIND = 50


class Desk:
    """The shared state of one run."""

    def __init__(self, folder: Path, spool: Path, seed: int, rules: Rules) -> None:
        """Make the folder; nothing runs yet."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.spool, self.seed, self.rules = folder, spool, seed, rules
        self.config = folder / "config.toml"
        self.journal_path, self.weather_path = folder / "server.jsonl", folder / "weather.json"
        self.history = History()
        self.journal = Journal(self.journal_path, self.history)
        self.jobs: dict[str, SentJob] = {}  # by the checksum of the content
        self.oddities: set[Path] = set()  # what lies in inbox/ and is never to be taken
        self.published: dict[str, tuple[int, int]] = {}  # lines by the job's id
        self.figures: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.stop = threading.Event()  # no new trouble, no new jobs
        self.closed = threading.Event()  # nothing more at all
        self.begun = time.monotonic()
        self.lock = threading.RLock()
        self._actions = (folder / "actions.jsonl").open("a", encoding="utf-8")

    def rng(self, name: str) -> random.Random:
        """The random numbers of one actor."""
        return random.Random(f"{self.seed} {name}")

    def act(self, actor: str, what: str, **more: object) -> float:
        """Record an action that is about to be taken; return when, in monotonic seconds."""
        now = time.monotonic()
        line = {"at": round(now, 3), "since": round(now - self.begun, 3), "actor": actor}
        with self.lock:
            self.figures[f"{actor}: {what}"] += 1
            self._actions.write(json.dumps(line | {"what": what} | more, default=str) + "\n")
            self._actions.flush()
        return now

    def accuse(self, violations: Iterable[Violation]) -> None:
        """Keep what did not hold."""
        with self.lock:
            for violation in violations:
                self.figures[f"violations {violation.code}"] += 1
                if self.figures[f"violations {violation.code}"] <= _KEPT_OF_A_KIND:
                    self.violations.append(violation)
                    self.act("witness", "violation", code=violation.code, seen=violation.what)

    def open_jobs(self) -> list[SentJob]:
        """The files that still wait for their answer."""
        with self.lock:
            return [job for job in self.jobs.values() if not job.final]

    def named(self, name: str) -> SentJob | None:
        """The valid file of that name."""
        with self.lock:
            return next((job for job in self.jobs.values() if job.name == name), None)

    def close(self) -> None:
        """Close the record."""
        self._actions.close()


class Actor(threading.Thread):
    """Takes its turn again and again until `until` is set; a fault of its own is a violation."""

    def __init__(self, desk: Desk, name: str, pause_s: tuple[float, float]) -> None:
        """Prepare it; `start` begins."""
        super().__init__(name=name, daemon=True)
        self.desk, self.rng, self.pause_s = desk, desk.rng(name), pause_s
        self.until = desk.stop

    def run(self) -> None:
        """Act until the end."""
        while not self.until.wait(self.rng.uniform(*self.pause_s)):
            try:
                self.turn()
            except Exception:  # noqa: BLE001 - the run goes on; the report shows it
                what = f"{self.name}: {traceback.format_exc()[-1500:]}"
                self.desk.accuse([Violation("soak_fault", what, time.monotonic())])
        self.rest()

    def turn(self) -> None:
        """Do one thing."""
        raise NotImplementedError

    def rest(self) -> None:
        """Undo what must not last."""

    def act(self, what: str, **more: object) -> float:
        """Record an action of this actor."""
        return self.desk.act(self.name, what, **more)


def read_json(path: Path) -> Json | None:
    """A document, None while it is not there or not whole."""
    try:
        document: Json = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document

"""What a daemon shows while it works, looked at again and again.

Purpose: its memory, the age of its status, and what it lets into the engine, over time.
Method: /proc and outbox/status.json, read from outside as an operator would.
Known limit: the engine's figures in the status are up to a second older than the look.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from bench.processes import Daemon, Json


@dataclass(frozen=True)
class Look:
    """One look; the names are the status document's, None where nothing says.

    `window` is what the governor lets through of the controller's.
    """

    at_s: float
    memory_mib: float
    status_age_s: float
    window: int
    in_flight: int
    running: int | None
    waiting: int | None
    kv_cache_percent: float | None
    governor: str
    temperature_c: float | None


@dataclass
class Course:
    """What was seen of a daemon, in seconds since the start."""

    began: float = field(default_factory=time.time)
    looks: list[Look] = field(default_factory=list)

    @property
    def oldest_s(self) -> float:
        """The greatest age that a status document had when it was read."""
        return max((look.status_age_s for look in self.looks), default=0.0)

    def look(self, daemon: Daemon) -> None:
        """Take one sample."""
        document = daemon.status_now()
        now, worker, engine = time.time(), document["worker"], document["engine"]
        gpu = document["gpu"] or {}
        self.looks.append(
            Look(
                at_s=round(now - self.began, 3),
                memory_mib=round(daemon.memory_mib(), 1),
                status_age_s=now - document["written_at"],
                window=worker["window"],
                in_flight=worker["in_flight"],
                running=engine["running"],
                waiting=engine["waiting"],
                kv_cache_percent=engine["kv_cache_percent"],
                governor=worker["governor"],
                temperature_c=gpu.get("temperature_c"),
            )
        )

    def dump(self) -> list[Json]:
        """For JSON."""
        return [asdict(look) for look in self.looks]


@contextmanager
def watching(daemon: Daemon, every_s: float) -> Iterator[Course]:
    """Look at a daemon during the block."""
    course, stop = Course(), threading.Event()

    def watch() -> None:
        while not stop.wait(every_s):
            course.look(daemon)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield course
    finally:
        stop.set()
        watcher.join()

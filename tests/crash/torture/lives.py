"""The life of one daemon process from its parent's side, and how it is to end.

Purpose: fork the witness, read its reports, kill it; choose the moment of a cut.
Invariant: what was reported before the end is read, also after the end.
"""

import contextlib
import json
import math
import os
import random
import select
import signal
from dataclasses import dataclass

from job_files import Json
from torture.witness import Phase, live


@dataclass(frozen=True)
class Plan:
    """When the power goes: after seconds, after so many events, or at a step of the daemon."""

    way: str
    at: float
    delay_s: float = 0.0
    before: bool = False


def make_plan(rng: random.Random) -> Plan:
    """Any moment, the early ones of a start more often than the late."""
    way = rng.choice(("step", "step", "event", "moment"))
    if way == "moment":
        return Plan(way, rng.uniform(0.0, 0.6))
    most = 1500 if way == "step" else 500
    at = int(math.exp(rng.uniform(0, math.log(most))))
    return Plan(way, at, rng.choice((0.0, rng.uniform(0, 0.004))), before=rng.random() < 0.5)


class Life:
    """One process of the daemon, from the parent's side."""

    def __init__(self, phase: Phase) -> None:
        """Fork it."""
        self.pipe, write_end = os.pipe()
        self.ended = False
        self._rest = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            live(phase, write_end)
        os.close(write_end)

    def events(self, patience_s: float) -> list[Json]:
        """What it has reported since the last call; waits a moment for the first."""
        if not select.select([self.pipe], [], [], patience_s)[0]:
            return []
        data = os.read(self.pipe, 1 << 20)
        self.ended = self.ended or not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def wait(self) -> int:
        """Wait for its end; return its exit status, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End it now."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

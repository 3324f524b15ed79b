"""Read outbox/status.json over and over, as a web app's health check does, and keep it all."""

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from job_files import Json, schema

_LOOK_S = 0.02


@dataclass
class StatusWatch:
    """A reader beside the test; at its end everything that it saw is checked.

    From its first document on there is always one, whole and by its schema; within one
    daemon `seq` grows with each writing; none is ever older than it says it may become.
    """

    path: Path
    seen: list[Json] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    may_be_old: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self.check()

    def check(self) -> None:
        """Hold everything that was seen to the contract."""
        assert self.seen
        assert not self.faults, self.faults[0]
        for status in self.seen:
            schema("status").validate(status)

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                self._look()
            except (OSError, ValueError) as error:
                if self.seen:
                    self.faults.append(f"after {len(self.seen)} documents: {error!r}")

    def _look(self) -> None:
        status: Json = json.loads(self.path.read_bytes())
        age_s = time.time() - status["written_at"]
        if age_s > status["stale_after_s"] and not self.may_be_old:
            self.faults.append(f"document {status['seq']} was {age_s:.1f} s old")
        last = self.seen[-1] if self.seen else None
        if last and (last["pid"], last["seq"]) == (status["pid"], status["seq"]):
            return
        if last and last["pid"] == status["pid"] and last["seq"] > status["seq"]:
            self.faults.append(f"seq fell from {last['seq']} to {status['seq']}")
        self.seen.append(status)

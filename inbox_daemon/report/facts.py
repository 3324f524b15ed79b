"""All facts of one moment, from which the status is built.

Purpose: the one argument of health.py and status.py.
Invariants: pure data; a document is built from it alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from inbox_daemon.contract.config import Config
from inbox_daemon.contract.facts import DiskFacts, GovernorFacts, IntakeFacts, QueueFacts, RunFacts
from inbox_daemon.engine.base import EngineInfo
from inbox_daemon.gpu.nvml import GpuSample
from inbox_daemon.report.trends import Speed


@dataclass(frozen=True, slots=True)
class Facts:
    """One daemon at one moment.

    `written_at` and `started_at` are in seconds since 1970; `speeds` is by job id;
    `died_s_ago` is the time since the engine's last death, None if there was none;
    `clock_doubt` says why the clock is not trusted, None if it is.
    """

    config: Config
    engine: EngineInfo
    run: RunFacts = field(default_factory=RunFacts)
    queue: QueueFacts = field(default_factory=QueueFacts)
    intake: IntakeFacts = field(default_factory=IntakeFacts)
    governor: GovernorFacts = field(default_factory=GovernorFacts)
    gpu: GpuSample | None = None
    disk: DiskFacts | None = None
    dead_letters: int = 0
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    died_s_ago: float | None = None
    clock_doubt: str | None = None
    stopping: bool = False
    seq: int = 1
    written_at: float = 0.0
    started_at: float = 0.0
    pid: int = 0
    python: str = ""

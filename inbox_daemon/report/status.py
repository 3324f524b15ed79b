"""What is true now, as outbox/status.json.

Purpose: build the one health document from the parts' own figures.
Invariants: nothing is measured here that could block; every state that keeps work
from going on gives a reason in words; a document is replaced, never changed.
"""

import os
import platform
import time
from collections import deque
from dataclasses import asdict, dataclass, field

from inbox_daemon import __version__
from inbox_daemon.contract import job_documents
from inbox_daemon.contract.config import Config
from inbox_daemon.contract.health_documents import (
    ActiveJob,
    DiskStatus,
    EngineStatus,
    GpuStatus,
    Health,
    LimitsStatus,
    QueueStatus,
    ServiceStatus,
    Versions,
    WorkerState,
    WorkerStatus,
)
from inbox_daemon.contract.names import ALL
from inbox_daemon.engine.base import EngineInfo, EngineState
from inbox_daemon.gpu.governor import Governor
from inbox_daemon.gpu.nvml import GpuSample
from inbox_daemon.intake.loop import Intake
from inbox_daemon.jobs.active import ActiveEntry, ActiveJobs
from inbox_daemon.run.runner import Runner

RATE_WINDOW_S = 60.0
RECENT_DEATH_S = 600.0


@dataclass(slots=True)
class Rate:
    """How fast a figure grows, over the last minute."""

    samples: deque[tuple[float, int, int]] = field(default_factory=deque)

    def add(self, now: float, requests: int, tokens: int) -> None:
        """Take a sample at `now` seconds of the monotonic clock."""
        self.samples.append((now, requests, tokens))
        while now - self.samples[0][0] > RATE_WINDOW_S:
            self.samples.popleft()

    def per_second(self) -> tuple[float, float] | None:
        """Requests and tokens a second; None until there are two samples."""
        first, last = self.samples[0], self.samples[-1]
        passed = last[0] - first[0]
        if passed <= 0:
            return None
        return (last[1] - first[1]) / passed, (last[2] - first[2]) / passed


@dataclass(slots=True)
class Reporter:
    """Builds the document; holds only what a document cannot say by itself."""

    config: Config
    queue: ActiveJobs
    runner: Runner
    intake: Intake
    governor: Governor
    started_at: float = field(default_factory=time.time)
    gpu: GpuSample | None = None
    stopping: bool = False
    disk: tuple[int, int] | None = None
    dead_letters: int = 0
    quarantined: list[str] = field(default_factory=list)
    _seq: int = 0
    _rates: dict[str, Rate] = field(default_factory=dict)
    _last_death: tuple[int, float] = (0, 0.0)

    def build(self, info: EngineInfo, now: float) -> ServiceStatus:
        """The document of this moment; `now` in seconds of the monotonic clock."""
        self._seq += 1
        unhealthy, degraded = self._unhealthy(info), self._degraded(info, now)
        health: Health = "unhealthy" if unhealthy else "degraded" if degraded else "healthy"
        load = self.queue.load()
        limits = self.config.limits
        return ServiceStatus(
            seq=self._seq,
            written_at=time.time(),
            stale_after_s=max(2 * self.config.status.interval_s, self.config.status.interval_s + 5),
            started_at=self.started_at,
            pid=os.getpid(),
            status=health,
            reasons=unhealthy + degraded,
            gpu=GpuStatus.model_validate(asdict(self.gpu)) if self.gpu else None,
            worker=self._worker(info, now),
            engine=_engine(info, self.runner.collector.deaths),
            queue=QueueStatus(
                active_jobs=load.jobs,
                queue_available=max(limits.max_queue_depth - load.jobs, 0),
                total_queued_requests=load.requests,
            ),
            disk=self._disk(),
            dead_letters=self.dead_letters,
            quarantined=self.quarantined[:20],
            limits=LimitsStatus.model_validate(limits.model_dump()),
            jobs=self._jobs(now),
            waiting=self.intake.waiting,
            recent=list(reversed(self.queue.recent)),
            last_finished=self.queue.last_finished,
            last_rejected=self.queue.last_rejected,
            versions=Versions(inbox_daemon=__version__, python=platform.python_version()),
        )

    # -- health ---------------------------------------------------------------------

    def _unhealthy(self, info: EngineInfo) -> list[str]:
        reasons: list[str] = []
        if self.stopping:
            reasons.append("the daemon is stopping, or was stopped")
        if info.state is EngineState.BACKOFF:
            reasons.append(f"the engine does not run: {info.last_error or 'no reason known'}")
        texts = (self.runner.paused, self.runner.collector.problem, self.intake.problem)
        reasons += [text for text in texts if text]
        if self.gpu is not None and not self.gpu.healthy:
            reasons.append(self.gpu.problem or "the GPU does not answer")
        return reasons

    def _degraded(self, info: EngineInfo, now: float) -> list[str]:
        reasons = []
        if info.state in {EngineState.STARTING, EngineState.STOPPED} and not self.stopping:
            reasons.append("the engine is starting")
        if self.quarantined:
            reasons.append(f"{len(self.quarantined)} things lie in quarantine/: look at the log")
        reasons += self.governor.reasons
        reasons += [self.intake.hints_missing] if self.intake.hints_missing else []
        if self.runner.hunting:
            reasons.append("the engine died; the requests that were running are tried in groups")
        if info.generation != self._last_death[0]:
            self._last_death = (info.generation, now)
        if info.generation and now - self._last_death[1] < RECENT_DEATH_S:
            reasons.append("the engine died in the last 10 minutes and was started again")
        return reasons

    def _disk(self) -> DiskStatus | None:
        if self.disk is None:
            return None
        return DiskStatus(
            free_bytes=self.disk[0], free_inodes=self.disk[1], **self.config.disk.model_dump()
        )

    # -- parts ----------------------------------------------------------------------

    def _worker(self, info: EngineInfo, now: float) -> WorkerStatus:
        runs = self.queue.runs()
        state, reason = self._worker_state(info, active=bool(self.queue.entries))
        return WorkerStatus(
            state=state,
            reason=reason,
            current_job=runs[0].record.name if runs else None,
            age_seconds=round(now - self.runner.collector.last_outcome_at, 1) if runs else None,
            in_flight=self.runner.in_flight,
            window=self.governor.window,
            chunk_size=self.governor.chunk_size,
            governor=self.governor.state.value,
            open_retries=sum(run.retrying for run in runs),
        )

    def _worker_state(self, info: EngineInfo, *, active: bool) -> tuple[WorkerState, str | None]:
        if info.state is EngineState.BACKOFF:
            return "error", info.last_error
        if self.runner.collector.problem:
            return "error", self.runner.collector.problem
        if self.runner.paused or self.governor.closed:
            return "paused", self.runner.paused or self.governor.reason
        if ALL in self.queue.paused:
            return "paused", "all jobs were paused; `inbox-daemon resume` lets them go on"
        if active and info.state is not EngineState.READY:
            return "paused", "the engine is loading"
        return ("processing", None) if active else ("idle", None)

    def at_work(self, info: EngineInfo) -> bool:
        """Say whether some job could go on, and nothing known keeps it from that."""
        active = [e for e in self.queue.entries.values() if not self.queue.is_paused(e.record)]
        return self._worker_state(info, active=bool(active))[0] == "processing"

    def _jobs(self, now: float) -> list[ActiveJob]:
        entries = sorted(self.queue.entries.values(), key=lambda entry: entry.record.id)
        self._rates = {e.record.id: self._rates.get(e.record.id, Rate()) for e in entries}
        return [self._job(entry, now) for entry in entries]

    def _job(self, entry: ActiveEntry, now: float) -> ActiveJob:
        record, run = entry.record, entry.run
        common = {
            "id": record.id,
            "name": record.name,
            "requests": record.requests,
            "created_at": int(record.created_at),
            "priority": record.priority.value,
            "paused": self.queue.is_paused(record),
        }
        if run is None:
            return ActiveJob.model_validate(
                common | {"state": "queued", "completed": 0, "failed": 0}
            )
        progress, rate = run.progress, self._rates[record.id]
        rate.add(now, progress.ended, progress.output_tokens)
        speed = rate.per_second()
        left = record.requests - progress.ended
        return ActiveJob.model_validate(
            common
            | {
                "state": "running",
                "completed": progress.completed,
                "failed": progress.failed,
                "retrying": run.retrying,
                "input_tokens": progress.input_tokens,
                "output_tokens": progress.output_tokens,
                "requests_per_s": round(speed[0], 3) if speed else None,
                "output_tokens_per_s": round(speed[1], 1) if speed else None,
                "energy_j": progress.energy_j,
                "energy_j_per_1000_output_tokens": job_documents.per_1000(
                    progress.energy_j, progress.output_tokens
                ),
                "seconds_left": round(left / speed[0], 1) if speed and speed[0] > 0 else None,
                "in_progress_at": int(record.in_progress_at or record.created_at),
            }
        )

    def headline(self, info: EngineInfo) -> str:
        """One line for systemd's STATUS and for people."""
        load = self.queue.load()
        state, reason = self._worker_state(info, active=load.jobs > 0)
        jobs = job_documents.counted(load.jobs, "job")
        requests = job_documents.counted(load.requests, "request")
        words = f"{state}: {jobs}, {requests} open, engine {info.state}"
        return f"{words}; {reason}" if reason else words


def _engine(info: EngineInfo, deaths: int) -> EngineStatus:
    use = info.load.kv_cache_use
    return EngineStatus(
        state=info.state.value,
        models=list(info.models),
        version=info.version,
        restarts=info.restarts,
        deaths=max(deaths, info.generation),
        running=info.load.running,
        waiting=info.load.waiting,
        kv_cache_percent=None if use is None else round(min(max(use, 0.0), 1.0) * 100, 2),
        state_seconds=round(max(time.time() - info.since, 0.0), 1) if info.since else 0.0,
        retry_in_s=info.retry_in_s,
        last_error=info.last_error,
        last_lines=list(info.last_lines),
    )

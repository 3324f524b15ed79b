"""The service's status document, outbox/status.json, from the facts of one moment.

Purpose: facts in, document out.
Invariants: pure: nothing is read or remembered here; every state that keeps work from
going on gives its code and its words.
"""

from dataclasses import asdict

from inbox_daemon import __version__
from inbox_daemon.contract.facts import JobFacts
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
    WorkerStatus,
)
from inbox_daemon.contract.hindrances import Hindrance
from inbox_daemon.contract.job_documents import per_1000
from inbox_daemon.report import health
from inbox_daemon.report.facts import Facts
from inbox_daemon.report.trends import Speed

# How many names of quarantine/ are listed.
MAX_QUARANTINED = 20


def build(facts: Facts, now: float) -> ServiceStatus:
    """Return the document of a moment; `now` is in seconds of the monotonic clock."""
    unhealthy, degraded = health.unhealthy(facts), health.degraded(facts)
    status: Health = "unhealthy" if unhealthy else "degraded" if degraded else "healthy"
    interval_s = facts.config.status.interval_s
    limits, queue, disk = facts.config.limits, facts.queue, facts.disk
    return ServiceStatus(
        seq=facts.seq,
        written_at=facts.written_at,
        stale_after_s=max(2 * interval_s, interval_s + 5),
        started_at=facts.started_at,
        pid=facts.pid,
        status=status,
        reasons=list(dict.fromkeys(unhealthy + degraded)),
        gpu=GpuStatus.model_validate(asdict(facts.gpu)) if facts.gpu else None,
        worker=_worker(facts, now),
        engine=_engine(facts, now),
        queue=QueueStatus(
            active_jobs=queue.active,
            queue_available=max(limits.max_queue_depth - queue.active, 0),
            total_queued_requests=queue.open_requests,
        ),
        disk=None
        if disk is None
        else DiskStatus(
            free_bytes=disk.free_bytes,
            free_inodes=disk.free_inodes,
            **facts.config.disk.model_dump(),
        ),
        dead_letters=facts.dead_letters,
        quarantined=list(disk.quarantined[:MAX_QUARANTINED]) if disk else [],
        limits=LimitsStatus.model_validate(limits.model_dump()),
        jobs=[
            _job(job, facts.speeds.get(job.record.id), facts.run.waiting.get(job.record.id))
            for job in queue.jobs
        ],
        waiting=list(facts.intake.waiting),
        recent=list(queue.recent),
        last_finished=queue.last_finished,
        last_rejected=queue.last_rejected,
        versions=Versions(inbox_daemon=__version__, python=facts.python),
    )


def _worker(facts: Facts, now: float) -> WorkerStatus:
    running = [job for job in facts.queue.jobs if job.running]
    state, hindrance = health.worker_state(facts)
    return WorkerStatus(
        state=state,
        code=hindrance.code if hindrance else None,
        reason=hindrance.words if hindrance else None,
        current_job=running[0].record.name if running else None,
        age_seconds=round(now - facts.run.last_outcome_at, 1) if running else None,
        in_flight=facts.run.in_flight,
        in_flight_bytes=facts.run.in_flight_bytes,
        window=facts.governor.window,
        chunk_size=facts.governor.chunk_size,
        governor=facts.governor.state,
        open_retries=sum(job.retrying for job in running),
    )


def _engine(facts: Facts, now: float) -> EngineStatus:
    info, use = facts.engine, facts.engine.load.kv_cache_use
    return EngineStatus(
        state=info.state.value,
        models=list(info.models),
        version=info.version,
        restarts=info.restarts,
        deaths=max(facts.run.deaths, info.generation),
        running=info.load.running,
        waiting=info.load.waiting,
        kv_cache_percent=None if use is None else round(min(max(use, 0.0), 1.0) * 100, 2),
        state_seconds=round(max(now - info.since, 0.0), 1) if info.since else 0.0,
        retry_in_s=info.retry_in_s,
        last_error=info.last_error,
        last_lines=list(info.last_lines),
    )


def _job(job: JobFacts, speed: Speed | None, waits: Hindrance | None) -> ActiveJob:
    record, progress = job.record, job.progress
    common = {
        "id": record.id,
        "name": record.name,
        "requests": record.requests,
        "created_at": int(record.created_at),
        "priority": record.priority.value,
        "model": record.model,
        "paused": job.paused,
        "code": waits.code if waits else None,
        "reason": waits.words if waits else None,
        "completed": progress.completed,
        "failed": progress.failed,
    }
    if not job.running:
        return ActiveJob.model_validate(common | {"state": "queued"})
    left = record.requests - progress.ended
    return ActiveJob.model_validate(
        common
        | {
            "state": "running",
            "retrying": job.retrying,
            "input_tokens": progress.input_tokens,
            "output_tokens": progress.output_tokens,
            "requests_per_s": round(speed.requests, 3) if speed else None,
            "output_tokens_per_s": round(speed.output_tokens, 1) if speed else None,
            "energy_j": progress.energy_j,
            "energy_j_per_1000_output_tokens": per_1000(progress.energy_j, progress.output_tokens),
            "seconds_left": round(left / speed.requests, 1) if speed and speed.requests else None,
            "in_progress_at": int(record.in_progress_at or record.created_at),
        }
    )

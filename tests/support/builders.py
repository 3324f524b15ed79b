"""What the tests of single modules build again and again.

Purpose: lines, records and configurations in one word each, and the parts of a daemon
on a real spool.
Invariant: everything has a default, so that a test names only what it is about.
"""

import hashlib
from pathlib import Path
from typing import Any

import orjson

from inbox_daemon.contract.config import Config, LimitsConfig
from inbox_daemon.contract.health_documents import ServiceStatus
from inbox_daemon.contract.records import DeadLetter, DeadReason, JobRecord
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool

CHAT = "/v1/chat/completions"
JOB_ID = "01JZZZZZZZZZZZZZZZZZZZZZZ0"


def limits(**changed: int) -> LimitsConfig:
    """The default limits with some changed."""
    return LimitsConfig().model_copy(update=changed)


def config(**sections: dict[str, Any]) -> Config:
    """The default configuration with some keys changed, by section."""
    return Config.model_validate(sections)


# The least that a body must have, by endpoint.
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/score": {"text_1": "hi", "text_2": "ho"},
    "/v1/rerank": {"query": "hi", "documents": ["ho"]},
}


def request(custom_id: str = "a", url: str = CHAT, **body: object) -> bytes:
    """One input line, without its newline; `body` is added to the least that it must have."""
    whole = BODIES.get(url, {}) | body
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": whole})


def nested(levels: int) -> bytes:
    """A JSON document of so many nested arrays."""
    return b"[" * levels + b"]" * levels


def job_record(job_id: str = JOB_ID, name: str = "job", **fields: Any) -> JobRecord:  # noqa: ANN401 - any field
    """The record of a job of one request that was accepted."""
    known = {
        "id": job_id,
        "name": name,
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "bytes": 100,
        "requests": 1,
        "endpoint": CHAT,
        "model": None,
        "created_at": 1000.0,
    }
    return JobRecord.model_validate(known | fields)


def make_spool(root: Path) -> Spool:
    """A spool with its folders, below a test's own folder."""
    spool = Spool(root / "spool")
    spool.create()
    return spool


def start_job(root: Path, lines: list[bytes]) -> tuple[Spool, Ledger, JobRecord]:
    """A job on a spool of its own, accepted and in running/; close the ledger after it."""
    spool = make_spool(root)
    ledger = Ledger(spool.ledger)
    record = job_record(requests=sum(not line.isspace() for line in lines if line))
    ledger.accept(record, [])
    (spool.running / JOB_ID).mkdir()
    spool.input_path(JOB_ID).write_bytes(b"\n".join(lines) + b"\n")
    return spool, ledger, record


def service_status(**fields: Any) -> ServiceStatus:  # noqa: ANN401 - any field
    """A health document of an idle daemon, with some fields changed."""
    known: dict[str, Any] = {
        "seq": 1,
        "written_at": 1000.0,
        "stale_after_s": 10.0,
        "started_at": 900.0,
        "pid": 7,
        "status": "healthy",
        "reasons": [],
        "gpu": None,
        "worker": {"state": "idle"},
        "engine": {"state": "ready", "state_seconds": 1.0},
        "queue": {"active_jobs": 0, "queue_available": 5, "total_queued_requests": 0},
        "limits": limits().model_dump(),
        "jobs": [],
        "waiting": [],
        "recent": [],
        "last_finished": None,
        "last_rejected": None,
        "versions": {"inbox_daemon": "0", "python": "3"},
    }
    return ServiceStatus.model_validate(known | fields)


def dead_letter(line: int = 1, job_id: str = JOB_ID, **fields: Any) -> DeadLetter:  # noqa: ANN401 - any field
    """A dead letter of one line of a job."""
    known = {
        "job_id": job_id,
        "job": "job",
        "custom_id": "a",
        "line": line,
        "reason": DeadReason.MAX_ATTEMPTS,
        "code": "http_500",
        "message": "no",
        "http_status": 500,
        "retry_count": 2,
        "first_at": 1.0,
        "last_at": 2.0,
        "request": None,
    }
    return DeadLetter.model_validate(known | fields)

"""What the tests of single modules build again and again.

Purpose: lines, records and configurations in one word each, and the parts of a daemon
on a real spool.
Invariant: everything has a default, so that a test names only what it is about.
"""

import hashlib
from typing import Any

import orjson

from inbox_daemon.config import Config, LimitsConfig
from inbox_daemon.records import JobRecord

CHAT = "/v1/chat/completions"
JOB_ID = "01JZZZZZZZZZZZZZZZZZZZZZZ0"


def limits(**changed: int) -> LimitsConfig:
    """The default limits with some changed."""
    return LimitsConfig().model_copy(update=changed)


def config(**sections: dict[str, Any]) -> Config:
    """The default configuration with some keys changed, by section."""
    return Config.model_validate(sections)


def request(custom_id: str = "a", url: str = CHAT, **body: object) -> bytes:
    """One input line, without its newline."""
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": body or {"x": 1}}
    return orjson.dumps(line)


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

"""The JSON Schema of each document, by the name that `inbox-daemon schema` uses."""

from typing import Any

from inbox_daemon.contract.documents import (
    ControlOptions,
    Document,
    JobOptions,
    JobStatus,
    OutputLine,
    ReadyMarker,
    Refusal,
    RequestLine,
)
from inbox_daemon.contract.health_documents import ServiceStatus

DOCUMENTS: dict[str, type[Document]] = {
    "request": RequestLine,
    "ready": ReadyMarker,
    "options": JobOptions,
    "control": ControlOptions,
    "output": OutputLine,
    "job-status": JobStatus,
    "reason": Refusal,
    "status": ServiceStatus,
}


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one document, by its name in DOCUMENTS.

    Raises KeyError: there is no document of that name.
    """
    schema = DOCUMENTS[name].model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

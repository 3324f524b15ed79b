"""Bodies of requests, and what the rules say of one."""

from typing import Any

import orjson
import pytest

from builders import BODIES, limits
from inbox_daemon.contract.config import BodyConfig
from inbox_daemon.contract.documents import Fault
from inbox_daemon.request.faults import LineFaultError
from inbox_daemon.request.line import parse_request

RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
SCORE = "/v1/score"
RERANK = "/v1/rerank"
DATA = "data:image/png;base64,iVBORw0KGgo="

# The codes of the faults of a body.
NOT_ALLOWED, OVER, WRONG = "body_not_allowed", "body_over_limit", "invalid_request"


def check(url: str, body: dict[str, Any], **rules: Any) -> None:  # noqa: ANN401 - any key's value
    """Check a line with these parameters beside what its endpoint needs."""
    rule = limits().model_copy(update={"body": BodyConfig(**rules)})
    line = {"custom_id": "a", "url": url, "body": BODIES[url] | body}
    parse_request(orjson.dumps(line), rule)


def fault_of(url: str, body: dict[str, Any], **rules: Any) -> Fault:  # noqa: ANN401 - likewise
    """The fault that a body has."""
    with pytest.raises(LineFaultError) as caught:
        check(url, body, **rules)
    fault = caught.value.fault
    assert fault.message.isascii()
    assert fault.message.isprintable()
    assert len(fault.message) <= 1_024
    return fault


def said(url: str, body: dict[str, Any], **rules: Any) -> tuple[str, str | None]:  # noqa: ANN401 - likewise
    """Code and param of the fault that a body has."""
    fault = fault_of(url, body, **rules)
    return fault.code, fault.param


def chat_part(part: object) -> dict[str, Any]:
    """A chat whose second message has this as its second part."""
    parts = [{"type": "text", "text": "look"}, part]
    return {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]}


def tool(schema: object = None, name: str = "f") -> dict[str, Any]:
    """A function as a chat's tool."""
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def json_schema(schema: object) -> dict[str, Any]:
    """A chat's response_format."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

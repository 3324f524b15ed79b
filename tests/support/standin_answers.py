"""The bodies that the stand-in engine answers with: OpenAI's shapes, always the same.

The same request gets the same bytes each time: an echo of its last text.
"""

import zlib
from typing import Any

import orjson

CREATED = 1_700_000_000
_DIMENSIONS = 8


def last_text(body: dict[str, Any]) -> str:
    """Take the request's last text: of the last message, the prompt or the input."""
    messages = body.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return _flat(messages[-1].get("content"))
    return _flat(body.get("prompt", body.get("input", body.get("text_2", body.get("query", "")))))


def answer(path: str, body: dict[str, Any], model: str, text: str) -> dict[str, Any]:
    """Build the answer to a request on one of the server's paths."""
    build = _BUILDERS.get(path, _chat)
    name = f"{zlib.crc32(orjson.dumps(body)):08x}"
    prompt_tokens, answer_tokens = count_tokens(body), len(text.split()) + 1
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
    }
    said = orjson.dumps({"echo": text}).decode() if body.get("response_format") else f"echo: {text}"
    return {**build(name, said, body), "created": CREATED, "model": model, "usage": usage}


def count_tokens(body: dict[str, Any]) -> int:
    """Count a token for each word of the request's texts."""
    messages = body.get("messages")
    texts = messages if isinstance(messages, list) else [body.get("prompt", body.get("input", ""))]
    return sum(
        len(_flat(text.get("content") if isinstance(text, dict) else text).split())
        for text in texts
    )


def error(status: int, message: str, kind: str = "InternalServerError") -> bytes:
    """Build vLLM's error body."""
    fault = {"message": message, "type": kind, "param": None, "code": status}
    return orjson.dumps({"error": fault})


def _chat(name: str, said: str, body: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": said}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {"id": f"chatcmpl-{name}", "object": "chat.completion", "choices": [choice]}


def _completion(name: str, said: str, body: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "text": said, "logprobs": None, "finish_reason": "stop"}
    return {"id": f"cmpl-{name}", "object": "text_completion", "choices": [choice]}


def _response(name: str, said: str, body: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "output_text", "text": said, "annotations": []}]
    output = [{"type": "message", "role": "assistant", "content": content}]
    return {"id": f"resp_{name}", "object": "response", "status": "completed", "output": output}


def _embedding(name: str, said: str, body: dict[str, Any]) -> dict[str, Any]:
    entries = body.get("input")
    texts = entries if isinstance(entries, list) else [entries]
    data = [
        {"index": index, "object": "embedding", "embedding": _vector(_flat(text))}
        for index, text in enumerate(texts)
    ]
    return {"id": f"embd-{name}", "object": "list", "data": data}


def _score(name: str, said: str, body: dict[str, Any]) -> dict[str, Any]:
    data = [{"index": 0, "object": "score", "score": _vector(said)[0]}]
    return {"id": f"score-{name}", "object": "list", "data": data}


def _rerank(name: str, said: str, body: dict[str, Any]) -> dict[str, Any]:
    results = [
        {"index": index, "document": {"text": _flat(text)}, "relevance_score": 1 / (index + 1)}
        for index, text in enumerate(body.get("documents") or [])
    ]
    return {"id": f"rerank-{name}", "results": results}


def _vector(text: str) -> list[float]:
    seed = zlib.crc32(text.encode(errors="replace"))
    return [(seed >> (4 * place) & 15) / 16 for place in range(_DIMENSIONS)]


def _flat(content: object) -> str:
    if isinstance(content, list):
        parts = (part.get("text", "") if isinstance(part, dict) else part for part in content)
        return " ".join(str(part) for part in parts)
    return content if isinstance(content, str) else ""


_BUILDERS = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/embeddings": _embedding,
    "/v1/score": _score,
    "/v1/rerank": _rerank,
}
PATHS = tuple(_BUILDERS)

"""A lean engine that answers at once: a server that costs as little as Python allows.

Purpose: be no part of what is measured; tests/support/standin.py fails on demand, this one only
answers.  HTTP is read by hand: it serves one kind of client, which sends whole requests
with a Content-Length.
Invariant: each answer is the same 16 tokens in the shape and size of vLLM's, or as many
bytes as were asked for; or the same refusal.

    python -m bench.standin --socket PATH [--latency SECONDS] [--bytes N] [--status 400]
"""

import argparse
import asyncio
import signal

import orjson

MODEL = "standin"
_USAGE = {"prompt_tokens": 20, "total_tokens": 36, "completion_tokens": 16}
_MESSAGE: dict[str, object] = {
    "role": "assistant",
    "content": "The answer is what it always is here: sixteen tokens about nothing at all.",
    "refusal": None,
    "annotations": None,
    "audio": None,
    "function_call": None,
    "tool_calls": [],
    "reasoning": None,
}
_CHOICE = {
    "index": 0,
    "message": _MESSAGE,
    "logprobs": None,
    "finish_reason": "stop",
    "stop_reason": None,
    "token_ids": None,
}
_ANSWER = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": MODEL,
    "choices": [_CHOICE],
    "service_tier": None,
    "system_fingerprint": None,
    "usage": _USAGE,
    "prompt_logprobs": None,
    "prompt_token_ids": None,
    "kv_transfer_params": None,
}


_REFUSAL = {"error": {"message": "asked to refuse", "type": "BadRequestError", "code": 400}}


def _response(body: bytes, kind: bytes = b"application/json", status: int = 200) -> bytes:
    head = b"HTTP/1.1 %d -\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


def reply(size: int, status: int) -> bytes:
    """The one response to all requests, its body filled up to `size` bytes."""
    if status != _OK:
        return _response(orjson.dumps(_REFUSAL), status=status)
    body = orjson.dumps(_ANSWER)
    filled = orjson.dumps(_ANSWER | {"system_fingerprint": "x" * max(0, size - len(body))})
    return _response(filled if size else body)


_OK = 200
_MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 32768}]}
_PAGES = {
    b"/health": _response(b""),
    b"/version": _response(orjson.dumps({"version": "0.0.standin"})),
    b"/v1/models": _response(orjson.dumps(_MODELS)),
}
_METRICS = (
    "vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\n"
    "vllm:kv_cache_usage_perc 0\nvllm:num_preemptions_total 0\n"
    "vllm:prompt_tokens_total {tokens}\nvllm:generation_tokens_total {tokens}\n"
)


class Server(asyncio.Protocol):
    """One connection."""

    running = 0
    tokens = 0

    def __init__(self, reply: bytes, latency_s: float) -> None:
        """Answer each request with `reply` after so many seconds."""
        self._reply_bytes, self._latency_s = reply, latency_s
        self._data = bytearray()
        self._wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - for the type
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._data += data
        if len(self._data) < self._wanted:  # the rest of a long body is on its way
            return
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[:end])
            at = head.lower().find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            self._wanted = end + 4 + length
            if len(self._data) < self._wanted:
                return
            del self._data[: self._wanted]
            self._wanted = 0
            self._answer(head.split(b" ", 2))

    def _answer(self, words: list[bytes]) -> None:
        if words[0] == b"GET":
            self._transport.write(self._page(words[1]))
            return
        cls = type(self)
        cls.tokens += 16
        if not self._latency_s:
            self._transport.write(self._reply_bytes)
            return
        cls.running += 1
        asyncio.get_running_loop().call_later(self._latency_s, self._reply)

    def _reply(self) -> None:
        type(self).running -= 1
        if not self._transport.is_closing():
            self._transport.write(self._reply_bytes)

    def _page(self, path: bytes) -> bytes:
        if path == b"/metrics":
            text = _METRICS.format(running=self.running, tokens=self.tokens)
            return _response(text.encode(), b"text/plain")
        return _PAGES.get(path, _PAGES[b"/health"])


async def serve(socket: str, response: bytes, latency_s: float) -> None:
    """Listen until SIGTERM; answer each request with the same response."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await loop.create_unix_server(lambda: Server(response, latency_s), socket, backlog=4096)
    print("listening", flush=True)
    await stop.wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--bytes", type=int, default=0, help="of each answer's body")
    parser.add_argument("--status", type=int, default=_OK, help="of each answer")
    chosen = parser.parse_args()
    response = reply(chosen.bytes, chosen.status)
    asyncio.run(serve(chosen.socket, response, chosen.latency))


if __name__ == "__main__":
    main()

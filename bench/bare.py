"""The bare client: the requests of a file through a plain aiohttp loop that writes nothing.

Purpose: the least that driving a server over HTTP costs in Python, to compare with.
Invariants: bodies are made before the clock starts and answers are read after it has
stopped; nothing is retried, checked or kept.

    python -m bench.bare --address unix:/path --file job.jsonl [--width 128] [--uvloop]
"""

import argparse
import asyncio
import time
from pathlib import Path

import aiohttp
import orjson
import uvloop


async def drive(
    address: str, requests: list[tuple[str, bytes]], width: int
) -> tuple[list[bytes], float, float]:
    """Send all requests, `width` at a time; return the answers, seconds and CPU seconds."""
    base, connector = _connector(address)
    answers: list[bytes] = []
    waiting = iter(requests)
    timeout = aiohttp.ClientTimeout(total=None)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def work() -> None:
            for url, body in waiting:
                async with session.post(base + url, data=body, headers=headers) as response:
                    answers.append(await response.read())
                    response.raise_for_status()

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(width)))
        return answers, time.perf_counter() - began, time.process_time() - cpu


def _connector(address: str) -> tuple[str, aiohttp.BaseConnector]:
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        return "http://localhost", aiohttp.UnixConnector(path, limit=0)
    return address, aiohttp.TCPConnector(limit=0)


def load(path: Path, model: str | None) -> list[tuple[str, bytes]]:
    """The URL and body of each line."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        if line.strip():
            document = orjson.loads(line)
            body = document["body"] | ({"model": model} if model else {})
            found.append((document["url"], orjson.dumps(body)))
    return found


def main() -> None:
    """Drive once and print what it took as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--model")
    parser.add_argument("--uvloop", action="store_true", help="instead of asyncio's own loop")
    chosen = parser.parse_args()
    requests = load(chosen.file, chosen.model)
    run = uvloop.run if chosen.uvloop else asyncio.run
    answers, seconds, cpu_s = run(drive(chosen.address, requests, chosen.width))
    usage = [orjson.loads(answer).get("usage") or {} for answer in answers]
    taken = {
        "requests": len(answers),
        "seconds": seconds,
        "cpu_s": cpu_s,
        "input_tokens": sum(each.get("prompt_tokens", 0) for each in usage),
        "output_tokens": sum(each.get("completion_tokens", 0) for each in usage),
    }
    print(orjson.dumps(taken).decode(), flush=True)


if __name__ == "__main__":
    main()

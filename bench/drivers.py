"""vLLM's own ways to run a batch, as processes that are watched from outside.

Purpose: `vllm run-batch` and offline `LLM.chat`: start them, take the time of the work
without that of the model's start, and end every process of theirs.
Invariants: the card is free again when a function returns; what they print is kept for
the case that they fail.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import orjson

from bench.models import Model
from bench.processes import CHECKOUT, Json, bound_to_us, environment

# What run-batch says when its engine is up and it begins with the file; vLLM 0.26, run as
# a module, shows no more than its bar.
_READING = "Reading batch from", "Running batch:"
_LOOK_S = 0.02
_PATIENCE_S = 1800.0
_END_S = 60.0
_MARK = "BENCH "


@dataclass
class Watched:
    """A running process: its lines, each with the moment at which it came."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)

    def read(self, stream: IO[str]) -> None:
        """Take its lines as they come, in a thread."""
        for line in stream:
            self.lines.append((time.perf_counter(), line.rstrip()))

    def said(self, *words: str) -> float | None:
        """When it first said one of some things."""
        lines = list(self.lines)
        return next((at for at, line in lines if any(each in line for each in words)), None)

    @property
    def end(self) -> str:
        """Its newest lines."""
        return "\n".join(line for _, line in self.lines[-40:])


@contextmanager
def watched(module: str, words: list[str], env: dict[str, str]) -> Iterator[Watched]:
    """Run a module in a session of its own; all of that ends with the block."""
    process = subprocess.Popen(
        bound_to_us(sys.executable, "-m", module, *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(PYTHONUNBUFFERED="1", VLLM_HOST_IP="127.0.0.1", **env),
        cwd=CHECKOUT,
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - for the type
    made = Watched(process)
    reader = threading.Thread(target=made.read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        yield made
    finally:
        # vLLM's own processes outlive the one that started them, but not its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5)


def offline(
    model: Model, plan: dict[str, tuple[Path, int]], warm: Path
) -> tuple[float, list[Json]]:
    """Run sets through one `LLM`; return its start's seconds and a figure for each way.

    Raises RuntimeError: it failed.
    """
    files = {way: [str(path), chunk] for way, (path, chunk) in plan.items()}
    words = ["--plan", json.dumps(files), "--warm", str(warm), "--", *model.words]
    with watched("bench.offline", words, model.env) as run:
        code = _wait(run)
        marked = [line.partition(_MARK)[2] for _, line in run.lines if line.startswith(_MARK)]
    found = [json.loads(line) for line in marked]
    if code or len(found) != len(plan) + 1:
        msg = f"offline vLLM ended with status {code}:\n{run.end}"
        raise RuntimeError(msg)
    return found[0]["start_s"], found[1:]


def run_batch(model: Model, path: Path, output: Path) -> tuple[float, Json]:
    """Run a set through `vllm run-batch`; return its start's seconds and the figures.

    The clock runs from the moment that it opens the file to its last line of output.
    Raises RuntimeError: it failed, or not all lines are results.
    """
    words = ["-i", str(path), "-o", str(output), *model.words]
    wanted = path.read_bytes().count(b"\n")
    began = time.perf_counter()
    with watched("vllm.entrypoints.openai.run_batch", words, model.env) as run:
        while _lines(output) < wanted and run.process.poll() is None:
            time.sleep(_LOOK_S)
        ended = time.perf_counter()
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(_END_S)
        reading = run.said(*_READING)
    if reading is None or _lines(output) < wanted:
        msg = f"run-batch ended with status {run.process.returncode}:\n{run.end}"
        raise RuntimeError(msg)
    return reading - began, counted(output, ended - reading)


def counted(output: Path, seconds: float) -> Json:
    """Requests and tokens of a file of output lines.

    Raises RuntimeError: a line is no result.
    """
    figures: Json = {"requests": 0, "seconds": seconds, "input_tokens": 0, "output_tokens": 0}
    for line in output.read_bytes().splitlines():
        response = orjson.loads(line)["response"]
        if response is None or response["status_code"] != 200:  # noqa: PLR2004 - HTTP's OK
            msg = f"a request failed: {line[:500]!r}"
            raise RuntimeError(msg)
        usage = response["body"]["usage"]
        figures["requests"] += 1
        figures["input_tokens"] += usage["prompt_tokens"]
        figures["output_tokens"] += usage["completion_tokens"]
    return figures


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n") if path.stat().st_size else 0
    except FileNotFoundError:
        return 0


def _wait(run: Watched) -> int:
    try:
        return run.process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        msg = f"it did not end within {_PATIENCE_S:g} s:\n{run.end}"
        raise RuntimeError(msg) from None

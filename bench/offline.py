"""Offline vLLM: one process, one `LLM`, and some sets of requests through `LLM.chat`.

Purpose: the ways to drive vLLM that need no server: a whole set in one call, or chunks
with a barrier after each.
Invariant: the model is started once, warmed, and each way gets a set of its own.

    python -m bench.offline --plan '{"whole": ["a.jsonl", 0]}' --warm w.jsonl -- VLLM FLAGS
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

# What a chat's body may set of vLLM's SamplingParams, by the same names.
_SAMPLING = (
    *("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *("ignore_eos", "n", "presence_penalty", "frequency_penalty", "repetition_penalty"),
)


def load(words: list[str]) -> Any:  # noqa: ANN401 - vLLM's LLM, which is not always installed
    """Start vLLM with the flags of its command line."""
    from vllm import LLM  # noqa: PLC0415 - only this process has to pay for it
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    flags = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(words)
    engine = EngineArgs.from_cli_args(flags)
    engine.disable_log_stats = True  # as LLM(...) has it
    return LLM.from_engine_args(engine)


def read(path: Path, llm: Any) -> tuple[list[Any], list[Any]]:  # noqa: ANN401 - vLLM's LLM
    """The conversations of a file, and how each is to be sampled."""
    conversations, sampling = [], []
    for line in path.read_bytes().splitlines():
        body = json.loads(line)["body"]
        params = llm.get_default_sampling_params()
        for name in _SAMPLING:
            if body.get(name) is not None:
                setattr(params, name, body[name])
        conversations.append(body["messages"])
        sampling.append(params)
    return conversations, sampling


def chat(llm: Any, path: Path, chunk: int) -> dict[str, float]:  # noqa: ANN401 - vLLM's LLM
    """Run a set in chunks of so many, 0 being all at once, and count."""
    conversations, sampling = read(path, llm)
    size = chunk or len(conversations)
    done = []
    began = time.perf_counter()
    for start in range(0, len(conversations), size):
        part = slice(start, start + size)
        done += llm.chat(conversations[part], sampling[part], use_tqdm=False)
    seconds = time.perf_counter() - began
    return {
        "requests": len(done),
        "seconds": seconds,
        "input_tokens": sum(len(each.prompt_token_ids) for each in done),
        "output_tokens": sum(len(out.token_ids) for each in done for out in each.outputs),
    }


def main() -> None:
    """Start, warm, run the plan, and print one line of JSON for each way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", type=json.loads, required=True, help="way: [file, chunk]")
    parser.add_argument("--warm", type=Path, required=True)
    parser.add_argument("words", nargs="+")
    chosen = parser.parse_args()
    began = time.perf_counter()
    llm = load(chosen.words)
    print(f"BENCH {json.dumps({'start_s': time.perf_counter() - began})}", flush=True)
    chat(llm, chosen.warm, 0)
    for way, (file, chunk) in chosen.plan.items():
        print(f"BENCH {json.dumps({'way': way} | chat(llm, Path(file), chunk))}", flush=True)


if __name__ == "__main__":
    main()

"""The engine's own figures, out of the text that its /metrics answers with.

Purpose: four or five of vLLM's gauges and counters as one `Load`.
Invariants: pure; text that is not understood gives None for the figure, never an error.
Known limit: a server that is not vLLM and has no metrics of vLLM's names tells nothing.
Source: vLLM's metric names; `gpu_cache_usage_perc` is what releases before 0.11 call
`kv_cache_usage_perc`.
"""

import math
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from inbox_daemon.engine.base import Load

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_KV_USE = "vllm:kv_cache_usage_perc"
_KV_USE_OLD = "vllm:gpu_cache_usage_perc"
_PREEMPTIONS = "vllm:num_preemptions_total"
_PROMPT_TOKENS = "vllm:prompt_tokens_total"
_GENERATED_TOKENS = "vllm:generation_tokens_total"
# Past this a float no longer counts by ones.
_MAX_COUNT = 2**53
_WANTED = (
    _RUNNING,
    _WAITING,
    _KV_USE,
    _KV_USE_OLD,
    _PREEMPTIONS,
    _PROMPT_TOKENS,
    _GENERATED_TOKENS,
)


def parse_load(text: str) -> Load:
    """Pick the figures out of an exposition; counts are summed over engines, shares the highest.

    vLLM's page has some thousand lines, so the wanted ones are picked before parsing.
    """
    picked = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    values = defaultdict(list)
    try:
        for family in text_string_to_metric_families(picked + "\n"):
            for sample in family.samples:
                values[sample.name].append(sample.value)
    except ValueError:
        return Load()
    kv_use = values.get(_KV_USE) or values.get(_KV_USE_OLD)
    highest = max(kv_use) if kv_use else math.nan
    return Load(
        running=_total(values.get(_RUNNING)),
        waiting=_total(values.get(_WAITING)),
        kv_cache_use=highest if 0 <= highest <= 1 else None,
        preemptions=_total(values.get(_PREEMPTIONS)),
        tokens=_total(values.get(_PROMPT_TOKENS, []) + values.get(_GENERATED_TOKENS, [])),
    )


def _total(values: list[float] | None) -> int | None:
    total = sum(values) if values else math.nan
    return int(total) if 0 <= total <= _MAX_COUNT else None

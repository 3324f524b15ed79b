"""What an operator has to do, read from the last lines of a server that failed.

Purpose: one clear sentence instead of a traceback.
Invariants: pure; lines that no pattern knows still give a sentence, with the most
telling line.  The causes are searched in the order of the table, the newest line first.
Source: texts of vLLM 0.26 to 0.33, transformers, huggingface_hub and PyTorch.
Known limit: these words change between releases; an unknown text falls to the last
line that looks like an exception.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple


class Program(NamedTuple):
    """What failed, and where its options are set, in the words of the advice."""

    name: str
    options: str


VLLM = Program("vLLM", "[engine] args")
OWN_COMMAND = Program("the program of [engine] command", "[engine] command")


class _Cause:
    """A piece of advice, and the texts that call for it.

    `own` is the advice where the operator's own command runs; None: the same.
    """

    def __init__(self, advice: str, *patterns: str, own: str | None = None) -> None:
        self.advice = {VLLM: advice, OWN_COMMAND: advice if own is None else own}
        self.pattern = re.compile("|".join(patterns))


_CAUSES = (
    _Cause(
        "vLLM is not installed in this environment; `pip install inbox-daemon[gpu]` installs it,"
        " or set [engine] command or [endpoint] url",
        r"No module named '?vllm\b",
        own="the program of [engine] command finds no vLLM; install it where that program runs",
    ),
    _Cause(
        "this build of vLLM has no `vllm serve`; set VLLM_USE_RUST_FRONTEND to 0 in [engine.env]",
        r"No package metadata was found for vllm",
        own="the program of [engine] command finds no whole vLLM; install it again",
    ),
    _Cause(
        "the GPU is too small or too full; lower --gpu-memory-utilization or --max-model-len in"
        " {options}, take a smaller model, or free the GPU",
        r"CUDA out of memory",
        r"OutOfMemoryError",
        r"CUDA error: out of memory",
    ),
    _Cause(
        "there is less free memory than vLLM was set to take; free some of it or lower"
        " --gpu-memory-utilization in {options}",
        r"Free memory on device",
        r"[Ff]ree memory .* is less than desired",
        r"Available memory on node .* is less than desired",
        own="there is less free memory than the server was set to take; free some of it or set"
        " less in [engine] command",
    ),
    _Cause(
        "the model leaves no memory for the KV cache; raise --gpu-memory-utilization in"
        " {options}, or take a smaller model",
        r"No available memory for the cache blocks",
    ),
    _Cause(
        "the KV cache cannot hold one request of the model's full length; lower --max-model-len"
        " or raise --gpu-memory-utilization in {options}",
        r"max seq len .* larger than",
        r"larger than the available KV cache",
        r"larger than the maximum number of tokens that can be stored in KV cache",
    ),
    _Cause(
        "the model is not on this machine and the hub cannot be reached; set [engine] model to"
        " the folder of a downloaded model",
        r"LocalEntryNotFoundError",
        r"OfflineModeIsEnabled",
        r"outgoing traffic has been disabled",
        r"couldn't connect to 'https://",
        r"Cannot reach .*offline mode",
    ),
    _Cause(
        "the model was not found; [engine] model is neither a model's folder nor a name on the hub",
        r"is not a local folder and is not a valid model identifier",
        r"RepositoryNotFoundError",
        r"Repository Not Found for url",
        r"Repo id must",
        r"Invalid repository ID or local directory",
    ),
    _Cause(
        "the hub does not give this model to this account; set HF_TOKEN in [engine.env]",
        r"GatedRepoError",
        r"Access to model .* is restricted",
        r"401 Client Error",
    ),
    _Cause(
        "the model's folder holds no usable config.json; check [engine] model",
        r"No such file or directory: .*config\.json",
        r"does not appear to have a file named config\.json",
        r"Unrecognized model in",
        r"Can't load the configuration of",
    ),
    _Cause(
        "the model's folder holds no weights; download it again",
        r"Cannot find any model weights",
        r"does not appear to have files? named .*(?:safetensors|\.bin)",
    ),
    _Cause(
        "this vLLM does not know the model's architecture; install a newer vLLM",
        r"Model architectures .* (?:are not supported|failed to be inspected)",
        r"does not recognize this architecture",
        own="the server does not know the model's architecture; install a newer one",
    ),
    _Cause(
        "{name} does not accept an option; check {options}",
        r"error: unrecognized arguments",
        r"error: argument ",
        r"error: the following arguments are required",
        r"error: ambiguous option",
    ),
    _Cause(
        "no usable GPU was found; check the driver with nvidia-smi, or install the CPU build with"
        " `pip install inbox-daemon[cpu]`",
        r"No CUDA GPUs are available",
        r"Failed to infer device type",
        r"CUDA driver version is insufficient",
        r"NVIDIA driver on your system is too old",
        r"Found no NVIDIA driver",
        own="no usable GPU was found; check the driver with nvidia-smi",
    ),
    _Cause("the disk is full", r"No space left on device"),
)
# Only where the operator's own command runs: vLLM prints such lines of other programs.
_OWN_CAUSES = (
    _Cause("[engine] command names a program that does not exist", r": command not found$"),
    _Cause("the program of [engine] command cannot be run", r": cannot be started: "),
)
_EXCEPTION = re.compile(
    r"(?:^|[\s.(])\w*(?:Error|Exception|Interrupt)\b(?::|$)|\berror: |died unexpectedly"
)
# These follow most failures of vLLM and say nothing of the cause.
_ECHO = re.compile(
    r"Engine core initialization failed|See root cause|EngineDeadError"
    r"|WorkerProc initialization failed|See stack trace"
)
# What a server says in good health, and when it is being ended, whatever the reason.
_CHATTER = re.compile(
    r"\b(?:INFO|DEBUG)\b|resource_tracker|warnings\.warn"
    r"|\[shutdown\]|[Ss]hut(?:ting)? ?down|Finished server process"
)
# What vLLM's logging puts before a line: the process, then level, time and source.
_PREFIX = re.compile(r"^\(\w+[^)]* pid=\d+\) *(?:[A-Z]+ [\d-]+ [\d:.,]+ \[[^\]]+\] *)?")
_MAX_QUOTE = 400


def known_cause(lines: Sequence[str], program: Program = VLLM) -> str | None:
    """Return the advice for the first cause of the table that a line shows, with that line."""
    for cause in (*_CAUSES, *(_OWN_CAUSES if program == OWN_COMMAND else ())):
        for line in reversed(lines):
            if cause.pattern.search(line):
                advice = cause.advice[program].format(**program._asdict())
                return f"{advice} ({_quote(line)})"
    return None


def tells(line: str) -> bool:
    """Return whether a line is worth keeping when many others come after it."""
    return bool(_EXCEPTION.search(line)) or any(
        cause.pattern.search(line) for cause in (*_CAUSES, *_OWN_CAUSES)
    )


def explain(what: str, lines: Sequence[str], program: Program) -> str:
    """Return the operator's sentence: `what` happened, and why as far as the lines tell."""
    cause = known_cause(lines, program)
    if cause:
        return f"{what}: {cause}"
    line = telling_line(lines)
    return f"{what}; it printed: {_quote(line)}" if line else what


def telling_line(lines: Sequence[str]) -> str | None:
    """Return the newest line that looks like an exception's, else the newest that is no chatter."""
    exceptions = [line for line in lines if _EXCEPTION.search(line)]
    causes = [line for line in exceptions if not _ECHO.search(line)]
    others = [line for line in lines if not _CHATTER.search(line)]
    for candidates in (causes, exceptions, others):
        if candidates:
            return candidates[-1]
    return None


def _quote(line: str) -> str:
    return _PREFIX.sub("", line).strip()[:_MAX_QUOTE]

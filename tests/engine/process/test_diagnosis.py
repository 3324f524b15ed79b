"""The advice for an operator, for texts that servers really end with."""

import pytest

from inbox_daemon.engine.process.diagnosis import (
    OWN_COMMAND,
    VLLM,
    explain,
    known_cause,
    telling_line,
    tells,
)

# Each as it was printed by vLLM 0.32 on a machine without a GPU, cut on the right.
SEEN = {
    "`pip install inbox-daemon[gpu]`": (
        "/usr/bin/python3: Error while finding module specification for"
        " 'vllm.entrypoints.openai.api_server' (ModuleNotFoundError: No module named 'vllm')"
    ),
    "the model was not found": (
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or"
        " 'namespace/repo_name': '/nonexistent/model'. Use `repo_type` argument if needed."
    ),
    "neither a model's folder nor a name on the hub": (
        "  Value error, Invalid repository ID or local directory specified: '/models/empty'."
    ),
    "the hub cannot be reached": (
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached"
        " snapshot folder for the specified revision on the local disk and outgoing traffic has"
        " been disabled."
    ),
    "install a newer vLLM": (
        "  Value error, The checkpoint you are trying to load has model type `foo` but"
        " Transformers does not recognize this architecture."
    ),
    "holds no weights": (
        "(Worker pid=22994) ERROR 11-23 11:46:31 [multiproc_executor.py:953] RuntimeError:"
        " Cannot find any model weights with `/models/noweights`"
    ),
    "check [engine] args": "api_server.py: error: unrecognized arguments: --no-such-option",
    "does not accept an option": (
        "api_server.py: error: argument --max-model-len: invalid human_readable_int_or_auto"
        " value: 'xyz'"
    ),
    "lower --max-model-len": (
        "(EngineCore pid=25687) ERROR 11-23 11:49:46 [core.py:1510] ValueError: To serve at least"
        " one request with the model's max seq len (60000), (2.58 GiB KV cache is needed, which"
        " is larger than the available KV cache memory (0.99 GiB)."
    ),
    "free some of it or lower --gpu-memory-utilization": (
        "(VllmWorker-0 pid=29009) ERROR 11-23 11:52:38 [multiproc_executor.py:953] ValueError:"
        " Available memory on node 0 (13.34/15.34 GiB) on startup is less than desired CPU memory"
        " utilization (0.99, 15.18 GiB)."
    ),
    "this build of vLLM has no `vllm serve`": (
        "importlib.metadata.PackageNotFoundError: No package metadata was found for vllm"
    ),
}
# As the sources of vLLM, transformers, huggingface_hub and PyTorch have them.
READ = {
    "than vLLM was set to take": (
        "ValueError: Free memory on device cuda:0 (3.1/23.99 GiB) on startup is less than desired"
        " GPU memory utilization (0.85, 20.39 GiB)."
    ),
    "leaves no memory for the KV cache": (
        "ValueError: No available memory for the cache blocks. Try increasing"
        " `gpu_memory_utilization` when initializing the engine."
    ),
    "the GPU is too small or too full": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total"
        " capacity of 7.78 GiB of which 1.2 GiB is free."
    ),
    "raise --gpu-memory-utilization": (
        "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens"
        " that can be stored in KV cache (5760)."
    ),
    "the model was not found": (
        "OSError: no-one/nothing is not a local folder and is not a valid model identifier listed"
        " on 'https://huggingface.co/models'"
    ),
    "not found": "401 Client Error. Repository Not Found for url: https://huggingface.co/api/x.",
    "set HF_TOKEN": "huggingface_hub.errors.GatedRepoError: 403 Client Error.",
    "no usable config.json": (
        "OSError: /models/m does not appear to have a file named config.json."
    ),
    "check the driver with nvidia-smi": "RuntimeError: No CUDA GPUs are available",
    "the disk is full": "OSError: [Errno 28] No space left on device",
    "names a program that does not exist": "llama-server: command not found",
    "cannot be run": "/models: cannot be started: Permission denied",
}
TRACEBACK = [
    "(Worker pid=7) ERROR 11-23 11:46:31 [multi.py:953] Traceback (most recent call last):",
    "(Worker pid=7) ERROR 11-23 11:46:31 [multi.py:953]     raise ValueError(",
    "(Worker pid=7) ERROR 11-23 11:46:31 [multi.py:953] ValueError: the root of it",
    "Exception: WorkerProc initialization failed. See stack trace for root cause.",
    "RuntimeError: Engine core initialization failed. See root cause above.",
    "resource_tracker: There appear to be 2 leaked shared_memory objects",
]


# What is advised only where the operator's own command runs.
OF_COMMANDS = {"names a program that does not exist", "cannot be run"}


@pytest.mark.parametrize(("advice", "line"), [*SEEN.items(), *READ.items()])
def test_a_known_text_gives_its_advice(advice: str, line: str) -> None:
    """Each known text is quoted, with advice on what to do."""
    program = OWN_COMMAND if advice in OF_COMMANDS else VLLM
    sentence = explain(
        "the engine ended (exit status 1)", ["INFO first", line, "INFO last"], program
    )
    assert sentence.startswith("the engine ended (exit status 1): ")
    assert advice in sentence
    assert line.rsplit("] ", maxsplit=1)[-1].strip()[:100] in sentence
    assert tells(line)


OPTION = "serve: error: unrecognized arguments: --frobnicate"


def test_an_option_error_is_blamed_on_the_program_that_was_started() -> None:
    """An option error of vLLM points at [engine] args, one of another command at that command."""
    ours = explain("the engine ended", [OPTION], VLLM)
    assert "vLLM does not accept an option; check [engine] args" in ours
    own = explain("the engine ended", [OPTION], OWN_COMMAND)
    assert "the program of [engine] command does not accept an option; check [engine]" in own
    assert "vLLM" not in own
    assert "[engine] args" not in own


@pytest.mark.parametrize("line", sorted({*SEEN.values(), *READ.values()}))
def test_advice_never_names_options_that_do_not_count(line: str) -> None:
    """Advice on the operator's own command never names args, which do not count for it."""
    assert "[engine] args" not in explain("it ended", [line], OWN_COMMAND)


@pytest.mark.parametrize(
    "line",
    [
        "ModuleNotFoundError: No module named 'vllm'",
        "importlib.metadata.PackageNotFoundError: No package metadata was found for vllm",
        "ValueError: Model architectures ['X'] are not supported for now.",
        "RuntimeError: No CUDA GPUs are available",
    ],
)
def test_an_own_command_gets_no_advice_on_installing_ours(line: str) -> None:
    """The advice names neither this package's extras nor the variables of its vLLM."""
    advice = explain("it ended", [line], OWN_COMMAND)
    assert "pip install inbox-daemon" not in advice
    assert "VLLM_USE_RUST_FRONTEND" not in advice
    assert "install a newer vLLM" not in advice


def test_a_program_that_vllm_misses_is_not_the_operators_command() -> None:
    """VLLM prints "command not found" of its helpers too, which is not about our command."""
    line = "/bin/sh: 1: ninja: command not found"
    assert "[engine] command names" not in explain("it ended", [line], VLLM)
    assert "[engine] command names" in explain("it ended", [line], OWN_COMMAND)


def test_an_unknown_error_is_quoted() -> None:
    """Of unknown lines, the newest exception that is no echo is quoted without its prefix."""
    assert (
        explain("it ended", TRACEBACK, VLLM) == "it ended; it printed: ValueError: the root of it"
    )


def test_an_echo_is_better_than_noise() -> None:
    """Where only the echo of an error is left, it is quoted rather than the last line."""
    assert telling_line(TRACEBACK[-2:]) == TRACEBACK[-2]


def test_without_an_error_the_last_line_is_quoted() -> None:
    """For a server that just ends the last line is quoted."""
    assert explain("it ended", ["one", "two"], VLLM) == "it ended; it printed: two"


def test_silence_adds_nothing() -> None:
    """A server that printed nothing is not quoted."""
    assert explain("it ended (killed by SIGKILL)", [], VLLM) == "it ended (killed by SIGKILL)"


def test_a_quote_is_bounded() -> None:
    """However long a line is, the sentence stays readable."""
    assert len(explain("it ended", ["ValueError: " + "x" * 10_000], VLLM)) < 500


@pytest.mark.parametrize(
    "line",
    [
        "INFO 11-23 11:46:05 [compilation.py:317] Enabled custom fusions",
        "WARNING [utils.py:255] This can cause fd limit errors like `OSError: [Errno 24]`",
        "    raise RuntimeError(",
        "",
    ],
)
def test_an_ordinary_line_tells_nothing(line: str) -> None:
    """Lines of a healthy start are neither kept longer nor taken for a cause."""
    assert not tells(line)
    assert known_cause([line]) is None

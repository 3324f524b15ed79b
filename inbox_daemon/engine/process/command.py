"""The command line and the environment of the engine, from the configuration.

Purpose: what is started, word by word: vLLM's server, or the operator's own command.
Invariants: pure but for a look at which files the installed vLLM has; vLLM is never
imported here; what the operator set is never overridden.
Known limit: vLLM's options are recognised by their long names and the short forms of
the parallel sizes.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from inbox_daemon.contract.config import Config, EngineConfig
from inbox_daemon.engine.process.child import Launch

RUST_VARIABLE = "VLLM_USE_RUST_FRONTEND"
# The rest of the card is the desktop's.
_GPU_SHARE = "0.85"
# These would let the child speak for the daemon, or find the daemon's own settings.
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID")
_OUR_PREFIX = "INBOX_DAEMON_"
_PARALLEL = frozenset(
    {
        *("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"),
        *("--data-parallel-size", "-dp"),
    }
)
# What makes a model answer something else than chats and completions, the only two
# that the Rust front end has served in every release.
_POOLING = frozenset({"--runner", "--convert", "--task"})


def custom_launch(config: EngineConfig, socket: Path, environ: Mapping[str, str]) -> Launch:
    """Build the operator's own command: `{socket}` and `{model}` are replaced in each word."""
    argv = tuple(
        word.replace("{socket}", str(socket)).replace("{model}", config.model)
        for word in config.command
    )
    return Launch(argv, _environment(environ, {"PYTHONUNBUFFERED": "1"}, config.env))


def vllm_launch(config: Config, socket: Path, environ: Mapping[str, str], *, rust: bool) -> Launch:
    """Build vLLM's command with the Rust or the Python front end."""
    given = _given(config.engine.args)
    defaults = {
        "PYTHONUNBUFFERED": "1",
        # It would ask a name server for its own address.
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Its inner sockets stay behind when it is killed, unless they lie in our folder.
        "VLLM_RPC_BASE_PATH": str(socket.parent),
        # A host that media may come from must not send the engine on to another.
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }
    if "CUDA_VISIBLE_DEVICES" not in environ and not given & _PARALLEL:
        # vLLM sees the card of `[gpu] index` alone, counted as NVML counts.
        defaults["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        defaults["CUDA_VISIBLE_DEVICES"] = str(config.gpu.index)
    if rust:
        defaults[RUST_VARIABLE] = "1"
    env = _environment(environ, defaults, config.engine.env)
    entry = _rust_entry if env.get(RUST_VARIABLE) == "1" else _python_entry
    options = ["--uds", str(socket)]
    if "--served-model-name" not in given:
        options += ["--served-model-name", config.engine.served_name]
    if "--gpu-memory-utilization" not in given:
        options += ["--gpu-memory-utilization", _GPU_SHARE]
    hosts = config.limits.body.media_domains
    if hosts and "--allowed-media-domains" not in given:
        options += ["--allowed-media-domains", *hosts]
    return Launch((*entry(config.engine), *options, *config.engine.args), env)


def chooses_rust(config: Config, environ: Mapping[str, str]) -> bool:
    """Return whether vLLM's Rust front end is to be tried.

    It is when the installed vLLM has it (the program vllm/vllm-rs, in vLLM's own wheels
    since 0.24) and neither the environment nor `[engine.env]` says anything about it.
    It answers up to a tenth faster, and it serves chats and completions in every
    release, other paths only in some; it also refuses some options.  So the caller must
    go back to the Python front end when a start with it fails or a path is missing.  Where
    media may be fetched the Python one serves, which is known to keep to the hosts.
    """
    if RUST_VARIABLE in environ or RUST_VARIABLE in config.engine.env:
        return False
    if _given(config.engine.args) & _POOLING or config.limits.body.media_domains:
        return False
    importlib.invalidate_caches()  # the daemon may be older than the installation
    spec = importlib.util.find_spec("vllm")
    folders = spec.submodule_search_locations if spec else None
    return any((Path(folder) / "vllm-rs").is_file() for folder in folders or ())


def _rust_entry(config: EngineConfig) -> tuple[str, ...]:
    """Only `vllm serve` reads the variable, and its script may be missing from PATH."""
    return (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", config.model)


def _python_entry(config: EngineConfig) -> tuple[str, ...]:
    """`vllm serve` fails where vLLM has no package metadata of that name, as CPU builds have."""
    words = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", config.model)
    # A line for each request, of which none would ever be read.
    return (*words, "--disable-uvicorn-access-log")


def _given(args: list[str]) -> set[str]:
    """The names of the options that are set; vLLM takes _ for - and `--name=value`."""
    names = (word.split("=")[0] for word in args if word.startswith("-"))
    return {name.replace("_", "-") for name in names}


def _environment(
    environ: Mapping[str, str], defaults: Mapping[str, str], wanted: Mapping[str, str]
) -> dict[str, str]:
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _OURS and not name.startswith(_OUR_PREFIX)
    }
    return {**defaults, **kept, **wanted}


def current_environment() -> Mapping[str, str]:
    """The daemon's own environment, on which the child's is built."""
    return os.environ

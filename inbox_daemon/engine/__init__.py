"""The engine: whatever answers requests, started and watched here, reached over HTTP.

Purpose: `open_engine` turns the configuration into an `Engine` (base.py), of one of
three kinds: vLLM as a child, the operator's own command as a child, or a server that
someone else runs.

    base.py        the seam: what the rest of the daemon knows of an engine
    supervisor.py  start, watch, notice a death, start again
    life.py        one engine's health, from outside
    server.py      the three kinds in one shape
    command.py     what is started, word by word
    child.py       one process: its start, its output, its end
    processes.py   all processes of an engine, also of an earlier daemon's
    runtime.py     the folder of its sockets
    launch.py      the program between fork and exec
    client.py      HTTP
    metrics.py     the engine's figures
    diagnosis.py   last lines to a sentence for the operator
"""

import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

from inbox_daemon.config import Config
from inbox_daemon.engine.base import Engine
from inbox_daemon.engine.command import (
    chooses_rust,
    current_environment,
    custom_launch,
    vllm_launch,
)
from inbox_daemon.engine.life import Timing
from inbox_daemon.engine.server import ChildServer, MissingServer, RemoteServer, Server
from inbox_daemon.engine.supervisor import Supervisor

RECORD_NAME = "engine.json"
# Each request in flight is a connection, and each connection a file here and there.
_OPEN_FILES = 65536
# Somebody else's server is not started by us: it is there or it is not, and asking
# again costs nothing.
_REMOTE_TIMING = Timing(start_timeout_s=10, start_poll_s=1, backoff_s=1, backoff_max_s=30)

__all__ = ["RECORD_NAME", "Timing", "open_engine"]


def open_engine(
    config: Config,
    state_dir: Path,
    *,
    on_change: Callable[[], None],
    timing: Timing | None = None,
) -> Engine:
    """Make the engine that the configuration asks for; `run` starts it.

    `[endpoint] url` comes before `[engine] command`, and that before `[engine] model`.
    `state_dir` holds the note of the running child; `on_change` is called in the event
    loop after each change of the engine's state.  A configuration that names no engine
    gives one that never becomes ready and says why.  The process's soft limit of open
    files is raised, as the usual 1,024 are fewer than the requests in flight.
    """
    _raise_file_limit()
    child_timing = Timing(start_timeout_s=config.engine.start_timeout_s)
    default = _REMOTE_TIMING if config.endpoint.url else child_timing
    server = _server(config, state_dir / RECORD_NAME)
    return Supervisor(server, timing or default, on_change)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _server(config: Config, record: Path) -> Server:
    environ = current_environment()
    if config.endpoint.url:
        return RemoteServer(config.endpoint.url)
    if config.engine.command:
        return ChildServer(
            lambda socket, _fast: custom_launch(config.engine, socket, environ),
            record,
            has_fast_form=lambda: False,
        )
    if config.engine.model:
        return ChildServer(
            lambda socket, fast: vllm_launch(config, socket, environ, rust=fast),
            record,
            has_fast_form=partial(chooses_rust, config, environ),
        )
    return MissingServer()

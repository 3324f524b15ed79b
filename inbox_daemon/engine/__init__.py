"""Whatever answers requests: the seam, supervision, health, load and window.

Touches the network and, in process/, processes; knows nothing of jobs, lines or the spool.
May import: contract.

    base.py        the seam: what the rest of the daemon knows of an engine
    supervisor.py  starts an engine, watches it, notices its death, restarts it
    client.py      HTTP
    health.py      one engine's health, from outside
    load.py        the engine's own figures
    evidence.py    what replies prove: that a server answers, or that it is out
    window.py      how many requests are worth having in flight, by the engine's figures
    congestion.py  how many are, by the answers alone
    process/       a server of ours as processes
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from inbox_daemon.contract.config import Config
from inbox_daemon.engine.base import Engine, EngineKind
from inbox_daemon.engine.health import Timing
from inbox_daemon.engine.process.command import (
    chooses_rust,
    current_environment,
    custom_launch,
    vllm_launch,
)
from inbox_daemon.engine.process.servers import ChildServer, MissingServer, RemoteServer, Server
from inbox_daemon.engine.supervisor import Supervisor

RECORD_NAME = "engine.json"
# A server that is not started by us is there or it is not, and asking again costs nothing.
_REMOTE_TIMING = Timing(start_timeout_s=10, start_poll_s=1, backoff_s=1, backoff_max_s=60)

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
    gives one that never becomes ready and says why.
    """
    record, environ = state_dir / RECORD_NAME, current_environment()
    default = Timing(start_timeout_s=config.engine.start_timeout_s)
    server: Server = MissingServer()
    if config.endpoint.url:
        server, default = RemoteServer(config.endpoint.url), _REMOTE_TIMING
    elif config.engine.command:
        server = ChildServer(
            lambda socket, _fast: custom_launch(config.engine, socket, environ),
            record,
            EngineKind(owned=True),
            has_fast_form=lambda: False,
        )
    elif config.engine.model:
        server = ChildServer(
            lambda socket, fast: vllm_launch(config, socket, environ, rust=fast),
            record,
            EngineKind(owned=True, computes_here=True),
            has_fast_form=partial(chooses_rust, config, environ),
        )
    most = config.run.max_answer_bytes
    return Supervisor(server, timing or default, on_change, config.engine.served_name, most)

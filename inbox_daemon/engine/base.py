"""The seam between the daemon and whatever answers requests.

Purpose: the few things that the runner, the status and the command line may know
about an engine.  Invariant: nothing here knows of jobs, lines or the spool.
"""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol


class EngineState(StrEnum):
    """Where the engine is in its life, as the status document shows it."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"


class Reply(NamedTuple):
    """What came back for one request that the engine answered.

    `body` is exactly the bytes of the response; `request_id` is the server's
    `x-request-id` header, or the one that was sent with the request.  `retry_after_s` is
    what its Retry-After asks for, in seconds from the answer on; `early` says that the answer
    came well before the request's time was over.
    """

    status: int
    body: bytes
    request_id: str
    retry_after_s: float | None = None
    early: bool = True


class NoReplyKind(StrEnum):
    """Why a request got no reply."""

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class NoReply:
    """A request that got no reply: it timed out, the connection failed, or it is too large."""

    kind: NoReplyKind
    message: str


@dataclass(frozen=True, slots=True)
class Load:
    """The engine's own figures at one moment.

    `running` and `waiting` count requests, `kv_cache_use` is a share from 0 to 1,
    `preemptions` and `tokens` (read and generated) count since the engine started: with
    requests running and no new tokens, it hangs.  None: the server does not say.
    """

    running: int | None = None
    waiting: int | None = None
    kv_cache_use: float | None = None
    preemptions: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What the rest of the daemon may conclude from what the engine is.

    `owned`: its processes are ours, so what others use of the card can be told apart.
    `computes_here`: it is known to compute on this machine's card.
    """

    owned: bool = False
    computes_here: bool = False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the status document says of the engine.

    `restarts` counts starts after the first.  `generation` is raised by one each
    time that an engine which was ready is lost, so that a reply can be told from
    an answer of an earlier engine.  `last_error` is a sentence for the operator about the end
    of the last engine, kept while the next one runs; `last_lines` the newest lines that
    the server printed before it ended.  `retry_in_s` is the time left until the next
    start, in BACKOFF only.  `since` is the moment at which the state began, in
    seconds of the monotonic clock.
    `configured_model` is the name that the configuration gives its model, empty if none.
    `proven` is false of a server that others run, which is up by its own word but has not
    answered a request since it was last out: one at a time is sent until it does.
    """

    state: EngineState
    generation: int = 0
    restarts: int = 0
    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    version: str | None = None
    pids: tuple[int, ...] = ()
    last_error: str | None = None
    last_lines: tuple[str, ...] = ()
    retry_in_s: float | None = None
    since: float = 0.0
    configured_model: str = ""
    proven: bool = True
    load: Load = field(default_factory=Load)

    @property
    def default_model(self) -> str | None:
        """The model of requests that name none; None while it is not known."""
        return self.configured_model or (self.models[0] if self.models else None)

    @property
    def known_models(self) -> frozenset[str]:
        """The names that requests may use; empty while they are not known."""
        return frozenset(filter(None, (self.configured_model, *self.models)))

    def serves(self, model: str | None) -> bool:
        """Return whether requests may use that name, as far as is known; None is any model."""
        if model is None or model == self.configured_model or model in self.models:
            return True
        return not (self.configured_model or self.models)


class Room(Protocol):
    """The memory that one request may take for its answer."""

    def take(self, count: int) -> Awaitable[None] | None:
        """Take room for `count` bytes more of the answer.

        None: there is room.  Else what comes back is to be awaited before more is read; that
        may take as long as a full disk does.  The request's body must be let go before.
        """


class Engine(Protocol):
    """One engine: a child process of ours, or a server that someone else runs."""

    @property
    def kind(self) -> EngineKind:
        """What it is; the same from the start to the end."""

    @property
    def info(self) -> EngineInfo:
        """The newest known facts; cheap, never blocks."""

    def pids(self) -> tuple[int, ...]:
        """Its processes, as far as they are ours, also while it loads; use a thread."""

    async def run(self) -> None:
        """Keep the engine up until cancelled, then stop it.

        Starts it, waits until it is ready, watches it, and starts it again with
        backoff after it was lost.  Never raises for an engine that fails.
        """

    async def wait_ready(self) -> None:
        """Return as soon as the engine is ready; at once if it is."""

    async def send(
        self, url: str, body: bytes, request_id: str, timeout_s: float, room: Room
    ) -> Reply | NoReply:
        """Send one request's JSON body to `url` (a path such as /v1/completions).

        The answer is read as there is `room` for it; what it waits for that is no part of
        `timeout_s`.
        """

    async def lost(self, generation: int) -> bool:
        """Return whether the engine of that generation is dead, after a failure.

        Called when a reply or a fault suggests it: True once the engine is known
        to be lost, False once it has been seen healthy after the call, or connects but
        is too busy to say how it is.
        Takes a few seconds at most; concurrent calls share one probe.
        """

    async def accepts_us(self) -> bool:
        """Return whether the server answers a question that is no request, as for its models."""

    async def refresh_load(self) -> None:
        """Read its figures now, as after the last answer; without effect where it has none."""

    async def restart(self, reason: str) -> None:
        """Kill the engine, as after a hang: it counts as a death."""

    def kill(self) -> None:
        """Kill a child at once, with all its processes; for a forced exit."""

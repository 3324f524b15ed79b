"""The three things that can answer: our vLLM, our own command, a remote server.

Purpose: one shape for them, so that the supervisor knows no difference.
Invariants: a server that was started is stopped before it is started again; the
socket lies in a folder that no other user can enter.
Known limit: a remote server cannot be started or stopped from here; it counts
as started when its address is known and never ends by itself.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from inbox_daemon.contract.config import without_password
from inbox_daemon.engine.base import EngineKind
from inbox_daemon.engine.process.child import Child, Launch
from inbox_daemon.engine.process.diagnosis import OWN_COMMAND, VLLM, explain, known_cause
from inbox_daemon.engine.process.session import (
    SOCKET_NAME,
    make_folder,
    reap_orphans,
    remove_folder,
)

_UNCONFIGURED = (
    "no engine is configured; set [engine] model to a model's folder or hub name,"
    " or [engine] command, or [endpoint] url, in the configuration, and restart the daemon"
)


class Server:
    """Something that can be started, ends, and is stopped.

    What is not overridden does nothing, as for a server of which nothing is ours.
    """

    kind = EngineKind()

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes, as far as they are ours."""
        return ()

    @property
    def lines(self) -> tuple[str, ...]:
        """What it printed last."""
        return ()

    @property
    def has_substitute(self) -> bool:
        """Whether it runs in a form that `substitute` can replace by a safer one."""
        return False

    def substitute(self) -> None:
        """Take the safer form from the next start on."""

    def start_differently(self) -> bool:
        """Return, after a failed start, whether the next one is worth trying at once."""
        return False

    async def prepare(self) -> None:
        """Clear away what an earlier daemon left; once, before the first start."""

    async def start(self) -> str:
        """Start it and return its address; raises OSError when it cannot be tried."""
        raise NotImplementedError

    async def ended(self) -> str:
        """Return in words how it ended, once it did; never where only answers show that."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    async def stop(self, grace_s: float) -> None:
        """Stop it, if it is ours; it gets `grace_s` seconds to leave by itself."""

    def kill(self) -> None:
        """Kill it, if it is ours, without waiting for its end."""

    def not_ready(self, timeout_s: float, why: str) -> str:
        """Return the sentence for a start that took longer than it may."""
        return f"the engine was not ready within {timeout_s:g} s ({why})"

    def explain(self, what: str) -> str:
        """Return the operator's sentence from what happened and what it printed."""
        return what


class ChildServer(Server):
    """A child process that listens on a socket of ours.

    `launch` makes the command: it is given the socket and whether to take the form
    that is faster but cannot do everything.
    """

    def __init__(
        self,
        launch: Callable[[Path, bool], Launch],
        record: Path,
        kind: EngineKind,
        *,
        has_fast_form: Callable[[], bool],
    ) -> None:
        """Note the running child in `record`; `has_fast_form` is asked before each start."""
        self.kind = kind
        self._launch = launch
        self._record = record
        self._has_fast_form = has_fast_form
        self._fast_allowed = True
        self._fast_runs = False
        self._folder: Path | None = None
        self._child: Child | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """All processes of the child's session; reads /proc, some milliseconds."""
        return self._child.pids() if self._child else ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The newest lines of the child that runs or ran last."""
        return self._child.lines if self._child else ()

    @property
    def has_substitute(self) -> bool:
        """Whether the child was started in the faster form."""
        return self._fast_runs

    def substitute(self) -> None:
        """Never take the faster form again."""
        self._fast_allowed = False

    def start_differently(self) -> bool:
        """Give up the faster form when it failed for an unknown reason."""
        different = self._fast_runs and known_cause(self.lines) is None
        if different:
            self.substitute()
        return different

    async def prepare(self) -> None:
        """End the processes of an engine that a killed daemon left behind."""
        await reap_orphans(self._record)

    async def start(self) -> str:
        """Start the child; the socket appears when it is ready to listen."""
        self._child = None
        self._folder = make_folder()
        socket = self._folder / SOCKET_NAME
        self._fast_runs = self._fast_allowed and self._has_fast_form()
        self._child = await Child.start(
            self._launch(socket, self._fast_runs), self._record, self._folder
        )
        return f"unix:{socket}"

    async def ended(self) -> str:
        """Wait for the end of the child's first process."""
        if self._child is None:
            return "the engine was not started"
        return f"the engine ended ({await self._child.wait()})"

    async def stop(self, grace_s: float) -> None:
        """End all processes of the child and remove its folder; its lines stay readable."""
        if self._child:
            await self._child.stop(grace_s)
        if self._folder:
            remove_folder(self._folder)
            self._folder = None

    def kill(self) -> None:
        """Kill all processes of the child."""
        if self._child:
            self._child.kill()

    def explain(self, what: str) -> str:
        """Read the child's last lines; only what is known to be vLLM is spoken of as such."""
        return explain(what, self.lines, VLLM if self.kind.computes_here else OWN_COMMAND)


class RemoteServer(Server):
    """A server that someone else runs."""

    def __init__(self, address: str) -> None:
        """Take the address as the configuration has it."""
        self._address = address

    async def start(self) -> str:
        """Return its address."""
        return self._address

    def not_ready(self, timeout_s: float, why: str) -> str:
        """Say what the attempts to reach it met."""
        return f"the server does not serve ({why}, for {timeout_s:g} s)"

    def explain(self, what: str) -> str:
        """Name the server, and what to do."""
        shown = without_password(self._address)
        return f"{what}: {shown}; start it there, or correct [endpoint] url"


class MissingServer(Server):
    """No server: the configuration names none."""

    async def start(self) -> str:
        """Raise OSError, always."""
        raise OSError(_UNCONFIGURED)

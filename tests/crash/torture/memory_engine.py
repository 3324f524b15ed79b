"""An engine in memory: the stand-in's faults without its process and its HTTP.

Purpose: let the real runner work at full speed inside one small process.
Invariants: the same texts ask for the same faults as with standin.py, as far as those
have a meaning without a connection; every execution is reported before it begins, so that
nothing runs unseen.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import orjson

from inbox_daemon.engine.base import (
    EngineInfo,
    EngineKind,
    EngineState,
    NoReply,
    NoReplyKind,
    Reply,
    Room,
)
from standin_answers import error, last_text
from standin_faults import find_faults

MODEL = "standin"
_DEATH = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class MemoryEngine:
    """Answers with an echo after `pace()` seconds; markers in the text ask for faults.

    `[[NNN]]`, `[[crash]]` and `[[slow=S]]`, each with xN where it is to pass.  `told` is
    called with the request's id and text before an execution begins.  `mark` is put into
    each answer.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        told: Callable[[str, str], None],
        pace: Callable[[], float],
        mark: object = None,
        restart_s: float = 0.003,
    ) -> None:
        """Be ready at once."""
        self._on_change, self._told, self._pace = on_change, told, pace
        self._mark, self._restart_s = mark, restart_s
        self.executions: Counter[str] = Counter()
        self._info = EngineInfo(EngineState.READY, models=(MODEL,))
        self._death = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    @property
    def kind(self) -> EngineKind:
        """A remote server, as far as anything follows from that."""
        return EngineKind()

    async def refresh_load(self) -> None:
        """It has no figures."""

    @property
    def info(self) -> EngineInfo:
        """The facts."""
        return self._info

    async def run(self) -> None:
        """Be there until cancelled."""
        await asyncio.Event().wait()

    def pids(self) -> tuple[int, ...]:
        """It has no process."""
        return ()

    async def wait_ready(self) -> None:
        """Return once it is ready."""
        while self._info.state is not EngineState.READY:
            await asyncio.sleep(self._restart_s)

    async def send(
        self, url: str, body: bytes, request_id: str, timeout_s: float, room: Room
    ) -> Reply | NoReply:
        """Execute one request."""
        if self._info.state is not EngineState.READY:
            return NoReply(NoReplyKind.CONNECTION, "the engine is gone")
        text = last_text(orjson.loads(body))
        self._told(request_id, text)
        self.executions[text] += 1
        faults = [f for f in find_faults(text) if f.hits(self.executions[text])]
        seconds = self._pace() + sum(fault.value for fault in faults if fault.name == "slow")
        if await self._dies_within(seconds):
            return Reply(500, error(500, _DEATH), request_id)
        if any(fault.name == "crash" for fault in faults):
            self.die()
            return Reply(500, error(500, _DEATH), request_id)
        status = next((fault.status for fault in faults if fault.status), None)
        if status is not None:
            return Reply(status, error(status, f"asked to answer {status}"), request_id)
        answer = {"echo": text, "mark": self._mark, "usage": {"prompt_tokens": 1}}
        return Reply(200, orjson.dumps(answer), request_id)

    async def _dies_within(self, seconds: float) -> bool:
        death = self._death
        if seconds <= 0:
            await asyncio.sleep(0)
            return death.is_set()
        try:
            await asyncio.wait_for(death.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def die(self) -> None:
        """Take all that is in flight down, and come back a little later."""
        if self._info.state is not EngineState.READY:
            return
        death, self._death = self._death, asyncio.Event()
        death.set()
        generation = self._info.generation + 1
        self._info = replace(self._info, state=EngineState.BACKOFF, generation=generation)
        self._on_change()
        asyncio.get_running_loop().call_later(self._restart_s, self._come_back)

    def die_now(self) -> None:
        """Die from outside of the loop; the next turn of it takes note."""
        self.loop.call_soon(self.die)

    def _come_back(self) -> None:
        restarts = self._info.restarts + 1
        self._info = replace(self._info, state=EngineState.READY, restarts=restarts)
        self._on_change()

    async def lost(self, generation: int) -> bool:
        """Return whether that engine is dead."""
        await asyncio.sleep(0)
        return generation != self._info.generation

    async def accepts_us(self) -> bool:
        """It does."""
        return True

    async def restart(self, reason: str) -> None:
        """Die."""
        self.die()

    def kill(self) -> None:
        """There is no process to kill."""

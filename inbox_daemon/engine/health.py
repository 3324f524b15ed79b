"""One engine from its start to its end, seen from outside.

Purpose: look at a server's /health and draw the conclusions: is it up, is it dead, is
it only busy.
Invariants: the first reason given for the end is the one that stays; a look never
raises.
Known limit: a server that answers /health but computes nothing looks alive.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from inbox_daemon.engine.base import Load, NoReply, Reply, Room
from inbox_daemon.engine.client import Client, ModelList, Probe
from inbox_daemon.engine.evidence import Evidence, Sign, sign_of

_SICK = "the engine says of itself that it cannot serve any more"
_GONE = "the engine does not answer any more"
_MAX_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the supervisor is; all in seconds but the counts of looks.

    After an engine that was lost under requests, or had shown that it works, the next one
    starts at once (`restart_s`): a death in the middle of work is the work's doing, and the
    bisection has patience of its own.  One that never became ready, or died idle soon after,
    is tried again after `backoff_s`, doubled each time up to `backoff_max_s`.
    The models of a ready engine are asked for each `models_s`, and after an answer that
    doubts them, at most each `models_gap_s`.
    """

    start_timeout_s: float = 900.0
    start_poll_s: float = 0.25
    poll_s: float = 0.5
    confirm_s: float = 1.0
    restart_s: float = 1.0
    backoff_s: float = 5.0
    backoff_max_s: float = 600.0
    # An engine that was ready this long has shown that it works.
    proven_s: float = 60.0
    models_s: float = 30.0
    models_gap_s: float = 1.0
    loss_grace_s: float = 1.0
    stop_grace_s: float = 5.0
    gone_looks: int = 3
    # A proxy may say so for a moment while it goes on answering.
    sick_looks: int = 3
    # Each takes the probe's 5 s: a server that is busy for a minute is not a dead one.
    slow_looks: int = 12


class StartedEngine:
    """A started engine.  `over` gets the reason of its end.

    `asked` says whether it was sent a request, `answered` whether it has answered one other
    than by an error of its own; `ready_at`, in monotonic seconds, is None until it is ready;
    `models_doubted` is set once an answer speaks of a model as unknown.
    """

    def __init__(
        self, client: Client, timing: Timing, *, substitutable: bool, share: float = 0.0
    ) -> None:
        """Watch the server behind `client`; `close` closes that too.

        `share` of the requests has failed before while others were answered.
        """
        self.client = client
        self.substitutable = substitutable
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.load = Load()
        self.evidence = Evidence(share)
        # Set with the next answer, and then replaced.
        self.answer = asyncio.Event()
        self.asked = self.answered = False
        self.ready_at: float | None = None
        self.models_doubted = asyncio.Event()
        self._timing = timing
        self._probe: asyncio.Task[str | None] | None = None
        self._reading = asyncio.Lock()

    async def post(
        self, url: str, body: bytes, request_id: str, timeout_s: float, room: Room | None = None
    ) -> tuple[Reply | NoReply, Sign]:
        """Send one request; return its reply, and what that says of the server."""
        self.asked = True
        self.evidence.sent(request_id, time.monotonic())
        sending = self.client.post(url, body, request_id, timeout_s, room)
        del body  # or it would be held until the answer is there
        try:
            reply = await sending
        except asyncio.CancelledError:
            self.evidence.dropped(request_id)
            raise
        sign = sign_of(reply)
        self.evidence.replied(request_id, sign, time.monotonic())
        if sign is Sign.ANSWER:
            self.answer.set()
            self.answer = asyncio.Event()
        return reply, sign

    async def answers(self, since: float) -> bool:
        """Wait for an answer to any request, or the engine's end; False if none comes in time.

        `since`, in seconds of the monotonic clock, is when the caller began to ask.
        """
        if self.evidence.answered_at >= since:
            return True
        answer: asyncio.Future[Any] = asyncio.ensure_future(self.answer.wait())
        either: set[asyncio.Future[Any]] = {answer, self.over}
        try:
            await asyncio.wait(
                either, timeout=self.evidence.patience_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            answer.cancel()
        return self.evidence.answered_at >= since

    async def close(self) -> None:
        """Break what is in flight."""
        if not self.over.done():
            self.over.cancel()
        await self.client.close()

    async def until_alive(self) -> str | None:
        """Wait for the server to be up; return what the last look met where it takes too long."""
        try:
            async with asyncio.timeout(self._timing.start_timeout_s):
                while await self.client.health() is not Probe.ALIVE:  # noqa: ASYNC110 - no event to wait for
                    await asyncio.sleep(self._timing.start_poll_s)
        except TimeoutError:
            return self.client.trouble or "it does not answer"
        return None

    async def watch(self) -> str:
        """Look again and again, and keep `load` fresh; returns why the engine is lost."""
        gone = slow = sick = 0
        looks = self._timing
        while gone < looks.gone_looks and slow < looks.slow_looks and sick < looks.sick_looks:
            began = time.monotonic()
            await asyncio.sleep(looks.poll_s)
            health = await self.client.health()
            # A request that was answered is a sign of life, but for a server that cannot be
            # connected to any more: connections that are kept go on for a while.
            answered = self.evidence.answered_at >= began
            gone = gone + 1 if health is Probe.GONE else 0
            slow = slow + 1 if health is Probe.SLOW and not answered else 0
            sick = sick + 1 if health is Probe.SICK and not answered else 0
            if health is Probe.ALIVE:
                await self.read_load()
        return _SICK if sick else self._gone()

    def _gone(self) -> str:
        return f"{_GONE} ({self.client.trouble})" if self.client.trouble else _GONE

    async def read_load(self) -> None:
        """Read the figures, one reading at a time, so that an older one is never the last."""
        async with self._reading:
            self.load = await self.client.load()

    async def follow_models(self) -> AsyncIterator[ModelList]:
        """Ask for the models again now and then; what could not be read is left out."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timing.models_s):
                    await self.models_doubted.wait()
            self.models_doubted.clear()
            models = await self.client.models()
            if models is not None:
                yield models
            await asyncio.sleep(self._timing.models_gap_s)

    async def examine(self) -> str | None:
        """Look closely, after a failure; returns why the engine is lost, or None.

        Concurrent calls share one examination; a call after its last look began gets a new
        one.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._look_twice())
        return await asyncio.shield(self._probe)

    async def _look_twice(self) -> str | None:
        """Look at once and `confirm_s` later, as a dying vLLM is healthy for a moment more.

        Two looks in a row must find nothing that listens, or that it says so itself, and no
        request be answered meanwhile, to call it dead.  One that is slow to answer is alive.
        """
        began, last = time.monotonic(), await self.client.health()
        for _ in range(_MAX_LOOKS):
            await asyncio.wait({self.over}, timeout=self._timing.confirm_s)
            if self.over.done():
                return _GONE
            self._probe = None
            before, last = last, await self.client.health()
            answered = self.evidence.answered_at >= began
            if last not in {Probe.GONE, Probe.SICK} or (last is Probe.SICK and answered):
                return None
            if before is last:
                return self._gone() if last is Probe.GONE else _SICK
        return None

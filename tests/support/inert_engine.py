"""An engine in memory that is there, lives and needs nothing, and a machine without a card."""

from collections.abc import Collection

from inbox_daemon.engine.base import EngineInfo, EngineKind, EngineState


class InertEngine:
    """All of an engine but `send`."""

    def __init__(self, model: str) -> None:
        """Be ready at once, with one model."""
        self.info = EngineInfo(EngineState.READY, models=(model,))

    @property
    def kind(self) -> EngineKind:
        """A remote server, as far as anything follows from that."""
        return EngineKind()

    async def refresh_load(self) -> None:
        """It has no figures."""

    async def run(self) -> None:
        """Nothing is to be kept up."""

    def pids(self) -> tuple[int, ...]:
        """It has no process."""
        return ()

    async def wait_ready(self) -> None:
        """It is ready."""

    async def lost(self, generation: int) -> bool:
        """It lives."""
        return False

    async def accepts_us(self) -> bool:
        """It does."""
        return True

    async def restart(self, reason: str) -> None:
        """It needs no restart."""

    def kill(self) -> None:
        """There is no process."""


class NoCard:
    """A machine that has no card."""

    def sample(self, our_pids: Collection[int]) -> None:
        """There is nothing to read."""

    def close(self) -> None:
        """There is no driver."""

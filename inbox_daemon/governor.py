"""The governor: how much may be in flight, and how much is admitted at a time.

Purpose: join the pure controllers of chunking.py and window.py with the newest readings of the
engine and the card into the two figures that the runner obeys.
Invariants: no I/O and no clock; a reading that is missing never stops the work; a card
that stops answering stops it only where the engine that we started computes on it.
Known limit: a card that has never answered since the daemon began stops nothing.  A driver
that cannot be asked is no card that cannot compute, and without one vLLM does not start.
"""

from inbox_daemon.chunking import OPEN, Allowance, ChunkSizer, Gate, ThermalGovernor
from inbox_daemon.config import Config
from inbox_daemon.engine.base import Load
from inbox_daemon.gpu import GpuSample
from inbox_daemon.window import WindowController

MIN_WINDOW = 8
MAX_WINDOW = 4096
_HEAT = frozenset({"hw_thermal", "sw_thermal"})


class Governor:
    """The window and the chunk size, as the newest readings have them."""

    def __init__(self, config: Config, max_window: int = MAX_WINDOW) -> None:
        """Start with the window's default and the largest chunk.

        `max_window` bounds the window by what the process may hold open: each request
        in flight takes a descriptor.
        """
        most = max(MIN_WINDOW, min(max_window, MAX_WINDOW))
        self._controller = WindowController(MIN_WINDOW, most)
        self._sizer = ChunkSizer(config.run.chunk_min, config.run.chunk_max)
        self._thermal = ThermalGovernor(config.gpu.warn_c, config.gpu.stop_c, config.gpu.resume_c)
        self._allowance = OPEN
        # What someone else runs holds memory too, under pids that we do not know as ours.
        self._child = not config.endpoint.url
        # Only of vLLM do we know that it computes on this card.
        self._needs_gpu = self._child and not config.engine.command and bool(config.engine.model)
        self._has_answered = False
        self.chunk_size = config.run.chunk_max

    @property
    def window(self) -> int:
        """How many requests may be in flight now; 0 while the card is too hot or silent."""
        return self._allowance.apply(self._controller.window)

    @property
    def closed(self) -> bool:
        """Say whether nothing may be sent."""
        return self.window == 0

    @property
    def reason(self) -> str | None:
        """Why the window is smaller than the engine could use; None when it is not."""
        return self._allowance.reason or None

    def read_engine(
        self, load: Load, in_flight: int, finished_since: int, now: float, *, limited: bool
    ) -> None:
        """Take a reading of the engine; `now` in seconds of the monotonic clock.

        `limited` says whether the window was all that kept requests back.
        """
        # What the card keeps back is no reason for a larger window.
        limited = limited and self._allowance.gate is Gate.OPEN
        self._controller.update(load, in_flight, finished_since, now, limited=limited)

    def read_gpu(self, sample: GpuSample | None) -> None:
        """Take a reading of the card; None when there is none."""
        if sample is None:
            self._allowance = OPEN
            return
        throttled = bool(_HEAT & set(sample.throttle_reasons))
        self._allowance = self._thermal.update(sample.temperature_c, throttled=throttled)
        self.chunk_size = self._sizer.update(sample.others_percent if self._child else None)
        self._has_answered = self._has_answered or sample.healthy
        if self._needs_gpu and self._has_answered and not sample.healthy:
            self._allowance = _silent(sample.problem)


def _silent(problem: str | None) -> Allowance:
    what = f"the GPU does not answer ({problem})" if problem else "the GPU does not answer"
    return Allowance(Gate.CLOSED, 0.0, f"{what}: nothing is sent until it does")

"""The governor: how much may be in flight, and how much is admitted at a time.

Purpose: join the pure controllers of heat.py and engine/window.py with the newest readings of
the engine and the card into the two figures that the runner obeys.
Invariants: no I/O and no clock; a reading that is missing never stops the work; a card
that stops answering stops it only where the engine that we started computes on it; what is
taken back at once is given again only after a while, so a card at a border does not flap.
Known limit: a card that has never answered since the daemon began stops nothing.  A driver
that cannot be asked is no card that cannot compute, and without one vLLM does not start.
"""

import math
from dataclasses import dataclass

from inbox_daemon.contract.config import Config
from inbox_daemon.engine.base import EngineKind, Load
from inbox_daemon.engine.congestion import CongestionWindow
from inbox_daemon.engine.window import WindowController
from inbox_daemon.gpu.heat import (
    OPEN,
    PATIENCE_READINGS,
    Allowance,
    GovernorState,
    Latch,
    ThermalGovernor,
)
from inbox_daemon.gpu.nvml import GpuSample

MIN_WINDOW = 8
MAX_WINDOW = 4096
# A card that stopped answering must answer this many readings in a row before anything is sent.
STEADY_READINGS = 3
# The throttling that asks for less work, and what it is for.  A power cap does not: it is
# how a card runs at its limit, and less work in flight would only make it slower.
# Nor does a bare `hw_slowdown`, which cards also show while they change their clocks.
_SLOWED_FOR = {
    "hw_thermal": "heat",
    "sw_thermal": "heat",
    "hw_power_brake": "its power supply (hw_power_brake)",
}


@dataclass(frozen=True, slots=True)
class Change:
    """What the governor does now and did before, and why; for the log."""

    state: GovernorState
    before: GovernorState
    reason: str
    chunk_size: int


class Governor:
    """The window and the chunk size, as the newest readings have them."""

    def __init__(self, config: Config, kind: EngineKind, max_window: int = MAX_WINDOW) -> None:
        """Start with the window's default and the largest chunk.

        `max_window` bounds the window by what the process may hold open: each request
        in flight takes a descriptor.
        """
        most = max(MIN_WINDOW, min(max_window, MAX_WINDOW))
        self._controller = WindowController(MIN_WINDOW, most)
        # What the answers alone tell: the window where there are no figures, else its limit
        # for as long as an overload is felt.
        self._congestion = CongestionWindow(1, most)
        self._has_figures = kind.computes_here  # vLLM's, which has them
        self._sizer = ChunkSizer(config.run.chunk_min, config.run.chunk_max)
        self._thermal = ThermalGovernor(config.gpu.warn_c, config.gpu.stop_c, config.gpu.resume_c)
        self._silence = Latch(STEADY_READINGS)
        self._allowance = OPEN
        # What a remote server holds is held under pids that we do not know as ours.
        self._kind = kind
        self._has_answered = False
        self._crowded: str | None = None
        self._largest = self.chunk_size = config.run.chunk_max
        self._told = GovernorState.OPEN, "", self._largest

    @property
    def window(self) -> int:
        """How many requests may be in flight; 0 while the card is too hot or does not answer."""
        window = self._controller.window
        if not self._has_figures:
            window = self._congestion.window
        elif self._congestion.overloaded:
            window = min(window, self._congestion.window)
        return self._allowance.apply(window)

    @property
    def knows_queue(self) -> bool:
        """Whether the engine shows figures, so that few requests wait in it unseen."""
        return self._has_figures

    @property
    def closed(self) -> bool:
        """Whether nothing may be sent."""
        return self.window == 0

    @property
    def state(self) -> GovernorState:
        """What is allowed, in a word."""
        if self._allowance.gate is GovernorState.OPEN and self._crowded:
            return GovernorState.WARN
        return self._allowance.gate

    @property
    def reasons(self) -> list[str]:
        """Why less is done than the engine could do; empty when it is not."""
        return [text for text in (self._allowance.reason, self._crowded) if text]

    @property
    def reason(self) -> str | None:
        """The first of the reasons."""
        return next(iter(self.reasons), None)

    def read_engine(
        self, load: Load, in_flight: int, finished_since: int, now: float, *, limited: bool
    ) -> None:
        """Take a reading of the engine; `now` in seconds of the monotonic clock.

        `limited` says whether the window was all that kept requests back.
        """
        # What the card keeps back is no reason for a larger window.
        limited = limited and self._allowance.gate is GovernorState.OPEN
        self._controller.update(load, in_flight, finished_since, now, limited=limited)
        self._has_figures = self._has_figures or load.running is not None
        if self._has_figures and not self._congestion.overloaded:
            self._congestion.follow(self._controller.window, now)

    def take_reply(
        self, launched_at: float, now: float, in_flight: int, *, overloaded: bool
    ) -> None:
        """Take what came back for one request, both times in seconds of the monotonic clock.

        `in_flight` counts what was in flight before, this one included; `overloaded` says that
        the server had no room for it, or no time.
        """
        if overloaded:
            self._congestion.overload(launched_at, now)
        else:
            self._congestion.answered(launched_at, now, in_flight)

    def read_gpu(self, sample: GpuSample | None) -> Change | None:
        """Take a reading of the card, None when there is none.

        Returns what is to be logged: once for each change of what is allowed or why.
        """
        if sample is None:
            self._allowance, self._crowded = OPEN, None
        else:
            reasons = (_SLOWED_FOR.get(reason, "") for reason in sample.throttle_reasons)
            throttled = next(filter(None, reasons), "")
            self._allowance = self._thermal.update(sample.temperature_c, throttled=throttled)
            others = sample.others_percent if self._kind.owned else None
            self.chunk_size = self._sizer.update(others)
            if self.chunk_size == self._largest:
                self._crowded = None
            elif others is not None:
                self._crowded = (
                    f"others use {others:.0f} % of the GPU's memory: a chunk holds "
                    f"{self.chunk_size} requests"
                )
            self._has_answered = self._has_answered or sample.healthy
            lost = self._kind.computes_here and self._has_answered and not sample.healthy
            if self._silence.update(on=lost):
                what = f"the GPU does not answer ({sample.problem})"
                if sample.healthy:
                    what = "the GPU answers again, and is watched for a moment"
                elif sample.problem is None:
                    what = "the GPU does not answer"
                self._allowance = Allowance(
                    GovernorState.CLOSED,
                    0.0,
                    f"{what}: nothing is sent until it does so steadily",
                    "loss",
                )
        told = self.state, self._allowance.cause, self.chunk_size
        if told == self._told:
            return None
        before, self._told = self._told[0], told
        words = "; ".join(self.reasons) or "all of the window is used"
        return Change(self.state, before, words, self.chunk_size)


# From "How much is sent" in DESIGN.md: below this share of the memory, this many.
CHUNK_STEPS = ((70.0, 5000), (80.0, 3000), (90.0, 1000), (math.inf, 500))


# How far below a border the reading must fall before chunks grow again.
CHUNK_MARGIN_PERCENT = 3.0


class ChunkSizer:
    """How many requests a chunk may hold, by the GPU memory that others use.

    With a memory, so that a reading around a border does not make it swing.
    """

    def __init__(self, chunk_min: int, chunk_max: int) -> None:
        """Take the configured bounds, in requests."""
        self._bounds = chunk_min, chunk_max
        self._step = self._missing = 0

    def update(self, others_percent: float | None) -> int:
        """Return the chunk size after this reading: smaller at once, larger with a margin.

        A figure that is missing changes nothing for PATIENCE_READINGS readings.
        """
        if others_percent is None or not math.isfinite(others_percent):
            self._missing += 1
            self._step = self._step if self._missing <= PATIENCE_READINGS else 0
        else:
            self._missing = 0
            relaxed = _step(others_percent + CHUNK_MARGIN_PERCENT)
            self._step = max(_step(others_percent), min(self._step, relaxed))
        low, high = self._bounds
        return max(low, min(high, CHUNK_STEPS[self._step][1]))


def _step(percent: float) -> int:
    return next(index for index, (border, _) in enumerate(CHUNK_STEPS) if percent < border)

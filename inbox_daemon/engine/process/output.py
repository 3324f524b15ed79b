"""How much of an engine's output goes into the log.

Purpose: bound it, whatever the engine prints: a progress bar of single characters, a loop
around a warning, a dump of a tensor.
Invariants: pure, time is passed in; what is left out is counted; lines go through in bursts,
because a line here and there of a flood is worth less than some in a row.
"""

from dataclasses import dataclass

# 86 MB a day at most, where vLLM prints a line each ten seconds; a start of it takes 50 kB.
BYTES_PER_S = 1000
BURST_BYTES = 128 * 1024
# What an event takes in the log beside the line.
EVENT_BYTES = 120
# What must be free again before a line goes through after some were left out.
_REOPENED = BURST_BYTES // 2


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many lines, and bytes of them, were left out since the last one in the log."""

    lines: int = 0
    bytes: int = 0


@dataclass(slots=True)
class LineBudget:
    """What one engine may write into the log; times are seconds of the monotonic clock."""

    left_out: LeftOut = LeftOut()
    _free: float = BURST_BYTES
    _at: float = 0.0
    _closed: bool = False

    def take(self, size: int, now: float) -> bool:
        """Return whether a line of `size` bytes may be logged; one that may not is counted."""
        self._free = min(BURST_BYTES, self._free + (now - self._at) * BYTES_PER_S)
        self._at = now
        cost = size + EVENT_BYTES
        self._closed = self._free < (_REOPENED if self._closed else cost)
        if self._closed:
            self.left_out = LeftOut(self.left_out.lines + 1, self.left_out.bytes + size)
            return False
        self._free -= cost
        return True

    def told(self) -> LeftOut | None:
        """Return what was left out, once; None where nothing was."""
        found, self.left_out = self.left_out, LeftOut()
        return found if found.lines else None

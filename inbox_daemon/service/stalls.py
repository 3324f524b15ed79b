"""The heartbeat: proof of progress or of verified idleness.

Purpose: decide whether a heartbeat may be sent to systemd.
Invariants: pure; time is passed in; a loop that has not turned lately, or work that could
go on and does not, gets no heartbeat sent, so that the watchdog ends the daemon and
the next one recovers; a daemon that waits for something that it can name is idle.
Known limit: only what ends a request, an attempt or the engine's state, and the engine's
count of tokens, is progress; so the patience must be longer than one request may take.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """When a loop turned last, and for how long it may be away; seconds."""

    at: float
    limit_s: float


@dataclass(slots=True)
class Heartbeat:
    """Watches one daemon; times are seconds of the monotonic clock."""

    patience_s: float
    _since: float | None = None
    _seen: object = None

    def may_beat(self, now: float, turns: tuple[Turn, ...], progress: object | None) -> bool:
        """Return whether all is well.

        `progress` is anything that changes with each step of the work, None while there
        is nothing to do or a known reason not to do it.
        """
        if progress is None or self._since is None or progress != self._seen:
            self._since, self._seen = now, progress
        moves = now - self._since < self.patience_s
        return moves and all(now - turn.at < turn.limit_s for turn in turns)


@dataclass(slots=True)
class HangDetector:
    """Watches one engine; times are seconds of the monotonic clock."""

    hang_s: float
    request_timeout_s: float
    _since: float | None = None
    _seen: tuple[int, int | None] = (0, None)

    def update(self, now: float, in_flight: int, finished: int, tokens: int | None) -> bool:
        """Take a reading; True once there was no progress for too long.

        `finished` counts all answers so far, `tokens` all tokens that the engine has
        read and made.
        """
        seen = (finished, tokens)
        if in_flight == 0 or self._since is None or seen != self._seen:
            self._since, self._seen = now, seen
            return False
        patience_s = self.hang_s
        if tokens is None:
            patience_s = max(self.hang_s, self.request_timeout_s)
        if now - self._since < patience_s:
            return False
        self._since = None
        return True

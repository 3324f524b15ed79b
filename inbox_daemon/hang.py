"""Hangs: an engine that neither answers nor makes a token.

Purpose: tell a hang from slow work, by the engine's own count of tokens where it has
one.
Invariants: pure; time is passed in; an engine with nothing to do never hangs.
Known limit: a server that does not count its tokens is only found to hang when the
request timeout has passed as well, because it may be working on one long answer.
"""

from dataclasses import dataclass


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

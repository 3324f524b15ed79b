"""The congestion window: how many requests a server takes, learned from its answers alone.

Purpose: for a server that shows no figures of its own, the window; for every server, the
cut that an overload asks for.
Invariants: pure, no clock; the window stays within its bounds whatever comes; what was sent
before a change is not judged by it, so it is cut at most once a round trip, and at most to
a half.
Source: additive increase and multiplicative decrease as in RFC 5681; where answers only
become slower, growth stops because the rate of answers does not grow.
Known limits: it assumes that a finished request is replaced at once; the rate is that of a
few windows of answers, so a step may be judged wrongly, until the next one.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

# Where nothing is known yet: small enough for a server of one slot.
INITIAL_WINDOW = 8
# A window is clean or not by at least this many replies.
MIN_REPLIES = 8
# A rate is measured over this many windows of answers, once one has come since the change: all
# that was sent before is back then.  Where a trial fails, twice as many decide.
RATE_WINDOWS = 2
# A window that was doubled is kept when the rate grew at least by this factor.
START_FACTOR, START_GAIN = 2.0, 1.15
# In the steady state a larger and a smaller window are tried by turns, after this many clean
# ones.  The larger must bring more, the smaller may lose a little.
TRIAL_WINDOWS = 8
LARGER_FACTOR, LARGER_GAIN = 1.5, 1.2
SMALLER_FACTOR, SMALLER_GAIN = 0.67, 0.95
# After this many clean windows in a row an overload is forgotten.
FORGIVEN_WINDOWS = 16
# With less than this share of the window in flight, it is not the window that is judged.
USED_SHARE = 0.75
# Refusals whose share stays after this many cuts do not come from the window, as where one of
# several backends is gone; but a share this high is what a limit on the rate gives at any window.
# It is followed by this much of its change at each clean window.
CUTS, UNMOVED_SHARE, MOST_CONSTANT, FOLLOWING = 3, 0.6, 0.6, 0.3


@dataclass(frozen=True, slots=True)
class _Trial:
    """A window that is being tried: what to return to, and the rate (1/s) that it needs."""

    before: int
    needed: float


class _Cut(NamedTuple):
    """A window that was cut, and the share of its replies that were refusals."""

    window: int
    share: float


class CongestionWindow:
    """Decides how many requests may be in flight at a server, from what comes back.

    It doubles while the rate grows with it (slow start), keeps the smallest window that gives
    the rate, and tries another one now and then.  After an overload it grows by one for each
    clean window: as many replies in a row, to requests sent since the last change, as it has
    places, and no more refusals among them than a server gives at any window.
    """

    def __init__(self, minimum: int, maximum: int, initial: int = INITIAL_WINDOW) -> None:
        """Take the bounds and the start, in requests.

        Raises ValueError: the bounds are not 1 <= minimum <= maximum.
        """
        if not 1 <= minimum <= maximum:
            raise ValueError("the bounds must be 1 <= minimum <= maximum")
        self._bounds = minimum, maximum
        self._window = max(minimum, min(maximum, initial))
        self._trial: _Trial | None = None
        self._starting, self._larger_next = True, True
        # Clean windows since the last change of course, and the largest window that was clean.
        self._clean = self._largest_clean = 0
        self._overloaded = False
        # The cuts since the last clean window.
        self._cuts: list[_Cut] = []
        self._constant_share = 0.0
        # Since when the window is what it is, and since when the rate of answers is measured.
        self._changed_at = self._measured_from = -math.inf
        # Since the change: answers and refusals to what was sent since, and all answers.
        self._answers = self._refusals = self._counted = 0

    @property
    def window(self) -> int:
        """How many requests may be in flight now."""
        return self._window

    @property
    def overloaded(self) -> bool:
        """Whether an overload limits the window, beyond what the rate tells."""
        return self._overloaded

    def follow(self, window: int, now: float) -> None:
        """Take the window that an engine's own figures give, so that a cut begins there."""
        self._starting, self._trial = False, None
        self._change(window, now)

    def answered(self, launched_at: float, now: float, in_flight: int) -> None:
        """Take an answer: `launched_at` and `now` in seconds of one monotonic clock.

        `in_flight` counts the requests that were in flight before it came, this one included.
        """
        if in_flight < USED_SHARE * self._window:
            return
        self._counted += 1
        if self._counted == max(self._window, MIN_REPLIES):
            self._measured_from = now
        if launched_at >= self._changed_at:
            self._answers += 1
            self._judge(now)

    def overload(self, launched_at: float, now: float) -> bool:
        """Take a refusal for want of room, or a time-out; return whether the window was cut."""
        if launched_at < self._changed_at:
            return False
        self._refusals += 1
        before = self._window
        self._judge(now)
        return self._window < before

    def _judge(self, now: float) -> None:
        """Draw the conclusion of one window, once enough replies are in."""
        replies, share = self._answers + self._refusals, self._share()
        if share > self._tolerated():
            if replies >= MIN_REPLIES:  # not a whole window of refusals first
                self._cut(share, now)
            return
        least = max(self._window, MIN_REPLIES)
        if replies < least:
            return
        if self._overloaded:
            self._note_clean()
            self._overloaded = self._clean < FORGIVEN_WINDOWS
            self._change(self._window + 1, now)
            return
        measured = self._counted - least
        if measured < RATE_WINDOWS * least or now <= self._measured_from:
            return
        rate = measured / (now - self._measured_from)
        trial = self._trial
        if trial and rate < trial.needed and measured < 2 * RATE_WINDOWS * least:
            return
        self._note_clean()
        self._search(rate, now)

    def _note_clean(self) -> None:
        self._clean += 1
        self._cuts.clear()
        self._constant_share += FOLLOWING * (self._share() - self._constant_share)
        self._largest_clean = max(self._largest_clean, self._window)

    def _share(self) -> float:
        replies = self._answers + self._refusals
        return self._refusals / replies if replies else 0.0

    def _tolerated(self) -> float:
        """Return what share of refusals is no overload: what is always refused, and its chance."""
        share, replies = self._constant_share, self._answers + self._refusals
        return share + 2 * math.sqrt(share * (1 - share) / max(replies, 1)) if share else 0.0

    def _cut(self, share: float, now: float) -> None:
        """Cut the window by what was refused, or find that the refusals do not come from it."""
        self._trial, self._starting, self._overloaded, self._clean = None, False, True, 0
        self._cuts.append(_Cut(self._window, share))
        first, *rest = self._cuts
        if len(rest) >= CUTS:
            later = sum(cut.share for cut in rest) / len(rest)
            if UNMOVED_SHARE * min(first.share, MOST_CONSTANT) <= later <= MOST_CONSTANT:
                self._constant_share = later
                self._cuts.clear()
                self._change(first.window, now)
                return
        # The largest window that was clean was right, unless it is that which is cut.
        if self._largest_clean >= self._window:
            self._largest_clean = 0
        left = math.floor(self._window * (1 - share))
        self._change(max(self._window // 2, left, self._largest_clean), now)

    def _search(self, rate: float, now: float) -> None:
        """Keep a trial that was worth it, begin another one, or stay."""
        trial, self._trial = self._trial, None
        if trial is not None and rate < trial.needed:
            self._starting, self._clean = False, 0
            self._change(trial.before, now)
        elif self._starting:
            self._try(START_FACTOR, rate * START_GAIN, now)
        elif trial is not None:
            self._clean = 0
            self._begin(now)
        elif self._clean >= TRIAL_WINDOWS:
            larger, self._larger_next = self._larger_next, not self._larger_next
            if larger:
                self._try(LARGER_FACTOR, rate * LARGER_GAIN, now)
            else:
                self._try(SMALLER_FACTOR, rate * SMALLER_GAIN, now)
        else:
            self._begin(now)

    def _try(self, factor: float, needed: float, now: float) -> None:
        before = self._window
        self._change(math.ceil(before * factor), now)
        if self._window == before:  # at a bound
            self._starting, self._clean = False, 0
        else:
            self._trial = _Trial(before, needed)

    def _change(self, window: int, now: float) -> None:
        low, high = self._bounds
        self._window = max(low, min(high, window))
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._changed_at = self._measured_from = now
        self._answers = self._refusals = self._counted = 0

"""The checked clock: what time it is, for decisions that cannot be undone.

Purpose: expiry, order, redelivery and retention go by wall time, and wall time can be set.
So it is compared with the time since boot, which cannot; a jump is noticed, and in doubt
nothing is lost by it.
Invariants: pure, both clocks are read by the source; while all is well a moment's three
readings are the same.  In doubt, what is irrevocable waits for the earliest of what the
time may be; deadlines are reckoned from the last trusted time and the time since boot; and
what is to be kept for a while counts from the latest.  A new time is trusted once it has
held, sooner if time synchronisation confirms it; then the active jobs' times move with it.
An anchor, the newest trusted time, outlives the process: a start is in doubt where the clock
is behind it, or so far ahead of it as a restart does not take.
Threads: any may ask what the time is; one alone calls `check` and `trust`.
Known limits: what was published or refused under a wrong clock that was trusted keeps its
time; of a job that is admitted in the moment in which a new time is trusted, the deadline is
of the old one.
"""

import logging
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

# Wall time may differ by so much from the time since boot: leap seconds, small steps.
TOLERANCE_S = 5.0
# How long a restart of the machine may take without any doubt.
REBOOT_S = 600.0
# How long a new time is to hold that is synchronised.
SYNCHRONISED_S = 60.0
_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))


class Reading(NamedTuple):
    """Both clocks at one moment: seconds since 1970, and since boot, suspends included."""

    wall: float
    boot: float


class Anchor(NamedTuple):
    """A trusted time that outlives the process: both clocks, and which boot that was."""

    wall: float
    boot: float
    boot_id: str


class Moment(NamedTuple):
    """What the time is: seconds since 1970, three times the same unless it is in doubt.

    `reckoned` is the last trusted time and the time since boot that has passed since;
    `earliest` and `latest` are what it is at least and at most, if that or the clock is right.
    """

    earliest: float
    reckoned: float
    latest: float


class TimeSource(Protocol):
    """Where the clocks are read."""

    # Which boot this is; empty where that is not known.
    boot_id: str

    def read(self) -> Reading:
        """Return both clocks at one moment."""
        ...

    def synchronised_at(self) -> float | None:
        """Return a number that changes with each synchronisation; None before the first."""
        ...


class Correction(NamedTuple):
    """A new time that may be trusted: what it adds to the reckoned one, in seconds.

    It concerns the jobs that were admitted at `since` or later (reckoned, seconds since
    1970), or all where that is None.
    """

    by_s: float
    since: float | None


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A time that differs from the reckoned one: by how much, and since when (boot, s).

    `ahead_s` is how far ahead is no doubt; `started` is the anchor's time at a start on
    another boot, None after a jump.
    """

    by_s: float
    since: float
    ahead_s: float = TOLERANCE_S
    started: float | None = None


class _State(NamedTuple):
    """What is added to the time since boot, to reckon; and the doubt, if there is one.

    `synchronised` is the last synchronisation that was seen before the doubt.
    """

    offset: float
    doubt: _Doubt | None
    synchronised: float | None


class CheckedClock:
    """The clock of one daemon."""

    def __init__(
        self, source: TimeSource, hold_s: float = 600.0, anchor: Anchor | None = None
    ) -> None:
        """Go on from an earlier process's anchor; without one, the clock is trusted.

        `hold_s` is how long a new time is to hold before it is trusted.
        """
        self._source, self._hold_s = source, hold_s
        wall, boot = source.read()
        synchronised = source.synchronised_at()
        self._state = _State(wall - boot, None, synchronised)
        if anchor is None:
            return
        expected, doubt = anchor.wall, _Doubt(0.0, boot, REBOOT_S, anchor.wall)
        if source.boot_id and anchor.boot_id == source.boot_id:
            expected, doubt = anchor.wall + boot - anchor.boot, _Doubt(0.0, boot)
        elif wall > anchor.wall and synchronised is not None:
            return  # it says how long the machine was off
        else:
            synchronised = None
        doubt = replace(doubt, by_s=wall - expected)
        if not -TOLERANCE_S <= doubt.by_s <= doubt.ahead_s:
            self._state = _State(expected - boot, doubt, synchronised)
            log.warning("clock_unconfirmed", extra=self._fields(doubt))

    # -- what the time is -----------------------------------------------------------

    def read(self) -> Moment:
        """Return what the time is now; a jump counts before it is noticed."""
        (wall, boot), (offset, doubt, _) = self._source.read(), self._state
        reckoned = boot + offset
        if doubt is None and abs(wall - reckoned) <= TOLERANCE_S:
            return Moment(wall, wall, wall)
        return Moment(min(wall, reckoned), reckoned, max(wall, reckoned))

    @property
    def doubt(self) -> str | None:
        """Why the clock is in doubt, and what follows, in words; None if it is trusted."""
        doubt = self._state.doubt
        return None if doubt is None else self._words(doubt)

    def anchor(self) -> Anchor | None:
        """Return the time now, for a later process; None in doubt, as the last one holds."""
        (wall, boot), (offset, doubt, _) = self._source.read(), self._state
        if doubt is not None or abs(wall - boot - offset) > TOLERANCE_S:
            return None
        return Anchor(wall, boot, self._source.boot_id)

    # -- doubt ----------------------------------------------------------------------

    def check(self) -> Correction | None:
        """Notice a jump, or its end; return the correction that is due, if a new time has held.

        Call it each second or so.  Move what was reckoned by a correction, then trust it.
        """
        (wall, boot), (offset, doubt, before) = self._source.read(), self._state
        synchronised = self._source.synchronised_at()
        by_s = wall - boot - offset
        if -TOLERANCE_S <= by_s <= (doubt.ahead_s if doubt else TOLERANCE_S):
            self._state = _State(offset + by_s, None, synchronised)
            if doubt is not None:
                log.info("clock_trusted", extra={"by_s": 0.0})
            return None
        if doubt is None or abs(by_s - doubt.by_s) > TOLERANCE_S:
            # A new doubt, or the same about yet another time.
            doubt = replace(doubt or _Doubt(0.0, 0.0), by_s=by_s, since=boot)
            self._state = _State(offset, doubt, before)
            log.warning("clock_jumped", extra=self._fields(doubt))
        patience_s = self._hold_s
        if synchronised not in {None, before}:
            patience_s = min(SYNCHRONISED_S, self._hold_s)
            if doubt.started is not None and by_s > 0:  # for how long the machine was off
                patience_s = 0.0
        if boot - doubt.since < patience_s:
            return None
        # For the jobs of before, the time in which the machine was off has passed.
        return Correction(by_s, doubt.started if by_s > 0 else None)

    def trust(self, correction: Correction) -> None:
        """Trust the time that was corrected so; one that has changed since is a jump again."""
        offset = self._state.offset + correction.by_s
        self._state = _State(offset, None, self._source.synchronised_at())
        log.info("clock_trusted", extra={"by_s": round(correction.by_s, 1)})

    def _fields(self, doubt: _Doubt) -> dict[str, object]:
        return {"by_s": round(doubt.by_s, 1), "reason": self._words(doubt)}

    def _words(self, doubt: _Doubt) -> str:
        """Say what is in doubt, and what follows."""
        far, ahead = span(abs(doubt.by_s)), doubt.by_s > 0
        what = f"the clock was set {far} {'ahead' if ahead else 'back'}"
        if doubt.started is not None:
            than = "later" if ahead else "earlier"
            what = f"the clock is {far} {than} than when the daemon last ran"
        return (
            f"{what}; until that has held for {span(self._hold_s)}, or time synchronisation "
            "confirms it, only what is over by both times expires or is removed"
        )


def span(seconds: float) -> str:
    """Return a length of time in words, in the largest unit of which there are two at least."""
    for length, units in _UNITS:
        if (count := round(seconds / length)) > 1:
            return f"{count} {units}"
    return f"{seconds:.3g} s"

"""The machine's clocks, and the note of the newest trusted time.

Purpose: read wall time and the time since boot as one moment; keep the checked clock's
anchor in `ledger/clock.json`.
Invariants: a note that cannot be read counts as none; one that cannot be written is left
for the next time, as an older one only makes a start more careful.
Known limit: of all that synchronises time only systemd-timesyncd says so where a service
may look; the kernel's own flag takes a call that ProtectClock= closes.
"""

import contextlib
import time
from pathlib import Path

import orjson

from inbox_daemon.jobs.clock import Anchor, CheckedClock, Reading
from inbox_daemon.ledger import Ledger
from inbox_daemon.spool import Spool, durable

NOTE = "clock.json"
# Touched at each synchronisation, gone at a boot: systemd-timesyncd.service(8).
SYNCHRONISED = Path("/run/systemd/timesync/synchronized")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Both clocks count as read at one moment if that took no longer; else they are read again.
_AT_ONCE_S = 0.5
_TRIES = 5


class SystemTime:
    """The machine's clocks."""

    def __init__(self) -> None:
        """Find out which boot this is."""
        self.boot_id = ""
        with contextlib.suppress(OSError):
            self.boot_id = _BOOT_ID.read_text(encoding="ascii").strip()

    def read(self) -> Reading:
        """Return both clocks at one moment, also on a machine that was suspended between."""
        for _ in range(_TRIES):
            before, wall, boot = _since_boot(), time.time(), _since_boot()
            if boot - before < _AT_ONCE_S:
                break
        return Reading(wall, boot)

    def synchronised_at(self) -> float | None:
        """Return when the clock was synchronised last, None if that was not, or is not known."""
        with contextlib.suppress(OSError):
            return SYNCHRONISED.stat().st_mtime
        return None


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def open_clock(spool: Spool, ledger: Ledger, hold_s: float) -> CheckedClock:
    """Return the clock, checked against the newest time that the spool knows of."""
    try:
        note = orjson.loads((spool.ledger / NOTE).read_bytes())
        wall, boot, boot_id = float(note["wall"]), float(note["boot"]), str(note["boot_id"])
    except (OSError, ValueError, TypeError, KeyError):
        # None was noted yet: then the jobs know of a time.
        times = [record.finished_at or record.created_at for record in ledger.jobs()]
        anchor = Anchor(max(times), 0.0, "") if times else None
    else:
        anchor = Anchor(wall, boot, boot_id)
    return CheckedClock(SystemTime(), hold_s, anchor)


def note_anchor(spool: Spool, anchor: Anchor) -> None:
    """Keep the newest trusted time for the next start; blocks."""
    with contextlib.suppress(OSError):
        document = orjson.dumps(anchor._asdict())
        durable.replace_file(spool.ledger / NOTE, document, spool.claimed)

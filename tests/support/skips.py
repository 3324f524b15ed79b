"""The line at the end of a run: how many tests were skipped, and why."""

from collections import Counter
from collections.abc import Sequence

# What each reason that names one of these can be mended with.
PACKAGED = ("rsync", "ssh", "node", "strace", "xfs", "nspawn", "loop devices")
REMEDY = "`sudo make test-packages` installs what is missing"


def skip_line(reasons: Sequence[str], total: int) -> str:
    """Return one line on the skipped ones of `total` tests, by their reasons, most first."""
    if not reasons:
        return f"skipped: none of {total}"
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    parts = [f"{count} because {reason}" for reason, count in counts.most_common()]
    line = f"skipped: {len(reasons)} of {total}: {'; '.join(parts)}"
    packaged = any(word in reason for reason in counts for word in PACKAGED if "install" in reason)
    return f"{line}; {REMEDY}" if packaged else line

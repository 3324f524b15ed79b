"""Errors at every call on one job's files: the others are finished, and it is accounted for.

Purpose: whichever call of a job's life fails, from its claim to its retention, once or for
good, a job that runs and one that arrives have their results, no loop of the daemon ends,
the health says what waits, and without the fault that goes on by itself.
By default each call fails in one of the eight ways; with TORTURE_FAULTS=all, as in
`make torture`, in each of them.
"""

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from one_job import Story

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0 if "TORTURE_FAULTS" in os.environ else 900),
    # sdnotify leaves its socket open where there is no systemd.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EDQUOT)
WAYS = [(number, lasting) for number in ERRORS for lasting in (True, False)]
ALL = os.environ.get("TORTURE_FAULTS") == "all"
MIN_CALLS = 500
# A memory filesystem takes what is synced as well as a disk does, and is faster.
MEMORY = Path("/dev/shm")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Say nothing of thousands of errors."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for spools, in memory where there is some."""
    found = Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path))
    yield found
    shutil.rmtree(found)


def play(place: Path, at: int, number: int, *, lasting: bool) -> tuple[Story, int]:
    """Play the story on a new spool with a strike at a call, 0 for none."""
    base = place / str(at)
    base.mkdir()
    story = Story(base)
    calls = story.play(lambda strikes: strikes.arm(at, number, lasting=lasting))
    shutil.rmtree(base)
    return story, calls


@pytest.mark.parametrize("way", range(len(WAYS)), ids=lambda way: _name(*WAYS[way]))
def test_an_error_under_one_job_is_its_own(place: Path, way: int) -> None:
    """The others have their results, and what is to become of it is known and becomes true."""
    number, lasting = WAYS[way]
    _, calls = play(place, 0, 0, lasting=False)
    assert calls >= MIN_CALLS, f"only {calls} calls: they are not seen any more"
    points = range(1, calls + 1) if ALL else range(1 + way, calls + 1, len(WAYS))
    wrong, missed = [], 0
    for at in points:
        try:
            story, _ = play(place, at, number, lasting=lasting)
            missed += not story.strikes.struck
        except Exception as error:  # noqa: BLE001 - one point's failure is a line of the report
            wrong.append(f"call {at}: {type(error).__name__}: {error}")
    assert not wrong, f"{len(wrong)} of {len(points)}:\n" + "\n".join(wrong[:10])
    assert missed <= 0.02 * len(points) + 1, f"{missed} calls came in none of their stories"


def _name(number: int, lasting: bool) -> str:  # noqa: FBT001 - as the table has it
    return f"{errno.errorcode[number]}-{'for-good' if lasting else 'once'}"

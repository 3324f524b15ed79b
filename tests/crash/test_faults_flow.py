"""Whatever system call is struck, nothing is lost, nothing is half done, nothing twice."""

import random
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import flow_script as script
from flow import DONE, FAILED, STUCK, Sender
from flow_checks import check_finished, seen
from flow_faults import GROWING, Point, Run, Stage, Stages, open_stages, strike_from

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("faults")]

MIN_POINTS = 400
MIN_WRITES = 120
KILLED = -9
# Where threads take turns a run may need a call less than the one that was counted.
MAX_MISSED = 0.02


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    """Find the points once, and keep the servers for all tests."""
    with open_stages(tmp_path_factory.mktemp("faults")) as opened:
        yield opened


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one point: how the first struck run ended, and what is wrong, if anything."""

    end: int
    struck: bool
    complaint: str = ""


def attempt(stage: Stage, point: Point, strikes: Sequence[list[str]], ends: set[int]) -> Trial:
    """Play the story with one struck run after the other, then without a fault.

    Where the point's place is odd, what is published is collected while the daemon is down.
    """
    runs: list[Run] = []
    with stage.base() as base:
        try:
            before = []
            for faults in strikes:
                runs.append(stage.run(base, faults))
                before.append(seen(base))
                assert runs[-1].status in {DONE, *ends}, f"it ended with {runs[-1].status}"
                if point.place % 2:
                    _collect(base)
            restart = stage.run(base)
            assert restart.status == DONE, f"the restart ended with {restart.status}"
            check_finished(base, before)
        except Exception as error:  # noqa: BLE001 - one point's failure is a line of the report
            end = runs[0].status if runs else DONE
            return Trial(end, struck=True, complaint=f"{point}\n{_words(error)}{_log(base)}")
    return Trial(runs[0].status, runs[0].struck)


def _collect(base: Path) -> None:
    for job in script.JOBS:
        Sender(base).collect(job.name)


def _words(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"  {frame.name}: {frame.line}: {error!r:.600}\n"


def _log(base: Path) -> str:
    lines = (base / "log").read_text().splitlines() if (base / "log").exists() else []
    return "".join(f"  | {line}\n" for line in lines[-12:])


def judge(fault: str, points: Sequence[Point], trials: Sequence[Trial], least: int) -> None:
    """Print how many points were tried, and fail with what is wrong."""
    wrong = [trial.complaint for trial in trials if trial.complaint]
    missed = sum(not trial.struck for trial in trials)
    ends = dict(Counter(trial.end for trial in trials))
    figures = f"{len(points)} points tried, {missed} missed, {len(wrong)} failed"
    print(f"\n{fault}: {figures}; runs by exit status: {ends}")  # noqa: T201 - asked for
    assert not wrong, f"{fault}: {figures}\n" + "\n".join(wrong[:20])
    assert len(points) >= least, f"only {len(points)} points: the calls are not seen any more"
    assert missed <= MAX_MISSED * len(points), f"{missed} calls came in none of their runs"


def test_kill_at_any_call_loses_nothing(stages: Stages) -> None:
    """Killed at each durable call of the flow, it goes on from there to the same end."""

    def work(stage: Stage, point: Point) -> Trial:
        return attempt(stage, point, [point.strike("signal=SIGKILL")], {KILLED})

    judge("SIGKILL", stages.points, stages.each(work, stages.points), MIN_POINTS)


def test_kill_in_the_repair_after_a_kill_loses_nothing(stages: Stages) -> None:
    """Killed once more while it recovers, or soon after, it still comes to the same end."""
    calls = sorted({point.call for point in stages.points})

    def work(stage: Stage, point: Point) -> Trial:
        chance = random.Random(point.place)
        again = [f"{call}:signal=SIGKILL:when={chance.randint(1, 12)}" for call in calls]
        return attempt(stage, point, [point.strike("signal=SIGKILL"), again], {KILLED})

    points = stages.points[::4]
    judge("SIGKILL, twice", points, stages.each(work, points), MIN_POINTS // 4)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_error_at_any_call_loses_nothing(stages: Stages, error: str) -> None:
    """Where a durable call fails once, the daemon goes on or ends, and its next start mends it."""

    def work(stage: Stage, point: Point) -> Trial:
        return attempt(stage, point, [point.strike(f"error={error}")], {FAILED})

    judge(error, stages.points, stages.each(work, stages.points), MIN_POINTS)


def test_disk_that_fills_up_at_any_write_loses_nothing(stages: Stages) -> None:
    """Once nothing can be written any more the daemon waits or ends; with room it goes on."""
    points = [point for point in stages.points if point.call in GROWING]

    def work(stage: Stage, point: Point) -> Trial:
        filling = strike_from(points, point, "error=ENOSPC")
        full = [f"{call}:error=ENOSPC" for call in {p.call for p in points}]
        return attempt(stage, point, [filling, full], {FAILED, STUCK})

    judge("a full disk", points, stages.each(work, points), MIN_WRITES)

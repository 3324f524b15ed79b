"""A short soak; `make soak` has the long one."""

import random
from pathlib import Path

import pytest

from soak.campaign import Campaign, Plan

SECONDS = 45.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_truth_holds_when_everything_happens_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Senders, orders, kills, weather and readers on a plain folder: the witness is content."""
    seed = random.randrange(1_000_000)
    without = frozenset({"clock"})
    plan = Plan(SECONDS, seed, "folder", without, restart_s=1.0, phase_s=20.0, drain_s=400.0)
    report = Campaign(tmp_path / "soak", plan).run()
    with capsys.disabled():
        print(f"\nsoak: seed {seed}, {report.figures['jobs']} jobs")  # noqa: T201 - to repeat it
    assert not report.violations, report.text()
    assert report.figures["jobs"] > 0
    assert report.ends

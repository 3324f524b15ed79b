"""Power cuts on real filesystems: nothing acknowledged is lost, nothing committed repeated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torture.disks import FILESYSTEMS, why_not

CUTS = 10


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_power_cuts_lose_nothing_acknowledged(
    filesystem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever was acknowledged before the power went is there after it is back."""
    missing = why_not()
    if missing:
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    words = ["--cuts", str(CUTS), "--each", "5", "--filesystem", filesystem]
    done = subprocess.run(
        [sys.executable, "-m", "torture.powercuts", *words, "--folder", tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    with capsys.disabled():
        print(f"\n{done.stdout}")  # noqa: T201 - the seeds, to repeat it
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CUTS} power cuts" in done.stdout

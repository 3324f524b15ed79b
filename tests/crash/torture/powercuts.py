"""Cut the power of a running daemon's filesystem, many times, and check every promise.

    PYTHONPATH=tests/crash:tests/support \
        python -m torture.powercuts --cuts 20 --filesystem ext4 --seed 1

Purpose: run campaigns (campaign.py) until the number of cuts is reached, say which seed
found something, and sum the figures up by filesystem.
"""

import argparse
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from torture.campaign import Campaign
from torture.disks import FILESYSTEMS, enter_namespace, why_not

SKIPPED = 77


def run_campaign(filesystem: str, seed: int, cuts: int, folder: Path) -> Campaign:
    """Run one campaign; its folder goes unless something was found."""
    work = folder / f"{filesystem}-{seed}"
    work.mkdir()
    campaign = Campaign(filesystem, seed, work)
    try:
        campaign.run(cuts)
    finally:
        if campaign.faults:
            kept = work / "spool"
            with contextlib.suppress(OSError, shutil.Error):
                shutil.copytree(campaign.spool, kept)
        campaign.disk.destroy()
    if not campaign.faults:
        shutil.rmtree(work)
    return campaign


def _report(campaign: Campaign, total: Counter[str]) -> None:
    total.update(campaign.figures)
    words = f"{campaign.filesystem} seed {campaign.seed}: {campaign.figures['cuts']} cuts"
    print(words + (" FAILED" if campaign.faults else ""), flush=True)  # noqa: T201
    for fault in campaign.faults[:10]:
        print(f"    {fault}", flush=True)  # noqa: T201
    if campaign.faults:
        print(f"    kept in {campaign.folder}", flush=True)  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cuts", type=int, default=20, help="in all, on each filesystem alike")
    parser.add_argument("--filesystem", choices=FILESYSTEMS, action="append")
    parser.add_argument("--seed", type=int, help="the first campaign's; any if left out")
    parser.add_argument("--each", type=int, default=10, help="cuts in one campaign at most")
    parser.add_argument("--folder", type=Path, help="where the image files lie")
    return parser.parse_args()


def main() -> int:
    """Run campaigns until the number of cuts is reached; 1 when something was found."""
    options = _options()
    missing = why_not()
    if missing:
        print(missing)  # noqa: T201
        return SKIPPED
    enter_namespace()
    filesystems = options.filesystem or list(FILESYSTEMS)
    folder = Path(tempfile.mkdtemp(prefix="powercuts-", dir=options.folder))
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    totals = {name: Counter[str]() for name in filesystems}
    failed, begun = 0, time.monotonic()
    share = -(-options.cuts // len(filesystems))
    while any(total["cuts"] < share for total in totals.values()):
        for name, total in totals.items():
            cuts = min(options.each, share - total["cuts"])
            if cuts > 0:
                campaign = run_campaign(name, seed, cuts, folder)
                failed += bool(campaign.faults)
                _report(campaign, total)
        seed += 1
    for name, total in totals.items():
        print(f"{name}:", dict(sorted(total.items())))  # noqa: T201
    reached = sum(total["cuts"] for total in totals.values())
    seconds = time.monotonic() - begun
    print(f"{reached} power cuts in {seconds:.0f} s, {failed} campaigns found something")  # noqa: T201
    with contextlib.suppress(OSError):
        folder.rmdir()
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.cmd} failed: {error.stderr or error}")

"""The soak's command line; see the package."""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from soak.campaign import TROUBLES, Campaign, Plan
from soak.ground import KINDS, best_kind


def main() -> int:
    """Run once; 0 if every truth held, 1 if not, and then the folder is kept."""
    parser = argparse.ArgumentParser(prog="soak", description="Everything at once, for hours.")
    parser.add_argument("--hours", type=float, default=2.0, help="0.05 is a three-minute try")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--filesystem", choices=KINDS, default=best_kind())
    parser.add_argument("--without", action="append", default=[], choices=TROUBLES)
    parser.add_argument("--restart-s", type=float, default=5.0, help="as RestartSec= of the unit")
    parser.add_argument("--report", type=Path, help="a folder that gets report.json")
    options = parser.parse_args()
    seconds = options.hours * 3600
    plan = Plan(
        seconds,
        options.seed,
        options.filesystem,
        frozenset(options.without),
        options.restart_s,
        phase_s=max(40.0, min(900.0, seconds / 4)),
    )
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"soak: seed {plan.seed} on {plan.ground}, in {folder}", flush=True)  # noqa: T201
    campaign = Campaign(folder, plan)
    report = campaign.run()
    written = report.write()
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        shutil.copy(written, options.report / f"soak-{plan.seed}.json")
    if report.violations:
        # What lies on a filesystem of its own is gone with this process.
        spool = campaign.desk.spool
        shutil.copytree(spool, folder / "spool", symlinks=True, ignore=_no_fifos)
    print(report.text(), flush=True)  # noqa: T201
    campaign.ground.close()
    if not report.violations and not options.report:
        shutil.rmtree(folder)
    return 1 if report.violations else 0


def _no_fifos(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if (Path(folder) / name).is_fifo()}


if __name__ == "__main__":
    sys.exit(main())

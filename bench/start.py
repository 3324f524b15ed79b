"""What a start costs: a command's, and the daemon's to its first status.

Purpose: CPU seconds of `--version`, `status` and `jobs`, and of the daemon until its first
outbox/status.json, each as a ratio to `python -c pass`.
Method: all ways alternate within a repetition, in processes of their own with their
bytecode cached; with `--against CHECKOUT` another checkout's are measured in the same run.
Known limit: CPU seconds of short processes are counted in hundredths, so many repetitions
are needed; wall-clock time depends on what else runs.
"""

import compileall
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import report
from bench.processes import CHECKOUT, environment, workplace
from bench.report import Goal, Report, Spread

_PATIENCE_S = 60.0
_LOOK_S = 0.002


def cpu_s() -> float:
    """The CPU time of all children that have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(checkout: Path, *words: str) -> float:
    """Run Python on a checkout; return the CPU seconds that it took."""
    before = cpu_s()
    subprocess.run(
        [sys.executable, *words],
        env=_environment(checkout),
        cwd=checkout,
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return cpu_s() - before


def start_daemon(checkout: Path, spool: Path) -> float:
    """Start a daemon without an engine, and kill it at its first status; return CPU seconds."""
    status = spool / "outbox" / "status.json"
    status.unlink(missing_ok=True)
    before, deadline = cpu_s(), time.monotonic() + _PATIENCE_S
    daemon = subprocess.Popen(
        [sys.executable, "-m", "inbox_daemon", "run", "--spool", str(spool)],
        env=_environment(checkout),
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not status.exists():
            if time.monotonic() > deadline or daemon.poll() is not None:
                msg = f"the daemon of {checkout} wrote no status"
                raise RuntimeError(msg)
            time.sleep(_LOOK_S)
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    return cpu_s() - before


def _environment(checkout: Path) -> dict[str, str]:
    """Our environment, with that checkout's modules and their bytecode."""
    kept = {k: v for k, v in environment().items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(checkout)}


def main() -> None:
    """Measure and show."""
    parser = report.parser(__doc__)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn")
    chosen = parser.parse_args()
    shown = Report("start", report.options_of(chosen))
    checkouts = {"": CHECKOUT} | ({"before: ": chosen.against} if chosen.against else {})
    for checkout in checkouts.values():
        compileall.compile_dir(checkout / "inbox_daemon", quiet=2)
    values: dict[str, list[float]] = {}
    with workplace(None) as folder:
        for _ in range(chosen.repeat):
            values.setdefault("python -c pass", []).append(run(CHECKOUT, "-c", "pass"))
            for prefix, checkout in checkouts.items():
                spool = folder / f"spool{len(prefix)}"
                module = ("-m", "inbox_daemon")
                took = start_daemon(checkout, spool)
                values.setdefault(f"{prefix}daemon to its first status", []).append(took)
                for words in (
                    ("--version",),
                    ("status", "--spool", str(spool)),
                    ("jobs", "--spool", str(spool)),
                ):
                    took = run(checkout, *module, *words)
                    values.setdefault(f"{prefix}{words[0]}", []).append(took)
    spreads = {name: Spread.of(found) for name, found in values.items()}
    # A hundredth of a second is the clock's step: the mean says more than the median here.
    bare = sum(values["python -c pass"]) / chosen.repeat
    means = {name: sum(found) / chosen.repeat for name, found in values.items()}
    shown.figures = {name: spread.dump() for name, spread in spreads.items()}
    shown.table(
        f"{chosen.repeat} repetitions in turn, CPU ms",
        ("what", "median (range)", "mean as a ratio to python -c pass"),
        [
            (name, Spread.of(v * 1e3 for v in spread.values).show(0), f"{means[name] / bare:.1f}")
            for name, spread in spreads.items()
        ],
    )
    if chosen.against:
        shown.goals = [
            Goal(
                f"{name}: share of before",
                0.5,
                means[name] / means[f"before: {name}"],
                at_most=True,
            )
            for name in means
            if f"before: {name}" in means
        ]
    shown.finish(chosen.json)


if __name__ == "__main__":
    main()

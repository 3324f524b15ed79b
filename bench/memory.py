"""The most memory that the daemon and its commands take where there is much to hold.

Purpose: large answers, large lines, and a job of dead letters that is published, listed,
run again and purged; each as the peak of the process (VmHWM) and of what is its own alone
(RssAnon), which leaves out the pages of the ledger that the kernel keeps for it.
Method: a fresh daemon for each case and an engine that answers all that is in flight at
about the same time, which is the worst case; VmHWM is the kernel's own maximum, RssAnon is
looked at fifty times a second.  A command tells its own peak at its end.
Known limit: the peak depends on how fast the disk takes what is written, so a slow one
shows more of what is bounded and less of what is not.
"""

import argparse
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import report, workload
from bench.processes import Daemon, Json, bound_to_us, environment, standin, workplace
from bench.report import Goal, Report

_LOOK_S = 0.02
_MIB = 1 << 20
# So that a whole window is in flight before the first of it is answered.
_LATENCY_S = 0.25
_SECTIONS: dict[str, Json] = {
    "intake": {"scan_interval_s": 0.3, "settle_s": 0.2},
    "limits": {"max_line_bytes": 64 * _MIB, "max_file_bytes": 8192 * _MIB},
}
# Runs a command in its own process and tells the most memory it took, in KiB, at the end.
_TELLING = """
import re, sys
from inbox_daemon.cli.main import main
try:
    main()
finally:
    status = open("/proc/self/status").read()
    sys.stderr.write("\\nVmHWM " + re.search(r"VmHWM:\\s+(\\d+)", status)[1] + "\\n")
"""


@dataclass
class Peak:
    """The memory of a daemon over a block, in MiB, and its CPU time; `anon` is what is its own."""

    idle: float = 0.0
    idle_anon: float = 0.0
    most: float = 0.0
    anon: float = 0.0
    cpu_s: float = 0.0

    def dump(self) -> Json:
        """The figures for JSON."""
        return {
            "idle_mib": self.idle,
            "most_mib": self.most,
            "anon_mib": self.anon,
            "own_over_idle_mib": self.anon - self.idle_anon,
            "cpu_s": self.cpu_s,
        }


@contextmanager
def watched(daemon: Daemon) -> Iterator[Peak]:
    """Look at a daemon's memory in a thread of its own, for as long as the block takes."""
    peak, stop = Peak(daemon.memory_mib(), daemon.memory_mib("RssAnon")), threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK_S):
            peak.anon = max(peak.anon, daemon.memory_mib("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.most, peak.cpu_s = daemon.memory_mib("VmHWM"), daemon.cpu_s()


@contextmanager
def started(folder: Path, address: str, run: Json) -> Iterator[Daemon]:
    """Run a daemon on the spool of a folder; the block gets it once its engine is ready."""
    with Daemon(folder, endpoint={"url": address}, run=run, **_SECTIONS) as daemon:
        daemon.start()
        daemon.wait_ready()
        yield daemon


def answers(folder: Path, size: int, chosen: argparse.Namespace) -> Json:
    """Answers of `size` bytes to short requests, `chosen.volume` MiB of them in all."""
    requests = max(2, chosen.volume * _MIB // size)
    job = workload.write(
        folder / "job.jsonl", workload.Workload(requests, 20, 3, output_mean=16).lines()
    )
    with (
        standin(_LATENCY_S, "--bytes", str(size)) as address,
        started(folder / "d", address, run_of(chosen)) as daemon,
        watched(daemon) as peak,
    ):
        seconds, _ = daemon.run_job(job, "job")
    return peak.dump() | {"requests": requests, "seconds": seconds}


def lines(folder: Path, size: int, count: int, chosen: argparse.Namespace) -> Json:
    """A number of requests of `size` bytes, with short answers."""
    job = folder / "job.jsonl"
    messages = [{"role": "user", "content": "x" * size}]
    workload.write(job, (workload.line(f"r{number}", messages, 16) for number in range(count)))
    with (
        standin(_LATENCY_S) as address,
        started(folder / "d", address, run_of(chosen)) as daemon,
        watched(daemon) as peak,
    ):
        seconds, _ = daemon.run_job(job, "job")
    return peak.dump() | {"requests": count, "seconds": seconds}


def letters(folder: Path, count: int, chosen: argparse.Namespace) -> Json:
    """A job of which all become dead letters; then what is done with those."""
    drawn = workload.Workload(count, chosen.prompt_words, 3, output_mean=16)
    place, run, figures = folder / "d", run_of(chosen), Json(requests=count)
    job = workload.write(folder / "job.jsonl", drawn.lines())
    with standin(0.0, "--status", "400") as address:
        with started(place, address, run) as daemon, watched(daemon) as published:
            daemon.run_job(job, "job")
        figures["list_mib"] = command(daemon, "dead", "list", "--json")
        with started(place, address, run) as daemon, watched(daemon) as refused:
            figures["redrive_command_mib"] = command(daemon, "dead", "redrive", "job")
            daemon.wait(lambda: daemon.published("job.redrive-1"))
    with (
        standin() as address,
        started(place, address, run) as daemon,
        watched(daemon) as redriven,
    ):
        command(daemon, "dead", "redrive", "job.redrive-1")
        daemon.wait(lambda: daemon.published("job.redrive-2"))
    with standin(0.0, "--status", "400") as address:
        with started(place, address, run) as daemon:
            daemon.run_job(workload.write(job, drawn.lines("again ")), "again")
        with started(place, address, run) as daemon, watched(daemon) as purged:
            command(daemon, "dead", "purge", "--all")
            daemon.wait(lambda: (daemon.status() or {"dead_letters": 1})["dead_letters"] == 0)
    peaks = {"published": published, "refused again": refused, "answered": redriven}
    return figures | {name: peak.dump() for name, peak in (peaks | {"purged": purged}).items()}


def command(daemon: Daemon, *words: str) -> float:
    """Run a command of the daemon's to its end; return the most memory it took, in MiB.

    Raises RuntimeError: it failed; the message holds what it said.
    """
    spool = ("--spool", str(daemon.spool))
    done = subprocess.run(
        bound_to_us(sys.executable, "-c", _TELLING, *words, *spool),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment(),
    )
    if done.returncode:
        msg = f"{' '.join(words)} ended with status {done.returncode}: {done.stderr[-2000:]}"
        raise RuntimeError(msg)
    return int(done.stderr.split()[-1]) / 1024


def run_of(chosen: argparse.Namespace) -> Json:
    """The section [run] of all daemons."""
    bound = chosen.max_in_flight_bytes
    return {} if bound is None else {"max_in_flight_bytes": bound}


def main() -> None:
    """Measure and show."""
    parser = report.parser(__doc__)
    cases = ("answers", "lines", "letters")
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--sizes", type=int, nargs="+", default=[_MIB, 4 * _MIB], help="of answers")
    parser.add_argument("--volume", type=int, default=1200, help="MiB of answers of each size")
    parser.add_argument("--line", type=int, default=4 * _MIB, help="bytes of a large line")
    parser.add_argument("--lines", type=int, default=200, help="how many large lines")
    parser.add_argument("--letters", type=int, default=50_000, help="how many dead letters")
    parser.add_argument("--prompt-words", type=float, default=60, help="of each letter's request")
    parser.add_argument("--max-in-flight-bytes", type=int, help="instead of the default")
    parser.add_argument("--folder", type=Path, help="where the spool lies; its disk counts")
    chosen = parser.parse_args()
    shown = Report("memory", report.options_of(chosen))
    with workplace(chosen.folder) as folder:
        shown.machine["filesystem"] = report.filesystem(folder)
        for case, size in _cases(chosen):
            place = folder / f"{case}{size}"
            place.mkdir()
            if case == "answers":
                found = answers(place, size, chosen)
            elif case == "lines":
                found = lines(place, size, chosen.lines, chosen)
            else:
                found = letters(place, size, chosen)
            shown.figures[f"{case} {size}"] = found
            shown.say(f"  {case} {size:,}: {found}")
            shutil.rmtree(place)
    _show(shown)
    shown.finish(chosen.json)


def _cases(chosen: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Each case with its size: an answer's, a line's, or the number of letters."""
    sizes = {"answers": chosen.sizes, "lines": [chosen.line], "letters": [chosen.letters]}
    for case in chosen.cases:
        yield from ((case, size) for size in sizes[case])


def _show(shown: Report) -> None:
    rows = []
    for name, found in shown.figures.items():
        for step, peak in {"": found, **found}.items():
            if isinstance(peak, dict) and "most_mib" in peak:
                figures = (peak["idle_mib"], peak["most_mib"], peak["anon_mib"])
                rows.append((f"{name} {step}", *(f"{figure:,.0f}" for figure in figures)))
                if name.startswith("letters"):
                    # Of its own: the ledger's pages come and go with the kernel's cache.
                    own, what = peak["own_over_idle_mib"], f"{name} {step}, own MiB over idle"
                    shown.goals.append(Goal(what, 40, own, at_most=True))
                else:
                    shown.goals.append(Goal(f"{name}, MiB", 600, peak["most_mib"], at_most=True))
            elif step.endswith("_mib") and name.startswith("letters"):
                rows.append((f"{name} {step}", "", f"{peak:,.0f}", ""))
    shown.table("memory of the process", ("case", "idle MiB", "most MiB", "of its own"), rows)


if __name__ == "__main__":
    main()

"""How time and memory grow with the number of requests, and how long a start takes.

Purpose: from 1,000 to 200,000 requests through an engine that answers at once: seconds,
CPU and memory of the daemon, and the age of outbox/status.json throughout; then the
start with full queues, and the recovery of a job that was half done at a kill -9.
Method: a fresh daemon for each size; jobs of 50,000 at most, dropped together; memory
and status are looked at twenty times a second.  A start is timed from the fork to the
first status document, so Python's own start is in it.
Known limit: seconds depend on what else the machine does; CPU and memory do not.
"""

import argparse
import shutil
import time
from contextlib import suppress
from pathlib import Path

from bench import report, workload
from bench.course import Course, watching
from bench.plot import MISSING, draw_growth
from bench.processes import Daemon, Json, standin, workplace
from bench.report import Goal, Report, Spread

JOB = 50_000
INTERVAL_S = 1.0
_LOOK_S = 0.05
# Of the engine that a daemon is killed with: slow enough to be caught in the middle.
_LATENCY_S = 0.05
_SECTIONS: dict[str, Json] = {
    "intake": {"scan_interval_s": 0.5, "settle_s": 0.2},
    "status": {"interval_s": INTERVAL_S},
}


class Jobs:
    """The files that are dropped, each size made once."""

    def __init__(self, folder: Path, prompt_words: float, most: int) -> None:
        """Make jobs of at most `most` requests in `folder`."""
        self._folder, self._words, self._most = folder, prompt_words, most

    def of(self, requests: int) -> list[Path]:
        """Files that hold so many requests together."""
        full, rest = divmod(requests, self._most)
        return [self._file(size) for size in [self._most] * full + [rest] * (rest > 0)]

    def _file(self, requests: int) -> Path:
        path = self._folder / f"{requests}.jsonl"
        if not path.exists():
            drawn = workload.Workload(requests, self._words, 3, output_mean=16)
            workload.write(path, drawn.lines())
        return path


def grow(folder: Path, address: str, jobs: Jobs, requests: int) -> tuple[Json, Course]:
    """Run one size on a fresh daemon."""
    place = folder / f"grow{requests}"
    with Daemon(place, endpoint={"url": address}, **_SECTIONS) as daemon:
        daemon.start()
        daemon.wait_ready()
        idle = daemon.memory_mib()
        with watching(daemon, _LOOK_S) as course:
            cpu, began = daemon.cpu_s(), time.perf_counter()
            names = drop(daemon, jobs.of(requests))
            daemon.wait(lambda: all(daemon.published(name) for name in names), 3600)
            seconds, cpu = time.perf_counter() - began, daemon.cpu_s() - cpu
        check(daemon, names, requests)
        most = daemon.memory_mib("VmHWM")
    shutil.rmtree(place)
    figures = {
        "requests": requests,
        "seconds": seconds,
        "requests_per_s": requests / seconds,
        "cpu_us_a_request": cpu / requests * 1e6,
        "idle_mib": idle,
        "most_mib": most,
        "oldest_status_s": course.oldest_s,
    }
    return figures, course


def drop(daemon: Daemon, files: list[Path]) -> list[str]:
    """Drop all files at once; return the jobs' names."""
    names = [f"job{number}" for number in range(len(files))]
    for name, path in zip(names, files, strict=True):
        daemon.drop(path, name)
    return names


def check(daemon: Daemon, names: list[str], requests: int) -> None:
    """Hold the results to the count.

    Raises RuntimeError: not every request has its result.
    """
    lines = 0
    for name in names:
        with (daemon.spool / "outbox" / name / "output.jsonl").open("rb") as file:
            lines += sum(1 for _ in file)
    if lines != requests:
        msg = f"{requests} requests have {lines} results"
        raise RuntimeError(msg)


def recover(folder: Path, address: str, jobs: Jobs, requests: int, repeat: int) -> Json:
    """Kill a daemon with a job that is half done, and start it; several times."""
    starts, memory = [], []
    with Daemon(folder / "recover", endpoint={"url": address}, **_SECTIONS) as daemon:
        daemon.start()
        daemon.wait_ready()
        [name] = drop(daemon, jobs.of(requests))
        for number in range(repeat):
            wanted = requests // 2 + number * requests // 50
            daemon.wait(
                lambda wanted=wanted: done(daemon) >= wanted or daemon.published(name), 3600
            )
            if daemon.published(name):  # it was quicker than we look
                break
            daemon.kill()
            starts.append(daemon.start())
            memory.append(daemon.memory_mib())
        daemon.wait(lambda: daemon.published(name), 3600)
        check(daemon, [name], requests)
    if not starts:
        msg = "the job was over before the daemon could be killed; take a larger one"
        raise RuntimeError(msg)
    return {"seconds": Spread.of(starts).dump(), "memory_mib": max(memory), "requests": requests}


def done(daemon: Daemon) -> float:
    """About how many results the one running job has on the disk; all are of one length."""
    with suppress(FileNotFoundError, StopIteration):
        path = next((daemon.spool / "running").glob("*/results.part"))
        with path.open("rb") as file:
            return path.stat().st_size / max(1, len(file.readline()))
    return 0


def start_full(folder: Path, jobs: Jobs, requests: int, count: int, repeat: int) -> Json:
    """Start a daemon whose queue is full, several times; its engine never comes."""
    nobody = {"url": f"unix:{folder}/nobody.sock"}
    with Daemon(folder / "full", endpoint=nobody, **_SECTIONS) as daemon:
        daemon.start()
        drop(daemon, jobs.of(requests) * count)
        daemon.wait(lambda: len((daemon.status() or {"jobs": []})["jobs"]) == count, 600)
        starts = []
        for _ in range(repeat):
            daemon.stop()
            starts.append(daemon.start())
        memory = daemon.memory_mib()
    return {"seconds": Spread.of(starts).dump(), "memory_mib": memory, "jobs": count}


def main() -> None:
    """Measure, show and plot."""
    parser = report.parser(__doc__)
    sizes = [1_000, 10_000, 50_000, 100_000, 200_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="requests in all")
    parser.add_argument("--job", type=int, default=JOB, help="the most requests of one job")
    parser.add_argument("--repeat", type=int, default=3, help="of the starts")
    parser.add_argument("--prompt-words", type=float, default=60)
    parser.add_argument("--plot", type=Path, help="write a PNG there; needs matplotlib")
    parser.add_argument("--folder", type=Path, help="where the spool lies; its disk counts")
    chosen = parser.parse_args()
    shown = Report("scale", report.options_of(chosen))
    with workplace(chosen.folder) as folder:
        shown.machine["filesystem"] = report.filesystem(folder)
        jobs = Jobs(folder, chosen.prompt_words, chosen.job)
        rows, course = _grow_all(folder, jobs, chosen, shown)
        with standin(_LATENCY_S) as address:
            recovery = recover(folder, address, jobs, chosen.job, chosen.repeat)
        full = start_full(folder, jobs, chosen.job, 5, chosen.repeat)
    shown.figures = {"sizes": rows, "recovery": recovery, "full_queue": full}
    _show(shown, rows, recovery, full)
    if chosen.plot and not draw_growth(chosen.plot, rows, course.looks):
        shown.say(MISSING)
    shown.finish(chosen.json)


def _grow_all(
    folder: Path, jobs: Jobs, chosen: argparse.Namespace, shown: Report
) -> tuple[list[Json], Course]:
    """All sizes, one after the other; the course is the largest one's."""
    rows, course = [], Course()
    with standin() as address:
        for requests in sorted(chosen.sizes):
            row, course = grow(folder, address, jobs, requests)
            rows.append(row)
            shown.say(f"  {requests:,}: {row['seconds']:.1f} s, {row['most_mib']:.0f} MiB")
    return rows, course


def _show(shown: Report, rows: list[Json], recovery: Json, full: Json) -> None:
    figures = (
        ("seconds", "seconds", 1),
        ("requests/s", "requests_per_s", 0),
        ("CPU µs each", "cpu_us_a_request", 0),
        ("most MiB", "most_mib", 1),
        ("oldest status s", "oldest_status_s", 2),
    )
    shown.table(
        f"daemon with {rows[0]['idle_mib']:.0f} MiB when idle",
        ("requests", *(title for title, _, _ in figures)),
        [
            (f"{row['requests']:,}", *(f"{row[name]:,.{d}f}" for _, name, d in figures))
            for row in rows
        ],
    )
    for what, found in (("half-done job", recovery), ("full queue", full)):
        shown.say(f"  start with a {what}: {found['seconds']['values']} s")
    last, oldest = rows[-1], max(row["oldest_status_s"] for row in rows)
    # Below some thousand requests a job's fixed costs are most of it.
    middle = next((row for row in rows if row["requests"] >= JOB), last)
    linear = last["cpu_us_a_request"] / middle["cpu_us_a_request"]
    shown.goals = [
        Goal("CPU a request, largest size over 50,000", 1.25, linear, at_most=True),
        Goal("most memory, MiB", 150, max(row["most_mib"] for row in rows), at_most=True),
        Goal("oldest status, s (twice its interval)", 2 * INTERVAL_S, oldest, at_most=True),
        Goal("recovery of a half-done job, s", 2, recovery["seconds"]["median"], at_most=True),
        Goal("start with 5 queued jobs, s", 2, full["seconds"]["median"], at_most=True),
    ]


if __name__ == "__main__":
    main()

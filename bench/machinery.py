"""What one request costs the daemon itself, with an engine that answers at once.

Purpose: requests/s from drop to published outbox, and CPU microseconds a request, next
to the same requests through a bare aiohttp loop that writes nothing.
Method: one stand-in engine in a process of its own, one daemon on it; the repetitions
of all ways alternate, and each daemon's run is compared with the bare ones before it: a
bare loop as anyone would write it, and the same on uvloop, which the daemon runs on.
Known limit: client and stand-in share the cores with whatever else runs, so only the
ratios of one run mean something.
"""

import argparse
import time
from pathlib import Path

from bench import report, workload
from bench.processes import Daemon, run_bare, standin, workplace
from bench.report import Goal, Json, Report, Spread

_MICRO = 1e6


def measure(chosen: argparse.Namespace, folder: Path, shown: Report) -> list[Json]:
    """Alternate both ways; one row of figures for each repetition."""
    rows = []
    drawn = workload.Workload(chosen.requests, chosen.prompt_words, 3, output_mean=16)
    path = workload.write(folder / "job.jsonl", drawn.lines())
    sections = {"intake": {"scan_interval_s": 0.5, "settle_s": 0.2}}
    with standin() as address, Daemon(folder / "d", endpoint={"url": address}, **sections) as ours:
        ours.start()
        ours.wait_ready()
        warm = workload.write(folder / "warm.jsonl", list(drawn.lines("w"))[:500])
        ours.run_job(warm, "warm")
        for number in range(chosen.repeat):
            bare = run_bare(address, path, chosen.width)
            quick = run_bare(address, path, chosen.width, "--uvloop")
            # Another tag: the same bytes under another name would be another job all the same.
            job = workload.write(folder / "job.jsonl", drawn.lines(f"{number} "))
            rows.append(_row(bare, quick, ours, job, f"job{number}"))
            shown.say(
                f"  {number + 1}: bare {rows[-1]['bare_rps']:,.0f}/s, "
                f"daemon {rows[-1]['daemon_rps']:,.0f}/s"
            )
    return rows


def _row(bare: Json, quick: Json, ours: Daemon, job: Path, name: str) -> Json:
    cpu = ours.cpu_s()
    dropped = time.time()
    seconds, status = ours.run_job(job, name)
    cpu = ours.cpu_s() - cpu
    count = status["request_counts"]["completed"]
    if count != bare["requests"]:
        msg = f"{bare['requests']} requests were sent and {count} completed"
        raise RuntimeError(msg)
    taken_in_s = ours.event_at("job_started", name) - dropped
    return {
        "bare_rps": count / bare["seconds"],
        "daemon_rps": count / seconds,
        "bare_cpu_us": bare["cpu_s"] * _MICRO / count,
        "daemon_cpu_us": cpu * _MICRO / count,
        "quick_rps": count / quick["seconds"],
        "quick_cpu_us": quick["cpu_s"] * _MICRO / count,
        "ratio": bare["seconds"] / seconds,
        "quick_ratio": quick["seconds"] / seconds,
        "quick_cpu_ratio": quick["cpu_s"] / cpu,
        "cpu_ratio": bare["cpu_s"] / cpu,
        "seconds": seconds,
        "taken_in_s": taken_in_s,
    }


def main() -> None:
    """Measure and show."""
    parser = report.parser(__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--width", type=int, default=128, help="the bare loop's requests at a time")
    parser.add_argument("--prompt-words", type=float, default=60)
    parser.add_argument("--folder", type=Path, help="where the spool lies; its disk counts")
    chosen = parser.parse_args()
    shown = Report("machinery", report.options_of(chosen))
    with workplace(chosen.folder) as folder:
        shown.machine["filesystem"] = report.filesystem(folder)
        rows = measure(chosen, folder, shown)
    spreads = {name: Spread.of(row[name] for row in rows) for name in rows[0]}
    shown.figures = {name: spread.dump() for name, spread in spreads.items()}
    _show(shown, spreads, chosen)
    shown.goals = [
        Goal("requests/s, drop to outbox", 2000, spreads["daemon_rps"].median),
        Goal("share of the bare loop's requests/s", 0.6, spreads["ratio"].median),
    ]
    shown.finish(chosen.json)


def _show(shown: Report, found: dict[str, Spread], chosen: argparse.Namespace) -> None:
    shown.table(
        f"{chosen.requests:,} requests, {chosen.repeat} repetitions, median (range)",
        ("way", "requests/s", "CPU µs a request"),
        [
            ("bare aiohttp loop", found["bare_rps"].show(0), found["bare_cpu_us"].show(0)),
            ("the same on uvloop", found["quick_rps"].show(0), found["quick_cpu_us"].show(0)),
            ("daemon, drop to outbox", found["daemon_rps"].show(0), found["daemon_cpu_us"].show(0)),
            ("daemon as a share of bare", found["ratio"].show(2), found["cpu_ratio"].show(2)),
            (
                "daemon as a share of that on uvloop",
                found["quick_ratio"].show(2),
                found["quick_cpu_ratio"].show(2),
            ),
        ],
    )
    seconds, taken_in_s = found["seconds"].show(2), found["taken_in_s"].show(2)
    shown.say(f"  {seconds} s a job, of which {taken_in_s} from drop to start")


if __name__ == "__main__":
    main()

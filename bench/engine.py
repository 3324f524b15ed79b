"""The daemon's whole path against other ways to drive the same vLLM.

Purpose: requests/s and tokens/s of a set of requests
    daemon            from the drop in inbox/ to the published folder
    bare client       plain aiohttp on the very server that the daemon runs
    LLM.chat          offline, the whole set in one call
    chunks of N       offline, N requests a call, a barrier after each
    run-batch         `vllm run-batch`, from opening the file to its last result
    input order       (--ways order) a second daemon on the same server, without `run.reorder`
Method: one model, one set of flags, one set of lengths.  Each run has texts of its own,
so that none is helped by vLLM's memory of another's.  Server and offline vLLM cannot
share a card, so they come one after the other; daemon and bare client alternate on one
server.  A model's start is in no figure.  All requests ignore the end-of-text token, so
that every way makes the same number of tokens.
Known limits: chats only; a run-batch or offline run has one repetition.

    python -m bench.engine                          on a CPU, the demo model, tiny
    python -m bench.engine --shape 8b               on a GPU, dummy weights
    python -m bench.engine --ways order --prefixes 300 --prefix-words 900 --prompt-mean 60
"""

import argparse
import shlex
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import drivers, models, report, workload
from bench.course import watching
from bench.plot import MISSING, draw_window
from bench.processes import Daemon, Json, run_bare, workplace
from bench.report import Goal, Report, Spread

DAEMON, BARE, WHOLE, BATCH = "daemon", "bare client", "LLM.chat", "run-batch"
PLAIN = "daemon, input order"
LOOK_S = 0.5
# A scan so often shows a drop at once, so that its settling is not what is measured.
PROMPT: dict[str, Json] = {
    "intake": {"settle_s": 0.3, "scan_interval_s": 0.5},
    "status": {"interval_s": 1},
}
GOALS = {WHOLE: 1.03, BATCH: 1.04, "chunks of 500": 1.3, BARE: 0.99}
# About 500 prompt tokens and 88 output tokens, as in the figures that the goals come from.
FULL = {"requests": 3000, "width": 1024, "warm": 600}
TINY = {
    "requests": 24,
    "width": 64,
    "warm": 4,
    "repeat": 1,
    "prompt_mean": 40.0,
    "prompt_sd": 10.0,
    "output_mean": 12.0,
    "output_max": 32,
}


@dataclass
class Bench:
    """One run: what is driven, and what was found so far."""

    chosen: argparse.Namespace
    model: models.Model
    folder: Path
    shown: Report
    found: dict[str, list[Json]] = field(default_factory=dict)
    starts: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    # -- sets of requests -----------------------------------------------------------

    def file(self, name: str, requests: int | None = None) -> Path:
        """The workload under texts of its own; the first so many requests, or all."""
        lines = list(self._lines(name))[:requests]
        return workload.write(self.folder / f"{name}.jsonl", lines)

    def _lines(self, name: str) -> Iterable[bytes]:
        tag = f"{zlib.crc32(name.encode()) % 10_000:04}"  # as many tokens for every name
        given: Path | None = self.chosen.file
        if given is not None:
            return workload.retagged(given.read_bytes().split(b"\n"), tag, models.NAME)
        return workload.from_options(self.chosen).lines(f"{tag} ", models.NAME)

    def note(self, way: str, figures: Json) -> None:
        """Keep and tell one run's figures."""
        self.found.setdefault(way, []).append(figures)
        rate, tokens = figures["requests"], figures["output_tokens"]
        self.shown.say(
            f"  {way}: {rate} requests in {figures['seconds']:.2f} s, "
            f"{rate / figures['seconds']:.2f}/s, {tokens / figures['seconds']:,.0f} tokens/s"
        )

    def attempt(self, what: str, step: Callable[[], None]) -> None:
        """Take a step; what fails is told and does not keep the others from running."""
        self.shown.say(f"[bold]{what}[/]")
        try:
            step()
        except (RuntimeError, OSError) as error:
            self.failed[what] = str(error)[-3000:]
            self.shown.console.print(f"  failed: {error}", markup=False)

    # -- the ways -------------------------------------------------------------------

    @contextmanager
    def _serving(self) -> Iterator[Daemon]:
        """The daemon with its vLLM, ready and warm."""
        engine = {
            "model": str(self.model.folder),
            "served_model_name": models.NAME,
            "args": list(self.model.args),
            "env": self.model.env,
        }
        with Daemon(self.folder / "d", engine=engine, **PROMPT) as daemon:
            daemon.start()
            self.starts["server"] = daemon.wait_ready(1800)
            self.shown.machine["vllm"] = daemon.status_now()["engine"].get("version")
            self.shown.say(f"  ready after {self.starts['server']:.0f} s, {front_end(daemon)}")
            warm = self.file("warm", self.chosen.warm)
            run_bare(f"unix:{daemon.socket()}", warm, self.chosen.width)
            yield daemon
            self.shown.figures["daemon_memory_mib"] = daemon.memory_mib("VmHWM")

    def server(self) -> None:
        """The daemon with its vLLM, and the bare client on the same server."""
        with self._serving() as daemon:
            address = f"unix:{daemon.socket()}"

            def bare(number: int) -> None:
                self.note(BARE, run_bare(address, self.file(f"bare{number}"), self.chosen.width))

            self._alternate(lambda number: self._daemon(DAEMON, daemon, f"daemon{number}"), bare)

    def order(self) -> None:
        """The daemon with and without its order of work, on one server."""
        with self._serving() as daemon:
            endpoint = {"url": f"unix:{daemon.socket()}"}
            run = {"reorder": False}
            with Daemon(self.folder / "plain", endpoint=endpoint, run=run, **PROMPT) as plain:
                plain.start()
                plain.wait_ready()
                # Each has found its window before it is measured.
                for each in (daemon, plain):
                    each.run_job(
                        self.file(f"settle-{each.folder.name}", self.chosen.warm), "settle"
                    )
                self._alternate(
                    lambda number: self._daemon(DAEMON, daemon, f"ordered{number}"),
                    lambda number: self._daemon(PLAIN, plain, f"plain{number}"),
                )

    def _daemon(self, way: str, daemon: Daemon, name: str) -> None:
        """One job through a daemon."""
        path, cpu = self.file(name), daemon.cpu_s()
        with watching(daemon, LOOK_S) as course:
            seconds, status = daemon.run_job(path, name)
        cpu = daemon.cpu_s() - cpu
        output = daemon.spool / "outbox" / name / "output.jsonl"
        seen = {"cpu_s": cpu, "energy_j": status["energy_j"], "course": course.dump()}
        self.note(way, drivers.counted(output, seconds) | seen)
        if status["energy_j"] is not None:
            used, each = status["energy_j"], status["energy_j_per_1000_output_tokens"]
            self.shown.say(f"    {used:,.0f} J, {each:,.1f} J per 1,000 output tokens")
        if self.chosen.plot and not draw_window(self.chosen.plot, course.looks, way):
            self.shown.say(MISSING)

    def _alternate(self, *steps: Callable[[int], None]) -> None:
        """Repeat two ways while there is time, in turns of who is first."""
        for number in range(self.chosen.repeat):
            began = time.monotonic()
            for step in steps if number % 2 == 0 else reversed(steps):
                step(number)
            if not self._has_time(time.monotonic() - began):
                self.shown.say("  no time for further repetitions")
                break

    def _has_time(self, pair_s: float) -> bool:
        """Return whether another pair leaves enough for what must still come."""
        starts = ("offline" in self.chosen.ways) + ("batch" in self.chosen.ways)
        # Half a pair is one set; the chunks take a third longer than the whole.
        sets = 1 + 1.35 * len(self._plan()) if starts else 0
        later = starts * self.starts["server"] + sets * pair_s / 2
        elapsed = time.time() - self.shown.began
        return bool(elapsed + pair_s + later < self.chosen.budget_s)

    def _plan(self) -> dict[str, int]:
        """The offline ways and their chunks; one that is not smaller than the set is no other."""
        chunks = [size for size in self.chosen.chunks if size < self.chosen.requests]
        return {WHOLE: 0} | {f"chunks of {size}": size for size in chunks}

    def offline(self) -> None:
        """`LLM.chat`, whole and in chunks."""
        plan = {
            way: (self.file(f"offline{number}"), chunk)
            for number, (way, chunk) in enumerate(self._plan().items())
        }
        warm = self.file("warmed", self.chosen.warm)
        self.starts["offline"], figures = drivers.offline(self.model, plan, warm)
        for each in figures:
            self.note(each.pop("way"), each)

    def batch(self) -> None:
        """`vllm run-batch`."""
        output = self.folder / "batch-output.jsonl"
        started, figures = drivers.run_batch(self.model, self.file("batch"), output)
        self.starts[BATCH] = started
        self.note(BATCH, figures)


def front_end(daemon: Daemon) -> str:
    """Which of vLLM's front ends the daemon's engine runs, by its command."""
    rust = b"vllm.entrypoints.cli.main" in daemon.log.read_bytes()
    return "Rust front end" if rust else "Python front end"


def rates(runs: list[Json], what: str) -> Spread:
    """A count for each second, over all runs of one way."""
    return Spread.of(run[what] / run["seconds"] for run in runs)


def show(bench: Bench) -> None:
    """The table, the figures for JSON, and the goals."""
    rows, figures = [], bench.shown.figures
    reference = bench.found.get(DAEMON)
    for way, runs in bench.found.items():
        requests, tokens = rates(runs, "requests"), rates(runs, "output_tokens")
        both = runs[0]["input_tokens"] + runs[0]["output_tokens"]
        ratio = rates(reference, "requests").median / requests.median if reference else None
        figures[way] = {
            "requests_per_s": requests.dump(),
            "output_tokens_per_s": tokens.dump(),
            "daemon_over_this": ratio,
            "runs": runs,
        }
        shown_ratio = "" if ratio is None or way == DAEMON else f"{ratio:.3f}"
        rows.append((way, requests.show(2), tokens.show(0), f"{both:,}", shown_ratio))
    columns = ("way", "requests/s", "output tokens/s", "tokens in all", "daemon as a multiple")
    bench.shown.table("median (range)", columns, rows)
    figures |= {"starts_s": bench.starts, "failed": bench.failed}
    started = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in bench.starts.items())
    bench.shown.say(f"  starts, in no figure: {started}")
    if bench.chosen.shape == "8b":
        for way, wanted in GOALS.items():
            seen = figures.get(way, {}).get("daemon_over_this")
            bench.shown.goals.append(Goal(f"daemon as a multiple of {way}", wanted, seen))


def parse(shown_gpu: str | None) -> argparse.Namespace:
    """The command line; sizes depend on whether there is a GPU."""
    parser = report.parser(__doc__)
    workload.add_options(parser)
    parser.add_argument("--file", type=Path, help="a job's file instead of a drawn workload")
    parser.add_argument("--shape", choices=[models.DEMO, *models.SHAPES], default=models.DEMO)
    parser.add_argument(
        "--tokenizer", type=Path, default=models.demo_folder(), help="the demo model's folder"
    )
    parser.add_argument("--engine-args", type=shlex.split, default="", help="vLLM's flags")
    parser.add_argument(
        "--ways", nargs="+", choices=["server", "offline", "batch", "order"],
        default=["server", "offline", "batch"],
    )  # fmt: skip
    parser.add_argument("--chunks", type=int, nargs="*", default=[5000, 500])
    parser.add_argument("--repeat", type=int, default=3, help="of daemon and bare client")
    parser.add_argument("--width", type=int, help="the bare client's requests at a time")
    parser.add_argument("--warm", type=int, help="requests that each start is warmed with")
    parser.add_argument(
        "--plot",
        type=Path,
        help="write a PNG of the window over the last job there; needs matplotlib",
    )
    parser.add_argument("--budget-s", type=float, default=470, help="for all of it")
    parser.add_argument("--folder", type=Path, help="where the spool lies; its disk counts")
    parser.set_defaults(**(FULL if shown_gpu else TINY))
    chosen = parser.parse_args()
    if chosen.file is not None:
        chosen.requests = sum(1 for line in chosen.file.open("rb") if line.strip())
    return chosen


def main() -> None:
    """Run all ways one after the other and show them."""
    gpu = report.machine()["gpu"]
    chosen = parse(gpu)
    shown = Report("engine", report.options_of(chosen))
    with workplace(chosen.folder) as folder:
        model = models.make(
            chosen.shape, chosen.tokenizer, folder, chosen.engine_args, gpu=bool(gpu)
        )
        shown.machine["filesystem"] = report.filesystem(folder)
        bench = Bench(chosen, model, folder, shown)
        for way in chosen.ways:
            bench.attempt(way, getattr(bench, way))
        show(bench)
    shown.finish(chosen.json)


if __name__ == "__main__":
    main()

"""How fast a file is checked, next to parsing it and to vLLM's own check.

Purpose: MB/s of inbox_daemon.request.validation.validate_file against a loop of orjson.loads
over the same lines, and against what `vllm run-batch` does to them before it runs any.
Method: one file for each length of line; the ways alternate within each repetition, all
in this process, in seconds of its CPU time, because each keeps one core busy and what
else the machine does is not theirs; the file is in the page cache.
Known limit: vLLM's way is run where vLLM is installed; only its checks are called, on
the same strings and in the same order as in its run_batch.
"""

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from bench import report, workload
from bench.processes import workplace
from bench.report import Goal, Report, Spread
from inbox_daemon.contract.config import LimitsConfig
from inbox_daemon.request.validation import Served, validate_file

# The mean words of a prompt, by the name of the file that is made of them.
SHAPES = {"short lines": 20.0, "typical lines": 430.0, "long lines": 6000.0}
# Where vLLM keeps BatchRequestInput: since 0.31, and before.
_RUN_BATCH = ("vllm.entrypoints.launchers.run_batch", "vllm.entrypoints.openai.run_batch")
OURS, PARSING, VLLM = "validate_file", "orjson.loads alone", "vllm run-batch's check"
_MEGA = 1e6

Way = Callable[[Path], int]


def ours(path: Path) -> int:
    """Check the file as the daemon does; return the requests that it found good."""
    limits = LimitsConfig(max_requests_per_job=10_000_000)
    found = validate_file(path, limits, Served())
    return found.requests - found.faults


def parsing(path: Path) -> int:
    """Only parse each line."""
    count = 0
    with path.open("rb", buffering=1 << 20) as file:
        for line in file:
            orjson.loads(line)
            count += 1
    return count


def vllm_check() -> Way | None:
    """The check of vLLM, if that is installed."""
    model: Any = None
    for name in _RUN_BATCH:
        try:
            model = importlib.import_module(name).BatchRequestInput
        except (ImportError, AttributeError):
            continue
        break
    if model is None:
        return None

    def check(path: Path) -> int:
        count = 0
        for text in path.read_text(encoding="utf-8").strip().split("\n"):
            stripped = text.strip()
            if stripped:
                model.model_validate_json(stripped)
                count += 1
        return count

    return check


def measure(path: Path, ways: dict[str, Way], repeat: int) -> dict[str, Spread]:
    """MB/s of each way, the ways taking turns.

    Raises RuntimeError: a way did not find every line good.
    """
    lines, megabytes = path.read_bytes().count(b"\n"), path.stat().st_size / _MEGA
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            began = time.process_time()
            found = way(path)
            taken[name].append(megabytes / (time.process_time() - began))
            if found != lines:
                msg = f"{name} took {found} of {lines} lines for good"
                raise RuntimeError(msg)
    return {name: Spread.of(values) for name, values in taken.items()}


def ratios(found: dict[str, Spread], name: str) -> Spread:
    """Our speed as a multiple of another way's, repetition by repetition."""
    pairs = zip(found[OURS].values, found[name].values, strict=True)
    return Spread.of(mine / other for mine, other in pairs)


def main() -> None:
    """Measure and show."""
    parser = report.parser(__doc__)
    parser.add_argument("--megabytes", type=float, default=20.0, help="size of each file")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--no-vllm", action="store_true", help="leave vLLM's check out")
    parser.add_argument("--folder", type=Path, help="where the files are made")
    chosen = parser.parse_args()
    shown = Report("validate", report.options_of(chosen))
    ways: dict[str, Way] = {PARSING: parsing, OURS: ours}
    theirs = None if chosen.no_vllm else vllm_check()
    if theirs:
        ways[VLLM] = theirs
    with workplace(chosen.folder) as folder:
        for shape, words in SHAPES.items():
            path = _file(folder, words, chosen.megabytes)
            _show(shown, shape, path, measure(path, ways, chosen.repeat))
    shown.finish(chosen.json)


def _file(folder: Path, words: float, megabytes: float) -> Path:
    """A file of about that size."""
    one = workload.Workload(50, words, words / 8)
    size = sum(map(len, one.lines())) / one.requests
    drawn = workload.Workload(max(1, round(megabytes * _MEGA / size)), words, words / 8)
    return workload.write(folder / "job.jsonl", drawn.lines())


def _show(shown: Report, shape: str, path: Path, found: dict[str, Spread]) -> None:
    lines = path.read_bytes().count(b"\n")
    size = path.stat().st_size
    rows = []
    shown.figures[shape] = {"lines": lines, "bytes": size}
    for name, spread in found.items():
        ratio = ratios(found, name)
        shown.figures[shape][name] = {"mb_per_s": spread.dump(), "ours_over_this": ratio.dump()}
        seconds = size / _MEGA / spread.median
        row = (f"{seconds / lines * _MEGA:,.1f}", "" if name == OURS else ratio.show(2))
        rows.append((name, spread.show(0), *row))
    title = f"{shape}: {lines:,} of {size / lines:,.0f} bytes; median (range)"
    shown.table(title, ("way", "MB/s", "µs a line", "ours as a multiple"), rows)
    seen = {name: ratios(found, name).median for name in found}
    shown.goals.append(Goal(f"{shape}: share of {PARSING}", 0.5, seen[PARSING]))
    shown.goals.append(Goal(f"{shape}: multiple of {VLLM}", 3, seen.get(VLLM)))


if __name__ == "__main__":
    main()

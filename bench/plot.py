"""The plots of bench.scale and bench.engine.

Known limit: matplotlib is an optional extra; without it there is no plot.
"""

from pathlib import Path
from typing import Any

from bench.course import Look

Json = dict[str, Any]
MISSING = "  no plot: matplotlib is not installed (pip install 'inbox-daemon[bench]')"


def draw_growth(path: Path, rows: list[Json], looks: list[Look]) -> bool:
    """Write time and memory over requests, and memory over time; False without matplotlib."""
    figure = _figure(12, 4)
    if figure is None:
        return False
    time_axes, most_axes, course_axes = figure.subplots(1, 3)
    requests = [row["requests"] / 1000 for row in rows]
    _line(time_axes, requests, [row["seconds"] for row in rows], "o-")
    time_axes.set(title="time, drop to outbox", xlabel="thousand requests", ylabel="seconds")
    _line(most_axes, requests, [row["most_mib"] for row in rows], "o-")
    most_axes.axhline(150, color="grey", linestyle="--", label="goal: 150 MiB")
    most_axes.set(title="the daemon's memory at most", xlabel="thousand requests", ylabel="MiB")
    most_axes.set_ylim(0, 1.15 * max(150, *(row["most_mib"] for row in rows)))
    most_axes.legend()
    _line(course_axes, [look.at_s for look in looks], [look.memory_mib for look in looks], "-")
    title = f"its memory during {rows[-1]['requests']:,} requests"
    course_axes.set(title=title, xlabel="seconds", ylabel="MiB")
    figure.savefig(path, dpi=110)
    return True


def draw_window(path: Path, looks: list[Look], title: str) -> bool:
    """Write the window's course over one job; False without matplotlib."""
    figure = _figure(9, 4.5)
    if figure is None:
        return False
    axes = figure.subplots()
    at = [look.at_s for look in looks]
    for name in ("window", "in_flight", "running", "waiting"):
        values = [getattr(look, name) for look in looks]
        # What the engine does not say leaves a gap.
        axes.plot(at, [float("nan") if value is None else value for value in values], label=name)
    axes.set(title=title, xlabel="seconds since the drop", ylabel="requests")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    return True


def _figure(width: float, height: float) -> Any:  # noqa: ANN401 - matplotlib's Figure, or None
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")


def _line(axes: Any, across: list[float], up: list[float], style: str) -> None:  # noqa: ANN401 - matplotlib's Axes
    axes.plot(across, up, style)
    axes.set_xlim(left=0)
    axes.set_ylim(0, max(up) * 1.15)
    axes.grid(visible=True, alpha=0.3)

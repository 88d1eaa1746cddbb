"""Horizontal bars of speed and memory, readable in light and dark mode."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.preprocess.arms import OURS, ArmResult

TEXT_COLOR = "#7d7d7d"  # contrast 4.1 to white, 4.6 to GitHub's black
RANGE_COLOR = "#666666"
OUR_COLOR, PEER_COLOR = "#3b82f6", "#b0b0b0"


def draw_plot(results: Sequence[ArmResult], text_bytes: int, path: Path) -> None:
    """Save the bars as SVG with a transparent background."""
    with mpl.rc_context({"svg.hashsalt": "preprocess", "font.size": 10}):
        figure = Figure(figsize=(10, 0.8 + 0.4 * len(results)), layout="constrained")
        speed, memory = figure.subplots(1, 2, sharey=True)
        _draw_bars(speed, results, [result.series.megabytes_per_second(text_bytes) for result in results])
        _draw_bars(memory, results, [result.series.peak_megabytes for result in results])
        speed.set_title("MB of text per second (more is better)", color=TEXT_COLOR)
        memory.set_title("peak memory in MB (less is better)", color=TEXT_COLOR)
        speed.invert_yaxis()
        figure.savefig(path, transparent=True, metadata={"Date": None})


def _draw_bars(axes: Axes, results: Sequence[ArmResult], runs: Sequence[Sequence[float]]) -> None:
    names = [result.arm.name for result in results]
    middles = [median(values) for values in runs]
    least = [middle - min(values) for middle, values in zip(middles, runs, strict=True)]
    most = [max(values) - middle for middle, values in zip(middles, runs, strict=True)]
    colors = [OUR_COLOR if name == OURS else PEER_COLOR for name in names]
    axes.barh(names, middles, height=0.6, color=colors, xerr=[least, most], ecolor=RANGE_COLOR, capsize=3)
    for row, values in enumerate(runs):
        axes.annotate(
            f"{middles[row]:,.0f}" if middles[row] >= 100 else f"{middles[row]:.1f}",
            (max(values), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=TEXT_COLOR,
        )
    axes.margins(x=0.15)
    axes.tick_params(colors=TEXT_COLOR, length=0)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_visible(False)

"""The picture: sentences per second as bars, the bound as a line. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark.contenders import OURS, Contender, label

INK, DIM, GREY, BLUE, PALE, RED = "#222222", "#666666", "#b4b9c1", "#2463ae", "#8fb2dc", "#b3372f"
COLOURS = {"compiled": BLUE, "kernels": BLUE, "packed": BLUE, "padded": PALE}
ABOVE: dict[str, Any] = {
    "xycoords": ("data", "axes fraction"),
    "textcoords": "offset points",
    "ha": "center",
    "fontsize": 10,
}


def plot(compared: Sequence[Contender], summary: dict[str, Any], title: str, subtitle: str, target: Path) -> None:
    """Write the picture as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [contender for contender in compared if contender.name in summary["rows"]]
    height = 2.0 + 0.42 * len(rows)  # inches; title and axis take the same height for any number of rows
    figure, axes = pyplot.subplots(figsize=(9.6, height))
    figure.subplots_adjust(left=0.27, right=0.97, top=1 - 1.28 / height, bottom=0.62 / height)
    # A gap separates the rows of this program from those of the peer.
    places = [-number - 0.35 * (contender.trainer == OURS) for number, contender in enumerate(rows)]
    _bars(axes, rows, places, summary)
    axes.annotate(f"bound {summary['bound']:,.1f}", (summary["bound"], 1), (0, 3), color=RED, **ABOVE)
    axes.set_yticks(places, [label(row).replace("  + ", "+ ").strip() for row in rows], fontsize=10, color=INK)
    axes.set_ylim(places[-1] - 0.5, 0.5)
    fastest = max(summary["rows"][row.name]["median"] for row in rows)
    axes.set_xlim(0, max(1.08 * summary["bound"], 1.22 * fastest))
    words = "sentences per second: median, with a line from the slowest to the fastest round"
    axes.set_xlabel(words, fontsize=9, color=DIM)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9, colors=DIM)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    figure.text(0.015, 1 - 0.16 / height, title, va="top", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.015, 1 - 0.46 / height, subtitle, va="top", fontsize=8.5, color=DIM, linespacing=1.4)
    figure.savefig(target, dpi=160)
    pyplot.close(figure)


def _bars(axes: Any, rows: Sequence[Contender], places: Sequence[float], summary: dict[str, Any]) -> None:
    """Draw a bar for each row, its spread as a line, and its speed in figures; and the line of the bound."""
    shipped = summary["rows"].get("peer", {}).get("median")
    speeds = [summary["rows"][row.name]["median"] for row in rows]
    axes.axvline(summary["bound"], color=RED, linewidth=1.4, linestyle=(0, (4, 2)), zorder=1)
    axes.barh(places, speeds, height=0.68, color=[COLOURS.get(row.name, GREY) for row in rows], zorder=2)
    for row, place, speed in zip(rows, places, speeds, strict=True):
        lowest, highest = (summary["rows"][row.name][end] for end in ("lowest", "highest"))
        axes.plot([lowest, highest], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt", zorder=3)
        words = f"{speed:,.0f}" if speed >= 1000 else f"{speed:.1f}"
        axes.annotate(
            words + (f"   {speed / shipped:.2f} x" if shipped else ""),
            (max(speed, highest), place),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            zorder=4,
        )

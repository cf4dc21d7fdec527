"""The plots of a report, as SVG that stands in the page and takes its colours.

matplotlib writes fixed colours; those named here are replaced by the page's own variables, which differ between the
light and the dark theme. Text stays text. No text of the corpus or of the user is drawn: matplotlib would read a `$` as
a formula.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from simcse_train.report.summary import Cosines, Summary

RUNS = 8  # runs that have a colour of their own
INK, MUTED, GRID, BEFORE, AFTER = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = [f"#0{i}0606" for i in range(RUNS)]
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", BEFORE: "--before", AFTER: "--after"} | {
    colour: f"--run{i}" for i, colour in enumerate(SERIES)
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
TICKS = 5  # at most, on each axis: most of the time that a plot takes goes into them
SIZE = (5.0, 2.8)  # inches; the page scales them
MARGINS = {"left": 0.15, "right": 0.98, "bottom": 0.17, "top": 0.96}


def curves(summaries: Sequence[Summary], measure: str) -> str:
    """Return a measure of one or more runs over the steps."""
    with matplotlib.rc_context(cast(Any, STYLE)):
        figure, axes = _figure()
        for summary, colour in zip(summaries, _colours(len(summaries)), strict=True):
            steps, values = summary.curve(measure)
            axes.plot(steps, values, color=colour, linewidth=1.6, marker="o" if len(steps) < 25 else "", markersize=3)
        axes.set_xlabel("step")
        return _svg(figure, measure)


def plane(summaries: Sequence[Summary]) -> str:
    """Return the path of each run from its start (ring) to its end (disc) over alignment and uniformity.

    Both are better lower (Wang & Isola 2020, figure 1; Gao, Yao & Chen 2021, figure 3).
    """
    with matplotlib.rc_context(cast(Any, STYLE)):
        figure, axes = _figure()
        for summary, colour in zip(summaries, _colours(len(summaries)), strict=True):
            points = [
                (line["alignment"], line["uniformity"])
                for line in summary.lines
                if line.get("alignment") is not None and line.get("uniformity") is not None
            ]
            if not points:
                continue
            aligned, uniform = zip(*points, strict=True)
            axes.plot(aligned, uniform, color=colour, linewidth=1.2, marker=".", markersize=4, alpha=0.8)
            axes.plot(aligned[0], uniform[0], color=colour, marker="o", markersize=9, fillstyle="none")
            axes.plot(aligned[-1], uniform[-1], color=colour, marker="o", markersize=8)
        axes.set_xlabel("alignment")
        axes.set_ylabel("uniformity")
        return _svg(figure, "plane")


def distributions(before: Cosines, after: Cosines, kind: str) -> str:
    """Return the distributions of one kind of cosines before and after training."""
    with matplotlib.rc_context(cast(Any, STYLE)):
        figure, axes = _figure()
        values = [getattr(cosines, kind) for cosines in (before, after)]
        low, high = min(map(np.min, values)), max(map(np.max, values))
        bins = np.linspace(low - 0.01, high + 0.01, 40)
        for found, colour in zip(values, (BEFORE, AFTER), strict=True):
            shares = 100 * np.histogram(found, bins)[0] / len(found)
            axes.stairs(shares, bins, color=colour, alpha=0.5, fill=True)
            axes.stairs(shares, bins, color=colour)
        axes.set_xlabel("cosine")
        axes.set_ylabel("% of pairs")
        return _svg(figure, kind)


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE)  # with margins of a fixed size: a computed layout draws every plot twice
    axes = figure.subplots(gridspec_kw=MARGINS)
    axes.locator_params(nbins=TICKS)
    return figure, axes


def _colours(runs: int) -> list[str]:
    return [AFTER] if runs == 1 else [SERIES[i % RUNS] for i in range(runs)]


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element without a size, a background, metadata, fonts or colours of its own."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # identifiers that differ between the plots of a page
        figure.savefig(stream, format="svg", transparent=True)
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    text = re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*" ', r'<svg role="img" \1', text)
    text = re.sub(r' id="[a-z0-9.]+_\d+"', "", text)  # of groups; nothing refers to them
    text = re.sub(r"font-family: [^;\"]*|font: [\d.]+px [^;\"]*", lambda found: _font(found.group()), text)
    return re.sub("|".join(VARIABLES), lambda found: f"var({VARIABLES[found.group()]})", text)


def _font(declared: str) -> str:
    size = re.match(r"font: ([\d.]+px)", declared)
    return f"font-size: {size.group(1)}" if size else "font-family: inherit"

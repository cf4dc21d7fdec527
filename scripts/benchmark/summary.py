"""Times of steps to figures: the table, the ratios that are goals, and the profile.

A round gives each contender one speed: the sentences of its steps divided by their time. Contended steps are left out
of that as long as a quarter of the steps remains; otherwise all steps count and the row is marked with `*`. A row
with data loader workers keeps all steps, since there its own workers make it wait. The table shows the median over
the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from scripts.benchmark.contenders import Contender, label
from scripts.benchmark.turns import Report

GOALS = {"shipped": 6.0, "switched": 2.0, "bound": 0.7}  # with kernels, on AVX-512 with bfloat16
GOALS_WITH_AMX = GOALS | {"bound": 0.5}  # products take less of a step there, so the bound is farther off
ENOUGH = 0.25  # share of the steps that must be left without the contended ones


def steps_per_second(reports: Sequence[Report], *, own_workers: bool = False) -> tuple[float, bool]:
    """Return the speed of a round, and whether contended steps had to be counted."""
    clean = [report.seconds for report in reports if not report.contended]
    if own_workers or len(clean) < ENOUGH * len(reports):
        return len(reports) / sum(report.seconds for report in reports), not own_workers
    return len(clean) / sum(clean), False


def summarize(
    compared: Sequence[Contender],
    rounds: dict[str, list[list[Report]]],
    products: Sequence[list[Report]],
    batch_size: int,
    flops_per_product_step: float,
    flops_per_sentence: float,
) -> dict[str, Any]:
    """Return the rows, the bound in sentences per second, and the three ratios that are goals (None where unknown).

    rounds: for each contender and round, the reports of its steps; products: the same for the steps of the bound.
    """
    rows: dict[str, dict[str, Any]] = {}
    for contender in compared:
        measured = rounds.get(contender.name) or []
        if not measured:
            continue
        found = [steps_per_second(reports, own_workers=contender.workers > 0) for reports in measured]
        speeds = [speed * batch_size for speed, _ in found]
        every = [report for reports in measured for report in reports]
        rows[contender.name] = {
            "median": statistics.median(speeds),
            "lowest": min(speeds),
            "highest": max(speeds),
            "steps": len(every),
            "contended": sum(report.contended for report in every),
            "marked": any(marked for _, marked in found),
            "memory": statistics.median(reports[-1].memory for reports in measured),
            "device_memory": statistics.median(reports[-1].device_memory for reports in measured),
        }
    rates = [steps_per_second(reports)[0] * flops_per_product_step for reports in products]
    bound = statistics.median(rates) / flops_per_sentence
    speed = {name: row["median"] for name, row in rows.items()}
    switched = max((name for name in speed if name.startswith("peer-")), key=speed.__getitem__, default=None)
    ours = speed.get("kernels", speed.get("packed"))
    return {
        "rows": rows,
        "bound": bound,
        "products_per_second": rates,
        "fastest_switched": switched,
        "ratios": {
            "shipped": ours / speed["peer"] if ours and "peer" in speed else None,
            "switched": ours / speed[switched] if ours and switched else None,
            "bound": ours / bound if ours else None,
        },
    }


def table(compared: Sequence[Contender], summary: dict[str, Any], failures: dict[str, str]) -> str:
    """Return the table of all rows with their switches."""
    head = f"{'':<34}{'sorted':>7}{'1 pass':>7}{'workers':>8}{'precision':>10}{'sentences/s':>13}{'(min-max)':>16}"
    lines = [head + f"{'contended':>11}{'memory MiB':>12}{'x shipped':>11}{'of bound':>10}"]
    shipped = summary["rows"].get("peer", {}).get("median")
    for contender in compared:
        switches = f"{_mark(contender.sorted):>7}{_mark(contender.one_pass):>7}{contender.workers or '-':>8}"
        line = f"{label(contender):<34}{switches}{contender.precision:>10}"
        if contender.name in failures:
            lines.append(f"{line}  failed: {failures[contender.name]}")
            continue
        row = summary["rows"][contender.name]
        speed = f"{row['median']:.1f}" + "*" * row["marked"]
        spread = f"({row['lowest']:.1f}-{row['highest']:.1f})"
        contended = f"{row['contended']}/{row['steps']}"
        memory = f"{row['memory']:.0f}" + (f"+{row['device_memory']:.0f}" if row["device_memory"] else "")
        ratio = f"{row['median'] / shipped:.2f}" if shipped else "-"
        share = f"{row['median'] / summary['bound']:.0%}"
        lines.append(f"{line}{speed:>13}{spread:>16}{contended:>11}{memory:>12}{ratio:>11}{share:>10}")
    ratio = f"{summary['bound'] / shipped:.2f}" if shipped else "-"
    lines.append(f"{'bound':<34}{'':>32}{summary['bound']:>13.1f}{'':>39}{ratio:>11}{1:>10.0%}")
    if any(row["marked"] for row in summary["rows"].values()):
        lines.append("* Other programs ran at the same time; contended steps are included.")
    return "\n".join(lines)


def goals_of(capabilities: Sequence[str]) -> dict[str, float]:
    """Return the goals on a processor with these instruction sets (see `machine.ARITHMETIC`)."""
    return GOALS_WITH_AMX if "amx_bf16" in capabilities else GOALS


def goals(summary: dict[str, Any], wanted: dict[str, float]) -> str:
    """Return a line for each goal: the goal, the figure, and whether it is met."""
    fastest = summary["fastest_switched"] or "none measured"
    words = {
        "shipped": f"at least {wanted['shipped']} x sentence-transformers as shipped",
        "switched": f"at least {wanted['switched']} x its fastest row with switches ({fastest})",
        "bound": f"at least {wanted['bound']:.0%} of the bound",
    }
    lines = []
    for name, described in words.items():
        reached = summary["ratios"][name]
        figure = "not measured" if reached is None else f"{reached:.1%}" if name == "bound" else f"{reached:.2f} x"
        verdict = "" if reached is None else "met" if reached >= wanted[name] else "NOT met"
        lines.append(f"{described:<66}{figure:>13}  {verdict}".rstrip())
    return "\n".join(lines)


def profile_table(operators: Sequence[dict[str, Any]]) -> str:
    """Return the operators of a step, the most expensive first."""
    lines = [f"{'operator':<58}{'of the step':>12}{'ms a step':>11}{'calls':>8}"]
    for entry in operators:
        figures = f"{entry['share']:>12.1%}{entry['milliseconds']:>11.1f}{entry['calls']:>8.0f}"
        lines.append(f"{entry['operator'][:56]:<58}{figures}")
    return "\n".join(lines)


def _mark(used: bool) -> str:
    return "yes" if used else "-"

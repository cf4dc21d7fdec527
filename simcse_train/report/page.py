"""The report of a run, or of several side by side: one HTML page that needs no network and holds no script.

Everything that comes from the corpus or the user is escaped by the template engine; the page also forbids scripts and
requests of any kind by its content security policy. Needs jinja2 and matplotlib, of the extra `report`.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simcse_train.config import TrainConfig
from simcse_train.errors import InputError, SaveError, one_line
from simcse_train.report.html import make_environment
from simcse_train.report.summary import Seen, Summary, summarise
from simcse_train.runs.atomic import write_text
from simcse_train.runs.folder import CONFIG, with_name

PAGE, COMPARISON = "report.html", "comparison.html"
INSTALL = "pip install 'simcse-train[report]'"
KINDS = {
    "views": "Two views of one sentence",
    "nearest": "A sentence and its nearest neighbour",
    "random": "Two random sentences",
}

logger = logging.getLogger(__name__)


def is_available() -> bool:
    """Return whether the libraries that draw the page are installed."""
    return all(find_spec(name) is not None for name in ("jinja2", "matplotlib"))


def write_report(runs: Sequence[Path], seen: Seen | None = None) -> Path:
    """Write the page of a run as RUN/report.html, or that of several runs as comparison.html in the first; return it.

    `seen` is what the encoders of a single run make of its held-out sentences, if that is known already. Raises
    `InputError` if a folder is no run or the libraries are missing, `SaveError` if the page cannot be written.
    """
    if not is_available():
        raise InputError(f"The report needs jinja2 and matplotlib. Install them: {INSTALL}.")
    runs = [with_name(run) for run in runs]
    summaries = [summarise(run, with_sentences=len(runs) == 1, seen=seen) for run in runs]
    path = runs[0] / (PAGE if len(runs) == 1 else COMPARISON)
    write_text(path, render(summaries))
    return path


def report_at_end(run: Path, seen: Seen | None = None) -> None:
    """Write the page of a run that has just ended, and say where it is or why there is none; never raises.

    `seen` is as for `write_report`.
    """
    if not is_available():
        logger.info(f"For a report page: {INSTALL}, then simcse-train report {shlex.quote(str(run))}")
        return
    try:
        logger.info(f"Report: {write_report([run], seen)}")
    except (InputError, SaveError) as error:
        logger.warning(f"The report page could not be written. {error}")
    except Exception as error:  # the encoder is trained and saved, and a page must not turn that into a failure
        reason = one_line(error)
        logger.warning(f"The report page could not be written ({type(error).__name__}: {reason}).")


def render(summaries: Sequence[Summary]) -> str:
    """Return the page of one run, or of several side by side."""
    from markupsafe import Markup

    from simcse_train.report import plots

    measures = list(dict.fromkeys(name for summary in summaries for name in summary.measures()))
    cosines = summaries[0].cosines if len(summaries) == 1 else None
    return (
        make_environment()
        .get_template("report/page.html.j2")
        .render(
            title=f"Run {summaries[0].run.name}" if len(summaries) == 1 else f"{len(summaries)} runs side by side",
            summaries=summaries,
            names=names_of([summary.run for summary in summaries]),
            one=summaries[0] if len(summaries) == 1 else None,
            measures=measures,
            curves=[(name, Markup(plots.curves(summaries, name))) for name in measures if has_curve(summaries, name)],
            plane=Markup(plots.plane(summaries)) if "uniformity" in measures else None,
            distributions=[(title, Markup(plots.distributions(*cosines, kind))) for kind, title in KINDS.items()]
            if cosines
            else [],
            settings=[settings_of(summary.config) for summary in summaries],
            differing=differing_settings([summary.config for summary in summaries]),
            commands=[f"simcse-train --config {shlex.quote(str(s.run / CONFIG))}" for s in summaries],
            runs=plots.RUNS,
        )
    )


def names_of(runs: Sequence[Path]) -> list[str]:
    """Return the names of runs, each with as many of the folders above as tell all of them apart."""
    for count in range(1, max(len(run.parts) for run in runs)):
        names = ["/".join(run.parts[-count:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def has_curve(summaries: Sequence[Summary], measure: str) -> bool:
    """Return whether a run logged a measure more than once; what is measured before training alone has no curve."""
    return any(len(summary.curve(measure)[0]) > 1 for summary in summaries)


def settings_of(config: TrainConfig) -> dict[str, str]:
    """Return the settings of a run by name, as text."""
    return {name: _as_text(value) for name, value in config.model_dump(exclude={"output"}).items()}


def differing_settings(configs: Sequence[TrainConfig]) -> list[str]:
    """Return the names of the settings in which the runs differ."""
    found = [settings_of(config) for config in configs]
    return [name for name in found[0] if len({settings[name] for settings in found}) > 1]


def _as_text(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)

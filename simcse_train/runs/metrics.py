"""`metrics.jsonl`: one JSON object per line, with the step and what was logged or measured at it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simcse_train.errors import SaveError
from simcse_train.runs.atomic import write_text
from simcse_train.runs.folder import METRICS

ABANDONED = ".metrics.abandoned.jsonl"


def log_metrics(run: Path, step: int, record: Mapping[str, Any]) -> None:
    """Append a line to `metrics.jsonl`; raises `SaveError` if that fails."""
    try:
        with (run / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **record}) + "\n")
    except OSError as error:
        raise SaveError(f"{run / METRICS} can't be written: {error.strerror}. The checkpoints are intact.") from None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the logged lines of a run, up to the first line that a kill cut short or that is damaged."""
    return _read(run / METRICS)


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        found.append(record)
    return found


def drop_metrics_after(run: Path, step: int, *, abandons: bool) -> None:
    """Remove the lines after a step, since a resumed run logs them again; at step 0 remove all.

    Where the run `abandons` later checkpoints, their lines are put aside until `forget_metrics`: these checkpoints stay
    as long, and a run that is killed before may go on from one of them after all.
    """
    lines, aside = read_metrics(run), _read(run / ABANDONED)
    if aside:  # nothing was saved since: all checkpoints are those that these lines belong to
        lines = aside
    elif abandons:
        _write(run / ABANDONED, lines)
    _write(run / METRICS, [line for line in lines if line["step"] <= step and step > 0])


def forget_metrics(run: Path) -> None:
    """Remove what `drop_metrics_after` has put aside, since the checkpoints that it belongs to are gone."""
    (run / ABANDONED).unlink(missing_ok=True)

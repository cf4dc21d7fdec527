"""`metrics.jsonl`: one JSON object per line, with the step and what was logged or measured at it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcse_train.errors import SaveError
from simcse_train.runs.atomic import write_text
from simcse_train.runs.folder import METRICS


def log_metrics(run: Path, step: int, record: Mapping[str, Any]) -> None:
    """Append a line to `metrics.jsonl`; raises `SaveError` if that fails."""
    try:
        with (run / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **record}) + "\n")
    except OSError as error:
        raise SaveError(f"{run / METRICS} can't be written: {error.strerror}. The checkpoints are intact.") from None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the logged lines of a run, up to the first line that a kill cut short or that is damaged."""
    path = run / METRICS
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


def drop_metrics_after(run: Path, step: int) -> None:
    """Remove the lines after a step, since a resumed run logs them again; at step 0 remove all."""
    kept = [line for line in read_metrics(run) if line["step"] <= step and step > 0]
    write_text(run / METRICS, "".join(json.dumps(line) + "\n" for line in kept))

"""Experiment trackers (`--track`): TensorBoard, Weights & Biases, MLflow and Trackio, through accelerate.

A tracker follows `metrics.jsonl` in a thread of its own. It can neither stop the run nor slow it down: whatever it
raises becomes one warning, and one that does not answer is left behind at the end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from simcse_train.config import TrainConfig
from simcse_train.errors import one_line
from simcse_train.runs.atomic import write_text
from simcse_train.runs.folder import METRICS
from simcse_train.runs.metrics import read_metrics

PROJECT = "simcse-train"
IDENTITY = "trackers.json"  # names the tracked run, so that a resumed run continues it, and the last step sent to it
SENT = " sent"  # after the name of a tracker: the last step that it was sent
SECONDS_BETWEEN_READS = 2.0
SECONDS_TO_FINISH = 15.0

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def tracked(run: Path, config: TrainConfig) -> Iterator[None]:
    """Send what the run logs inside the block, and its settings, to the trackers of `--track`."""
    if not config.track:
        yield
        return
    ended = threading.Event()
    logged = (run / METRICS).stat().st_size if (run / METRICS).exists() else 0  # by the run before it was resumed
    threads = {
        name: threading.Thread(target=_follow, args=(name, run, config, logged, ended), daemon=True)
        for name in dict.fromkeys(config.track)
    }
    for thread in threads.values():
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for name, thread in threads.items():
            thread.join(SECONDS_TO_FINISH)
            if thread.is_alive():
                logger.warning(f"--track {name} does not answer, and may lack the run's last figures.")


def _follow(name: str, run: Path, config: TrainConfig, logged: int, ended: threading.Event) -> None:
    """Send each line of `metrics.jsonl` that was not sent before, until the run has ended.

    logged: bytes of the lines that were there when the run was resumed.
    """
    try:
        if find_spec(name) is None:
            logger.warning(
                f"--track {name}: the package {name} is not installed, so nothing is tracked with it. To install all "
                "trackers: pip install 'simcse-train[track]'"
            )
            return
        is_resumed, position = name in _kept(run), _unsent(run, name, logged)
        tracker = _start(name, run)
        settings = {
            key: str(v) if isinstance(v, list) else v for key, v in config.model_dump().items() if v is not None
        }
        if not (is_resumed and name == "mlflow"):  # which refuses a setting that was changed for the resumed run
            tracker.store_init_configuration(settings)
        is_last = False
        while not is_last:
            is_last = ended.wait(SECONDS_BETWEEN_READS)  # what was logged before the end is still sent
            before = position
            position, step = _send(tracker, run / METRICS, position)
            if position > before:
                _keep(run, name + SENT, step)
        tracker.finish()
    except (Exception, SystemExit) as error:  # of any kind: the libraries and their servers are not ours
        reason = one_line(error)
        logger.warning(f"--track {name} failed ({type(error).__name__}: {reason}); the run continues without it.")


def _unsent(run: Path, name: str, logged: int) -> int:
    """Return the position of the first of the `logged` bytes of `metrics.jsonl` that a tracker was not sent.

    A run that was killed may have saved what it had not sent. All is sent to a tracker that has not followed this run.
    """
    kept = _kept(run)
    if not logged or (name in kept and name + SENT not in kept):  # by a version that did not say
        return logged
    sent, position = int(kept.get(name + SENT, -1)), 0
    for line, record in zip((run / METRICS).read_bytes().splitlines(keepends=True), read_metrics(run), strict=False):
        if position >= logged or record["step"] > sent:
            break
        position += len(line)
    return position


def _send(tracker: Any, path: Path, position: int) -> tuple[int, int]:
    """Log the complete lines after a position; return the position after them, and the step of the last."""
    step = -1
    if not path.exists():
        return position, step
    with path.open("rb") as stream:
        stream.seek(position)
        for line in stream:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            record = json.loads(line)
            step = record.pop("step")
            numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
            if numbers:
                tracker.log(numbers, step=step)
    return position, step


def _start(name: str, run: Path) -> Any:
    """Start a tracker on the tracked run that belongs to this run's folder: a new one, or that of the run resumed."""
    identity = _kept(run)
    new = f"{run.name}-{uuid.uuid4().hex[:8]}"
    own = identity.get(name, new)
    steps = [line["step"] for line in read_metrics(run)]
    os.environ.setdefault("WANDB_SILENT", "true")
    arguments: dict[str, dict[str, Any]] = {
        # What an abandoned part of the run logged after the resumed step is dropped.
        "tensorboard": {"run_name": "tensorboard", "logging_dir": run, "purge_step": max(steps, default=-1) + 1},
        "wandb": {"run_name": PROJECT, "id": own, "name": run.name, "resume": "allow", "dir": str(run)},
        "mlflow": {"experiment_name": PROJECT, "run_name": run.name, "run_id": identity.get(name)},
        "trackio": {"run_name": PROJECT, "name": own, "resume": "allow"},
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**arguments[name])
    tracker.start()
    if name not in identity:
        _keep(run, name, tracker.active_run.info.run_id if name == "mlflow" else new)
    if int(identity.get(name + SENT, -1)) > max(steps, default=-1):  # steps that the resumed run logs, and sends, again
        _keep(run, name + SENT, max(steps, default=-1))
    return tracker


def _kept(run: Path) -> dict[str, Any]:
    """Return the tracked run of each tracker that has followed this run, and the last step that it was sent."""
    path = run / IDENTITY
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _keep(run: Path, name: str, value: str | int) -> None:
    with _identity_lock:
        write_text(run / IDENTITY, json.dumps(_kept(run) | {name: value}) + "\n")


_identity_lock = threading.Lock()  # several trackers write one file

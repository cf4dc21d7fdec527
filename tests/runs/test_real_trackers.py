"""The trackers that are not in the extra `track`, offline, where their packages are installed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from simcse_train.runs.metrics import read_metrics

CODE = """
import sys
from simcse_train import TrainConfig, resume, train
from simcse_train.runs import trackers
trackers.SECONDS_TO_FINISH = 600  # on a machine that does other work too
text, model, output, tracker = sys.argv[1:]
settings = dict(batch_size=16, max_steps=4, save_every=2, eval_every=2, log_every=1)
run = train(TrainConfig(data=[text], model=model, output=output, track=[tracker], **settings)).folder
resume(run, {"max_steps": 6})
"""


def tracked(tracker: str, tiny: Path, text: Path, tmp_path: Path, **environment: str) -> tuple[Path, str]:
    """Train and resume with a tracker, in a process of its own; return the run and what was said."""
    pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(text), str(tiny), str(tmp_path / "run"), tracker],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "--track" not in done.stderr, done.stderr
    return tmp_path / "run", done.stderr


@pytest.mark.slow
def test_wandb_offline_keeps_every_figure_in_one_tracked_run(tiny: Path, text: Path, tmp_path: Path) -> None:
    run, _ = tracked("wandb", tiny, text, tmp_path, WANDB_MODE="offline")
    files = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    identity = json.loads((run / "trackers.json").read_text())["wandb"]
    assert len(files) == 2  # one for each process, which `wandb sync` joins by their identity
    assert all(path.name == f"run-{identity}.wandb" for path in files)
    written = b"".join(path.read_bytes() for path in files)
    for name in ("loss", "alignment", "temperature"):
        assert name.encode() in written


@pytest.mark.slow
def test_mlflow_in_a_file_gets_every_figure(tiny: Path, text: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    run, _ = tracked("mlflow", tiny, text, tmp_path, MLFLOW_TRACKING_URI=f"sqlite:///{database}")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select key, step, value, run_uuid from metrics").fetchall()
    assert {row[3] for row in rows} == {json.loads((run / "trackers.json").read_text())["mlflow"]}
    for name in ("loss", "alignment", "uniformity"):
        expected = {line["step"]: line[name] for line in read_metrics(run) if name in line}
        assert {row[1]: row[2] for row in rows if row[0] == name} == pytest.approx(expected)


@pytest.mark.slow
def test_trackio_gets_every_figure(tiny: Path, text: Path, tmp_path: Path) -> None:
    run, _ = tracked("trackio", tiny, text, tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics").fetchall()
    losses = {step: json.loads(metrics)["loss"] for step, metrics in rows if "loss" in json.loads(metrics)}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in read_metrics(run) if "loss" in line})

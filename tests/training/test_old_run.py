"""Runs written by earlier versions resume, or are refused with one clear sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from simcse_train.config import make_config
from simcse_train.data.order import LATEST
from simcse_train.errors import InputError
from simcse_train.manifest import write_manifest
from simcse_train.runs.checkpoint import find_checkpoint, load_state
from simcse_train.runs.folder import checkpoints
from simcse_train.training.start import resume, train
from tests.training.test_loop import bits, settings

# What version 0.1.0 (commit 5fab3f0) wrote for the text below: its fingerprint, and the settings it had, in its order.
ANIMALS, VERBS, PLACES = (
    ("man", "dog", "cat"),
    ("runs", "plays", "sings"),
    ("in the park", "on the hill", "a red guitar", "on big blue"),
)
CORPUS = "eb53f6f9cc8c83bb0d2cb47ac0e5ec39d32bed7fbabac772602f59aa482e29d2"
SETTINGS = (
    "data", "text_column", "model", "output", "epochs", "max_steps", "batch_size", "micro_batch_size", "learning_rate",
    "warmup_ratio", "weight_decay", "max_length", "temperature", "dropout", "pooling", "objective", "max_grad_norm",
    "projection", "seed", "precision", "device", "eval", "eval_every", "save_every", "save_minutes", "keep",
    "log_every",
)  # fmt: skip


def as_written_by_0_1_0(checkpoint: Path) -> None:
    """Rewrite the state of a checkpoint as version 0.1.0 wrote it: `epoch` and `position`, no later settings."""
    state = json.loads((checkpoint / "state.json").read_text())
    names = ["step", "best_step", "best_score", "corpus", "sentences", "steps", "settings", "base_model", "scaler"]
    old = {name: state[name] for name in [*names, "versions", "pairs"]}
    old |= {"epoch": 0, "position": state["step"], "corpus": CORPUS}
    old["settings"] = {name: state["settings"][name] for name in SETTINGS}
    old["versions"]["simcse-train"] = "0.1.0"
    (checkpoint / "state.json").write_text(json.dumps(old, indent=2) + "\n")
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)


def test_a_run_of_version_0_1_0_resumes_to_the_end_of_a_run_of_this_version(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("".join(f"the {a} {v} {p}\n" for a in ANIMALS for v in VERBS for p in PLACES))
    config = {"data": str(text), "model": str(tiny), "output": str(tmp_path / "whole"), "learning_rate": 1e-3}
    sizes = {"batch_size": 8, "max_length": 16, "max_steps": 6, "save_every": 2, "keep": 3}
    whole = train(make_config({**config, **sizes})).folder
    old = Path(shutil.copytree(whole, tmp_path / "old"))
    for name in ("encoder", "checkpoints/step-00000004", "checkpoints/step-00000006"):
        shutil.rmtree(old / name)
    checkpoint, _ = find_checkpoint(old)
    as_written_by_0_1_0(checkpoint)
    assert load_state(checkpoint).step == 2
    resume(old)
    assert "saved by simcse-train 0.1.0, now " in caplog.text
    assert bits(old / "encoder") == bits(whole / "encoder")


def edit_state(checkpoint: Path, **changes: Any) -> None:
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | changes))
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)


def test_a_run_whose_order_was_made_by_an_earlier_version_keeps_it_across_resumes(
    text: Path, tiny: Path, tmp_path: Path
) -> None:
    run = train(settings(text, tiny, tmp_path / "run", max_steps=2)).folder
    assert load_state(checkpoints(run)[-1]).order == LATEST != 1
    edit_state(checkpoints(run)[-1], order=1)
    once = resume(run, {"max_steps": 4}).folder
    assert load_state(checkpoints(once)[-1]).order == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_a_run_begun_on_a_device_that_is_not_here_is_refused(text: Path, tiny: Path, tmp_path: Path) -> None:
    run = train(settings(text, tiny, tmp_path / "run", max_steps=2)).folder
    checkpoint = checkpoints(run)[-1]
    edit_state(checkpoint, settings={**load_state(checkpoint).settings, "device": "cuda"})
    with pytest.raises(InputError, match="^--device cuda is not available. Available: .*cpu"):
        resume(run, {"max_steps": 4})

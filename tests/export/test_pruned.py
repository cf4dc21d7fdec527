"""Exporting and loading while the run saves new checkpoints and deletes old ones."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from simcse_train.config import make_config
from simcse_train.errors import InputError
from simcse_train.export import folder as folder_module
from simcse_train.export.folder import export, load_saved_encoder
from simcse_train.runs import checkpoint as checkpoint_module
from simcse_train.runs.checkpoint import prune
from simcse_train.runs.folder import checkpoint_path, checkpoints
from simcse_train.training import monitor
from simcse_train.training.start import train


@pytest.fixture
def run(text: Path, tiny: Path, tmp_path: Path) -> Path:
    """A run with one checkpoint and without an export, as one that still trains."""
    config = {"data": str(text), "model": str(tiny), "output": str(tmp_path / "run"), "batch_size": 8, "max_length": 16}
    folder = train(make_config({**config, "max_steps": 2, "keep": 1})).folder
    shutil.rmtree(folder / "encoder")
    return folder


def save_and_prune(run: Path) -> None:
    """Do to the disk what the next step of the run does: one more checkpoint, and then the older ones are deleted."""
    newest = checkpoints(run)[-1]
    step = int(newest.name.removeprefix("step-")) + 1
    partial = run / "checkpoints" / ".next.partial"
    shutil.copytree(newest, partial)
    partial.rename(checkpoint_path(run, step))
    prune(run, 1, step, None)


def export_last(run: Path, out: Path) -> None:
    export(run, out, "last")  # the best one is never pruned


def load(run: Path, out: Path) -> None:
    load_saved_encoder(str(run))


@pytest.mark.parametrize(
    ("use", "module", "name"),
    [
        (export_last, checkpoint_module, "damage"),
        (export_last, folder_module, "load_state"),
        (export_last, folder_module, "load_checkpoint_encoder"),
        (load, checkpoint_module, "damage"),
        (load, folder_module, "load_encoder"),
    ],
)
def test_a_checkpoint_deleted_at_the_worst_moment_is_replaced_by_a_newer_one(
    use: Callable[[Path, Path], object],
    module: ModuleType,
    name: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = getattr(module, name)
    deletions = 0

    def after_the_next_save(*arguments: Any, **settings: Any) -> Any:
        nonlocal deletions
        if deletions < 3:
            deletions += 1
            save_and_prune(run)
        return original(*arguments, **settings)

    monkeypatch.setattr(module, name, after_the_next_save)
    use(run, tmp_path / "out")
    assert deletions == 3


def test_exports_succeed_while_another_thread_saves_and_prunes(run: Path, tmp_path: Path) -> None:
    def train_on() -> None:
        for _ in range(4):  # one less than the attempts of an export
            save_and_prune(run)

    for number in range(5):
        thread = threading.Thread(target=train_on)
        thread.start()
        export_last(run, tmp_path / str(number))
        thread.join()
        assert (tmp_path / str(number) / "model.safetensors").exists()


def test_a_damaged_best_checkpoint_is_not_exported(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a man\tthe man\t5\na cat\tguitar\t0\na dog\tthe dog runs\t3\n")
    config = {"data": str(text), "model": str(tiny), "output": str(tmp_path / "run"), "batch_size": 8, "max_length": 16}
    scores = iter([10.0, 30.0, 20.0, 20.0])
    monkeypatch.setattr(monitor, "similarity_score", lambda *_: next(scores))
    trained = train(make_config({**config, "max_steps": 3, "eval": str(pairs), "eval_every": 1, "save_every": 1}))
    best = checkpoints(trained.folder)[0]
    assert best.name == "step-00000001"
    (best / "encoder" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"The best checkpoint {best} can't be used.*--checkpoint last"):
        export(trained.folder, tmp_path / "out")
    assert export(trained.folder, tmp_path / "out", "last") == 3

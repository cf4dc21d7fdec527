"""What a launcher starts again after a failure (`torchrun --max-restarts`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from simcse_train import launcher
from simcse_train.config import make_config
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError, Stopped
from simcse_train.runs.folder import checkpoints
from simcse_train.runs.metrics import read_metrics
from simcse_train.training.changes import changed
from simcse_train.training.start import train
from tests.training.test_loop import bits, interrupted_at, settings


def test_a_run_that_was_there_before_the_launcher_is_not_continued_in_the_place_of_the_new_one(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text(encoding="utf-8") + "One line more.\n", encoding="utf-8")
    run = train(settings(text, tiny, tmp_path / "run", max_steps=2)).folder
    before = read_metrics(run), bits(run / "encoder"), checkpoints(run)
    with pytest.raises(InputError, match="already holds a run"):
        train(settings(other, tiny, run, max_steps=2))
    monkeypatch.setattr(launcher, "attempt", lambda: 1)
    with pytest.raises(InputError, match="its content has changed"):
        train(settings(other, tiny, run, max_steps=2))
    for change, message in (({"batch_size": 4}, "--batch-size 4"), ({"objective": "infonce"}, "--objective infonce")):
        with pytest.raises(InputError, match=f"{message} differs from the run's own"):
            train(settings(text, tiny, run, max_steps=2, **change))
    assert (read_metrics(run), bits(run / "encoder"), checkpoints(run)) == before


@pytest.mark.parametrize("is_given", [False, True])
def test_the_same_settings_continue_the_run(
    is_given: bool, text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_bytes(text.read_bytes())
    config = settings(Path("corpus.txt"), tiny, Path("run"), max_steps=6, precision="auto", save_minutes=5)
    config = config.model_copy(update={"track": [], "text_column": None})
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupted_at(patch, 3)
        train(config, load_encoder(tiny) if is_given else None)
    monkeypatch.setattr(launcher, "attempt", lambda: 1)
    run = train(config, load_encoder(tiny) if is_given else None).folder
    assert [line["step"] for line in read_metrics(run)] == list(range(7))


def test_a_text_of_the_hub_goes_on_in_the_revision_that_the_run_began_with() -> None:
    pinned = f"hf://datasets/someone/tiny@{'a' * 40}/data/*.txt"
    config = make_config({"data": [pinned]})
    assert changed(config, {}, {"data": ["hf://datasets/someone/tiny/data/*.txt"]}).data == [pinned]

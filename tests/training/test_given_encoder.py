"""An encoder that was loaded before can be trained in place of the one that the settings name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simcse_train import load_encoder, resume, train
from simcse_train.config import make_config
from simcse_train.config_file import read_settings
from simcse_train.encoders import probing
from simcse_train.encoders.head import projection_head
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import Stopped
from simcse_train.runs.folder import LOCK
from simcse_train.runs.start import keep_start, load_start
from tests.training.test_loop import bits, interrupted_at, settings


def test_a_run_trains_the_encoder_that_it_is_given(
    tiny: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_encoder(tiny, packed=False)
    assert not encoder.packed and load_encoder(tiny).packed
    embeddings = encoder.model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    with torch.no_grad():
        embeddings.weight.mul_(3)
    given = embeddings.weight.detach().clone()
    given_settings = {
        "data": str(text),
        "model": str(tiny),
        "output": str(tmp_path / "run"),
        "max_steps": 1,
        "device": "cpu",
    }
    with caplog.at_level("INFO"):
        run = train(make_config({**given_settings, "learning_rate": 1e-9, "precision": "fp32"}), encoder)
    assert "padded batches" in caplog.text
    trained = run.encoder.model.get_input_embeddings()
    assert isinstance(trained, torch.nn.Embedding)
    assert torch.allclose(trained.weight, given, atol=1e-6)
    # What is measured and exported as the start is the encoder that was given, not the one of config.model.
    start = load_start(run.folder, make_config(read_settings(run.folder / "config.yaml"))).model.get_input_embeddings()
    assert isinstance(start, torch.nn.Embedding)
    assert torch.equal(start.weight, given)


def test_of_a_training_before_a_given_encoder_keeps_neither_head_nor_gradients(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    used = load_encoder(tiny, pooling="cls")
    used.head = projection_head(used.hidden_size, seed=0, initializer_range=0.02)
    for parameter in used.parameters():
        parameter.grad = torch.ones_like(parameter)
    found = train(settings(text, tiny, tmp_path / "used", max_steps=2, projection="off", pooling="cls"), used)
    fresh = train(settings(text, tiny, tmp_path / "fresh", max_steps=2, projection="off", pooling="cls"))
    assert bits(found.folder / "encoder") == bits(fresh.folder / "encoder")
    assert not list(found.folder.glob("checkpoints/*/head.safetensors"))


def test_a_given_encoder_is_trained_again_after_a_kill_before_the_first_checkpoint(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    """A copy of it is in the run folder before the settings are, so that no resumed run begins with another encoder."""
    given = load_encoder(tiny)
    embeddings = given.model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    with torch.no_grad():
        embeddings.weight.mul_(3)
    save_encoder(given, tmp_path / "changed")
    changed, killed = str(tmp_path / "changed"), tmp_path / "killed"
    code = f"""
import os
from simcse_train import load_encoder, train
from simcse_train.config import make_config
from simcse_train.training import start
start.open_texts = lambda *_: os._exit(9)
train(make_config({settings(text, tiny, killed, max_steps=2).model_dump()!r}), load_encoder({changed!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    resumed = resume(killed).folder
    whole = train(settings(text, tiny, tmp_path / "whole", max_steps=2), load_encoder(tmp_path / "changed")).folder
    assert bits(resumed / "encoder") == bits(whole / "encoder")
    # The copy that a run leaves when it is killed before its settings are written is not the start of another run.
    keep_start(tmp_path / "again", given)
    (tmp_path / "again" / LOCK).touch()
    again, new = (train(settings(text, tiny, tmp_path / name, max_steps=2)).folder for name in ("again", "new"))
    assert bits(again / "encoder") == bits(new / "encoder")


def test_padded_training_is_resumed_padded_or_the_difference_is_named(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(settings(text, tiny, tmp_path / "whole", max_steps=7), load_encoder(tiny, packed=False)).folder
    packed = train(settings(text, tiny, tmp_path / "packed", max_steps=7)).folder
    assert bits(packed / "encoder") != bits(whole / "encoder")
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(Stopped):
            train(settings(text, tiny, tmp_path / "stopped", max_steps=7), load_encoder(tiny, packed=False))
    assert bits(resume(tmp_path / "stopped").folder / "encoder") == bits(whole / "encoder")
    assert "was saved by" not in caplog.text
    # Weights that can't be packed any more: the run goes on padded, and says so.
    monkeypatch.setattr(probing, "_try_packed", lambda *_: False)
    resume(packed, {"max_steps": 8})
    assert "The checkpoint was saved by batches packed, [CLS] alone in the last layer, now padded" in caplog.text

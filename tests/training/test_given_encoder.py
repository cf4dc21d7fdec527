"""An encoder that was loaded before can be trained in place of the one that the settings name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simcse_train import load_encoder, resume, train
from simcse_train.config import make_config
from simcse_train.encoders import probing
from simcse_train.errors import Stopped
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

"""An encoder that was loaded before can be trained in place of the one that the settings name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simcse_train import load_encoder, train
from simcse_train.config import make_config


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
    settings = {"data": str(text), "model": str(tiny), "output": str(tmp_path / "run"), "max_steps": 1, "device": "cpu"}
    with caplog.at_level("INFO"):
        run = train(make_config({**settings, "learning_rate": 1e-9, "precision": "fp32"}), encoder)
    assert "padded batches" in caplog.text
    trained = run.encoder.model.get_input_embeddings()
    assert isinstance(trained, torch.nn.Embedding)
    assert torch.allclose(trained.weight, given, atol=1e-6)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simcse_train.encoders.loading import load_encoder
from simcse_train.evaluation.geometry import alignment, embed_views, uniformity
from simcse_train.search.embeddings import embed_rows

SENTENCES = ["a man", "the cat runs", "a dog", "the big red dog runs in the park on the blue hill"]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_uniformity_is_measured_on_normalised_embeddings_without_dropout(tiny: Path, pooling: str) -> None:
    encoder = load_encoder(tiny, pooling=pooling)
    rows = encoder.tokenizer.tokenize(SENTENCES, 16)
    units = encoder.encode(SENTENCES).astype(np.float64)
    squared = [((a - b) ** 2).sum() for i, a in enumerate(units) for b in units[i + 1 :]]
    expected = np.log(np.mean(np.exp(-2 * np.array(squared))))
    for training in (False, True):
        encoder.train(training)
        aligned = alignment(*embed_views(encoder, rows))
        uniform = uniformity(embed_rows(encoder, rows))
        assert uniform == pytest.approx(expected, abs=1e-5)
        assert encoder.training is training
        assert 0 < aligned < 4  # squared distances of vectors of length 1


def test_alignment_does_not_depend_on_the_length_of_the_embeddings(tiny: Path) -> None:
    encoder = load_encoder(tiny, pooling="mean")
    rows = encoder.tokenizer.tokenize(SENTENCES, 16)
    expected = alignment(*embed_views(encoder, rows)), uniformity(embed_rows(encoder, rows))
    model: Any = encoder.model
    final = model.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        final.weight.mul_(8)
        final.bias.mul_(8)
    found = alignment(*embed_views(encoder, rows)), uniformity(embed_rows(encoder, rows))
    assert found == pytest.approx(expected, rel=1e-5)

"""Rows of a part of a batch, as several processes compute them, have the noise that they have in the whole part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simcse_train.encoders.acceptance import use_kernels
from simcse_train.encoders.compiled.library import Library
from simcse_train.encoders.dropout import noise_of_share
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.packing import pack
from simcse_train.randomness import seeded
from simcse_train.training.step import share_of

SENTENCES = ("a man", "the cat runs in the park", "a dog plays", "the big dog in a small red park .", "red", "a woman")


@pytest.mark.parametrize("by_kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_shares_of_a_part_have_the_noise_and_the_gradients_of_the_whole(
    pooling: str, by_kernels: bool, small: Path, kernels: Library
) -> None:
    encoder = load_encoder(small, pooling=pooling).train()
    if by_kernels:
        assert use_kernels(encoder, "fp32") == ""
    tokens, lengths = pack(encoder.tokenizer.tokenize(SENTENCES, 16))
    parameters = [p for name, p in encoder.named_parameters() if "pooler" not in name and "key.bias" not in name]
    with seeded(3, 1, 0):
        whole = encoder(tokens, lengths)
    found = []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        share = share_of(lengths, rows)
        with seeded(3, 1, 0), noise_of_share(share):
            found.append(encoder(tokens[share.tokens], lengths[rows]))
    assert torch.allclose(torch.cat(found), whole, atol=1e-5)
    gradient = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(whole, parameters, gradient)
    shared = torch.autograd.grad(torch.cat(found), parameters, gradient)
    for one, other in zip(expected, shared, strict=True):
        assert (one - other).norm() <= 1e-5 * max(float(one.norm()), 1.0)
    with seeded(3, 1, 0):  # without its place in the part a share has other noise
        assert not torch.allclose(encoder(tokens[share.tokens], lengths[rows]), whole[rows], atol=1e-3)

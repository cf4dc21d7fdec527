"""Checks on a loaded encoder: which of the faster ways of computing give the same result, and whether dropout acts."""

from __future__ import annotations

import torch

from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.packing import compute_first_tokens_in_last_layer, pack
from simcse_train.encoders.tokenizer import PROBES
from simcse_train.randomness import seeded

UNSUPPORTED = (ValueError, TypeError, RuntimeError, AttributeError)  # what a model raises that cannot be packed


@torch.inference_mode()
def enable_packing(encoder: Encoder) -> None:
    """Switch the encoder to packed batches if they give the same states as padded ones; otherwise leave it padded.

    Where `[CLS]` is the embedding, also let the last layer compute nothing else, if that gives the same embedding.
    """
    model = encoder.model
    before = model.config._attn_implementation
    tokens, lengths = pack(encoder.tokenizer.tokenize(PROBES, 12), encoder.device)
    padded = encoder.padded_states(tokens, lengths)  # (total, hidden)
    encoder.packed = True
    try:
        model.set_attn_implementation("packed")
        encoder.packed = _close(encoder.states(tokens, lengths), padded)
    except UNSUPPORTED:
        encoder.packed = False
    if not encoder.packed:
        model.set_attn_implementation(before)
    elif encoder.pooling == "cls":
        try:
            compute_first_tokens_in_last_layer(model, model.config.num_hidden_layers)
            found = encoder.states(tokens, lengths, first_only=True)  # (rows, hidden)
            encoder.first_only = _close(found, padded[lengths.cumsum(0) - lengths])
        except UNSUPPORTED:
            encoder.first_only = False


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def is_deterministic(encoder: Encoder) -> bool:
    """Return whether two passes in training mode give the same embedding: then dropout makes no positive pairs."""
    training = encoder.training
    encoder.train()
    sentence = "Two views of one sentence differ by dropout alone."
    tokens, lengths = pack(encoder.tokenizer.tokenize([sentence], 16), encoder.device)
    with seeded(0):
        first = encoder.embed(tokens, lengths)
        second = encoder.embed(tokens, lengths)
    encoder.train(training)
    return torch.equal(first, second)

"""Measures of an embedding space that need no labels: alignment and uniformity (Wang & Isola 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.packing import pack
from simcse_train.randomness import seeded


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean squared distance of positive pairs (rows, hidden), normalised (Wang & Isola 2020, section 4)."""
    return float((first - second).square().sum(dim=1).mean())


def uniformity(embeddings: Tensor) -> float:
    """Return log mean exp(-2 d^2) over all pairs of different rows (rows, hidden), normalised.

    It is 0 where all rows are equal and about -4 where they are spread evenly over the sphere (Wang & Isola 2020,
    section 4).
    """
    squared = torch.pdist(embeddings.double()).square()
    return float(squared.mul(-2).exp().mean().log())


@torch.inference_mode()
def alignment_and_uniformity(encoder: Encoder, rows: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Return the alignment of two dropout views and the uniformity of tokenised sentences.

    The views differ by dropout alone and come without the head; uniformity is measured without dropout. The noise is
    the same at each call, so that two calls compare encoders and not draws.
    """
    training = encoder.training
    batches = [pack(rows[i : i + 64], encoder.device) for i in range(0, len(rows), 64)]

    def embed() -> Tensor:
        return torch.nn.functional.normalize(torch.cat([encoder.embed(*batch) for batch in batches]))

    encoder.train()
    with seeded(0):
        aligned = alignment(embed(), embed())
    encoder.eval()
    uniform = uniformity(embed().cpu())
    encoder.train(training)
    return aligned, uniform

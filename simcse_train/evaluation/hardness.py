"""How hard the negatives of a batch are, and what temperature and dropout make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from simcse_train.encoders.encoder import Encoder
from simcse_train.evaluation.geometry import embed_views
from simcse_train.search.embeddings import embed_rows


class SimilarPair(NamedTuple):
    """Two different sentences of one batch, by their numbers, and the cosine that training would push down."""

    first: int
    second: int
    cosine: float


class GradientShares(NamedTuple):
    """The share of the negatives' gradient that the hardest 1 % and 10 % of them receive at a temperature."""

    temperature: float
    hardest_1: float
    hardest_10: float


def negative_cosines(embeddings: Tensor, batch_size: int) -> Tensor:
    """Return the cosines (sentences, batch - 1) of each sentence with the others of its batch, hardest first.

    embeddings: (sentences, hidden), normalised, in random order; consecutive ones form a batch, a last short one is
    left out.
    """
    size = min(batch_size, len(embeddings))
    batches = embeddings[: len(embeddings) // size * size].view(-1, size, embeddings.shape[1])
    cosines = batches @ batches.mT  # (batches, size, size)
    cosines.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return cosines.flatten(0, 1).sort(dim=1, descending=True).values[:, :-1]


def gradient_shares(negatives: Tensor, temperature: float) -> GradientShares:
    """Return how the negatives' gradient is distributed; negatives: (anchors, count), cosines, hardest first.

    The gradient by a negative's cosine is proportional to exp(cosine / temperature) (Wang & Liu 2021, arXiv 2012.09740,
    section 3).
    """
    weights = (negatives / temperature).softmax(dim=1)
    count = negatives.shape[1]
    shares = [float(weights[:, : math.ceil(share * count)].sum(dim=1).mean()) for share in (0.01, 0.1)]
    return GradientShares(temperature, *shares)


def most_similar_pairs(embeddings: Tensor, batch_size: int, count: int) -> list[SimilarPair]:
    """Return the most similar pairs of different sentences that share a batch; shapes as in `negative_cosines`."""
    size = min(batch_size, len(embeddings))
    first, second = torch.triu_indices(size, size, offset=1)
    found: list[SimilarPair] = []
    for start in range(0, len(embeddings) // size * size, size):
        batch = embeddings[start : start + size]
        values, places = (batch @ batch.T)[first, second].topk(min(count, len(first)))
        pairs = zip(first[places].tolist(), second[places].tolist(), values.tolist(), strict=True)
        found += [SimilarPair(start + one, start + other, cosine) for one, other, cosine in pairs]
    return sorted(found, key=lambda pair: -pair.cosine)[:count]


def view_cosine(encoder: Encoder, rows: Sequence[Sequence[int]]) -> float:
    """Return the mean cosine between a sentence's view under dropout and its embedding without dropout."""
    view, _ = embed_views(encoder, rows)
    return float((view * embed_rows(encoder, rows)).sum(dim=1).mean())

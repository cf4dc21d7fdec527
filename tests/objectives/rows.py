"""Rows with everything that an objective can ask for, drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train.objectives.objective import Rows


def embeddings(sentences: int, seed: int = 0, hidden: int = 7, views: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views * sentences, hidden, dtype=torch.float64, generator=generator)


def known_rows(
    sentences: int,
    *,
    seed: int = 1,
    hidden: int = 7,
    views: int = 2,
    texts: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    similar_above: float | None = None,
) -> Rows:
    """Each sentence has one random embedding under the start, one smoothed, one under the momentum encoder."""
    start, smoothed, momentum = (
        normalize(embeddings(sentences, seed + i, hidden, 1), dim=1).repeat_interleave(views, 0).to(dtype)
        for i in range(3)
    )
    numbers = torch.arange(sentences).repeat_interleave(views)
    return Rows(
        views,
        numbers if texts is None else texts,
        start=start,
        smoothed=smoothed,
        members=numbers[:, None].repeat(1, 3),
        momentum=momentum,
        similar_above=similar_above,
    )

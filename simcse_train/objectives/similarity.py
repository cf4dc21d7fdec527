"""What the contrastive objectives share: cosines in full precision, and the mask of rows that hold the same text."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

# -inf, not a large negative number: bfloat16 would round that, and a masked row would still have a gradient.
MASKED = float("-inf")


def normalized(embeddings: Tensor) -> Tensor:
    """Return embeddings (rows, hidden) at length 1 in float32; float64 stays float64."""
    # A cosine divided by 0.05 needs more digits than half precision has.
    return normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), dim=1)


def same_text(texts: Tensor) -> Tensor:
    """Return the (rows, rows) mask that is True where two rows hold the same text, the diagonal included."""
    return texts[:, None] == texts[None, :]

"""The contrastive objectives: pure functions of embeddings.

Rows come in pairs `[a, a', b, b', ...]`: two embeddings of each sentence that differ by dropout alone. Both objectives pull the two
views of a sentence together and push the other sentences of the batch away (Gao, Yao & Chen 2021, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def ntxent_loss(embeddings: Tensor, temperature: float, texts: Tensor | None = None) -> Tensor:
    """Return the normalised-temperature cross entropy over all views: one positive and 2N-2 negatives for each of 2N anchors.

    embeddings: (2N, hidden), in pairs; texts: (2N,) integers, equal where rows come from the same text. Such rows are never each
    other's negatives. The result is a float32 scalar (float64 for float64 input). Source: Chen et al. 2020, equation 1, on the
    batch layout of Gao, Yao & Chen 2021.
    """
    views = _normalized(embeddings)  # (2N, hidden)
    similarities = views @ views.T / temperature  # (2N, 2N)
    rows = torch.arange(len(views), device=views.device)
    positive = rows ^ 1  # [1, 0, 3, 2, ...]
    excluded = _same_text(texts, len(views), views.device)  # itself, and its twins
    excluded[rows, positive] = False
    # -inf, not a large number: bfloat16 would round that, and a twin would still push a little.
    return cross_entropy(similarities.masked_fill(excluded, float("-inf")), positive)


def infonce_loss(embeddings: Tensor, temperature: float, texts: Tensor | None = None) -> Tensor:
    """Return the paper's own objective: first views against second views, one positive and N-1 negatives for each of N anchors.

    Shapes, `texts` and the result as in `ntxent_loss`. Source: Gao, Yao & Chen 2021, equation 4.
    """
    views = _normalized(embeddings)
    first, second = views[0::2], views[1::2]  # (N, hidden) each
    similarities = first @ second.T / temperature  # (N, N)
    labels = torch.arange(len(first), device=views.device)
    excluded = _same_text(None if texts is None else texts[0::2], len(first), views.device)
    excluded[labels, labels] = False
    return cross_entropy(similarities.masked_fill(excluded, float("-inf")), labels)


OBJECTIVES = {"ntxent": ntxent_loss, "infonce": infonce_loss}


def _normalized(embeddings: Tensor) -> Tensor:
    # Cosines divided by 0.05 need more digits than half precision has.
    return normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), dim=1)


def _same_text(texts: Tensor | None, size: int, device: torch.device) -> Tensor:
    """Return the (size, size) mask of rows that share a text; without `texts`, each row shares it only with itself."""
    if texts is None:
        return torch.eye(size, dtype=torch.bool, device=device)
    return texts[:, None] == texts[None, :]

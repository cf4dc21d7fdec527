"""InfoNCE: the paper's own objective, first views against second views."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from simcse_train.objectives.objective import Rows, Stateless
from simcse_train.objectives.similarity import MASKED, normalized, same_text


@dataclass(frozen=True)
class InfoNCE(Stateless):
    """Cross entropy over N anchors, each with one positive and N-1 negatives.

    Source: Gao, Yao & Chen 2021, equation 4.
    """

    temperature: float

    def loss(self, embeddings: Tensor, rows: Rows) -> Tensor:
        """Return the mean loss of the N anchors; embeddings: (2N, hidden) in pairs `[a, a', b, b', ...]`."""
        views = normalized(embeddings)
        first, second = views[0::2], views[1::2]  # (N, hidden) each
        similarities = first @ second.T / self.temperature  # (N, N)
        positive = torch.arange(len(first), device=views.device)
        masked = same_text(rows.texts[0::2])
        masked[positive, positive] = False
        return cross_entropy(similarities.masked_fill(masked, MASKED), positive)

"""NT-Xent: each view is an anchor with one positive and all other rows of the batch as negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from simcse_train.objectives.objective import Rows, Stateless
from simcse_train.objectives.similarity import MASKED, never_negative, normalized


@dataclass(frozen=True)
class NTXent(Stateless):
    """Normalised-temperature cross entropy over 2N anchors, each with 2N-2 negatives.

    Source: Chen et al. 2020 (arXiv 2002.05709), equation 1, on the batch layout of Gao, Yao & Chen 2021.
    """

    temperature: float

    def loss(self, embeddings: Tensor, rows: Rows) -> Tensor:
        """Return the mean loss of all anchors; embeddings: (2N, hidden) in pairs `[a, a', b, b', ...]`."""
        views = normalized(embeddings)  # (2N, hidden)
        similarities = views @ views.T / self.temperature  # (2N, 2N)
        anchors = torch.arange(len(views), device=views.device)
        positive = anchors ^ 1  # [1, 0, 3, 2, ...]
        masked = never_negative(rows)  # the anchor itself among them
        masked[anchors, positive] = False
        return cross_entropy(similarities.masked_fill(masked, MASKED), positive)

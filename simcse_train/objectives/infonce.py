"""InfoNCE: the paper's own objective, first views against second views and against hard negatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from simcse_train.objectives.objective import Rows, Stateless
from simcse_train.objectives.similarity import MASKED, never_negative, normalized


@dataclass(frozen=True)
class InfoNCE(Stateless):
    """Cross entropy over N anchors, each with one positive, N-1 negatives, and the N hard negatives of a third view.

    Source: Gao, Yao & Chen 2021, equation 4 for two views and equation 5 for anchor, positive and hard negative.
    """

    temperature: float

    def loss(self, embeddings: Tensor, rows: Rows) -> Tensor:
        """Return the mean loss of N anchors; embeddings: (N * V, hidden), `[a, a', ...]` or `[a, a+, a-, ...]`."""
        views = normalized(embeddings)
        places = torch.arange(len(views), device=views.device)
        candidates = torch.cat([places[view :: rows.views] for view in range(1, rows.views)])  # (N * (V - 1),)
        similarities = views[0 :: rows.views] @ views[candidates].T / self.temperature  # (N, N * (V - 1))
        masked = never_negative(rows)[0 :: rows.views, candidates]
        anchors = places[: len(similarities)]
        first, positive = rows.texts[0 :: rows.views], rows.texts[1 :: rows.views]
        masked |= positive[:, None] == rows.texts[candidates]  # a positive that occurs again
        masked[:, : len(anchors)] |= first[:, None] == first  # another positive of the same anchor
        masked[anchors, anchors] = False
        if rows.views > 2:  # an anchor's own hard negative is one however similar the start finds them
            hard = rows.texts[2 :: rows.views]
            masked[anchors, len(anchors) + anchors] = (hard == first) | (hard == positive) | (hard < 0)
        return cross_entropy(similarities.masked_fill(masked, MASKED), anchors)

"""The debiased objective: it subtracts the expected share of false negatives, and can favour hard negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simcse_train.objectives.objective import Rows, Stateless
from simcse_train.objectives.similarity import MASKED, never_negative, normalized


@dataclass(frozen=True)
class Debiased(Stateless):
    """NT-Xent in which the sum over negatives is replaced by an estimate of it over true negatives.

    `tau_plus` is the assumed probability that a random sentence has the meaning of the anchor; `beta` weights negatives
    by exp(beta * cosine / temperature), 0 not at all. Sources: Chuang et al. 2020 (arXiv 2007.00224), equation 8 with M
    = 1, the positive itself; Robinson et al. 2021 (arXiv 2010.04592) for `beta`.
    """

    temperature: float
    tau_plus: float
    beta: float

    def loss(self, embeddings: Tensor, rows: Rows) -> Tensor:
        """Return the mean loss of all anchors; embeddings: (2N, hidden) in pairs `[a, a', b, b', ...]`.

        An anchor without negatives has the loss 0.
        """
        views = normalized(embeddings)  # (2N, hidden)
        similarities = views @ views.T / self.temperature  # (2N, 2N)
        anchors = torch.arange(len(views), device=views.device)
        positive = similarities[anchors, anchors ^ 1]  # (2N,)
        masked = never_negative(rows)
        masked[anchors, anchors ^ 1] = True
        negatives = (~masked).sum(1)  # (2N,)
        has = negatives > 0
        masked = masked & has[:, None]  # a logarithm of no sum at all would have no gradient
        # The mean of exp(s) over negatives, each weighted by exp(beta * s); all in logarithms, exp(1 / 0.01) overflows.
        weights = (self.beta * similarities).masked_fill(masked, MASKED).logsumexp(1)
        mean = ((1 + self.beta) * similarities).masked_fill(masked, MASKED).logsumexp(1) - weights
        largest = torch.maximum(mean, positive).detach()
        difference = (mean - largest).exp() - self.tau_plus * (positive - largest).exp()
        above_zero = difference > 0
        estimate = difference.where(above_zero, 1).log() + largest - math.log(1 - self.tau_plus)
        floor = -1 / self.temperature  # the smallest value that exp(s) can have
        estimate = estimate.where(above_zero, floor).clamp(min=floor)
        losses = torch.logaddexp(positive, negatives.clamp(min=1).to(views).log() + estimate) - positive
        return losses.where(has, 0).sum() / len(views)

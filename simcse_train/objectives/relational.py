"""Relational targets: the encoder keeps, or sharpens, how the frozen start relates each sentence to the others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Need, Rows, Stateless
from simcse_train.objectives.similarity import divergence, normalized, same_text


@dataclass(frozen=True)
class Relational(Stateless):
    """Divergence of the encoder's softmax over the *other* sentences from that of the start, mixed with NT-Xent.

    The twin is left out: its cosine of 1 would take nearly all of the target. Both softmaxes have `start_temperature`.
    `weight` is the share of this term in the loss, the rest is NT-Xent. With `smoothed` the start's embeddings are
    first moved towards their nearest neighbours, so the encoder learns from the text as well as from the start. Source:
    relational distillation, Park et al. 2019 (arXiv 1904.05068), here as a divergence of softmaxes over the batch.
    """

    temperature: float
    start_temperature: float
    weight: float
    smoothed: bool

    @property
    def needs(self) -> frozenset[Need]:
        """The start's embeddings, smoothed where asked."""
        return frozenset({"smoothed" if self.smoothed else "start"})

    def loss(self, embeddings: Tensor, rows: Rows) -> Tensor:
        """Return the mean loss of all rows; embeddings: (2N, hidden) in pairs `[a, a', b, b', ...]`."""
        views = normalized(embeddings)  # (2N, hidden)
        start = rows.smoothed if self.smoothed else rows.start
        assert start is not None
        relations = views @ views.T / self.start_temperature
        relational = divergence(start @ start.T / self.start_temperature, relations, same_text(rows.texts))
        if self.weight == 1:
            return relational
        return self.weight * relational + (1 - self.weight) * NTXent(self.temperature).loss(embeddings, rows)

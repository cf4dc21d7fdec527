"""Soft targets: the frozen start's cosines in place of one-hot labels, so that similar sentences stay together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Need, Rows, Stateless
from simcse_train.objectives.similarity import divergence, never_negative, normalized


@dataclass(frozen=True)
class Soft(Stateless):
    """Divergence of the encoder's softmax over the batch from that of the start, the twin included, mixed with NT-Xent.

    `weight` is the share of the soft targets in the loss, the rest is NT-Xent. `smoothed` takes the start's embeddings
    moved towards their neighbours. The gradient is that of a cross entropy with soft labels. Source: Feng & Patras 2022
    (arXiv 2207.11163), with the start as the teacher.
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
        """Return the mean loss of all anchors; embeddings: (2N, hidden) in pairs `[a, a', b, b', ...]`."""
        views = normalized(embeddings)  # (2N, hidden)
        start = rows.smoothed if self.smoothed else rows.start
        assert start is not None
        anchors = torch.arange(len(views), device=views.device)
        masked = never_negative(rows)
        masked[anchors, anchors ^ 1] = False  # the twin: a cosine of 1 under the start
        soft = divergence(start @ start.T / self.start_temperature, views @ views.T / self.temperature, masked)
        if self.weight == 1:
            return soft
        return self.weight * soft + (1 - self.weight) * NTXent(self.temperature).loss(embeddings, rows)

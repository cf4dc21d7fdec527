"""A queue of past embeddings as further negatives, computed by a slowly moving copy of the encoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from simcse_train.objectives.objective import Need, Rows
from simcse_train.objectives.similarity import MASKED, never_negative, normalized


class Queue:
    """InfoNCE in which the embeddings of the most recent `size` sentences before this batch are negatives too.

    The momentum encoder computes them without dropout, and the trainer keeps it. Sources: Wu et al. 2022 (ESimCSE,
    arXiv 2109.04380); He et al. 2020 (MoCo, arXiv 1911.05722), section 3.2.
    """

    def __init__(self, temperature: float, size: int) -> None:
        self.temperature, self.size = temperature, size
        self.texts: Tensor | None = None  # (queued,)
        self.queued: Tensor | None = None  # (queued, hidden), of length 1
        self.start: Tensor | None = None  # (queued, hidden), under the frozen start, where similar sentences are masked

    @property
    def needs(self) -> frozenset[Need]:
        """The momentum encoder's embeddings, which enter the queue."""
        return frozenset({"momentum"})

    def loss(self, embeddings: Tensor, rows: Rows) -> Tensor:
        """Return the mean loss of the N anchors; embeddings: (2N, hidden) in pairs `[a, a', b, b', ...]`."""
        views = normalized(embeddings)
        first, second = views[0::2], views[1::2]  # (N, hidden) each
        anchors = torch.arange(len(first), device=views.device)
        masked = never_negative(rows)[0::2, 1::2]
        masked[anchors, anchors] = False
        if self.queued is not None and self.texts is not None:
            second = torch.cat([second, self.queued.to(views)])  # (N + queued, hidden)
            known = rows.texts[0::2, None] == self.texts[None, :]
            if rows.similar_above is not None and rows.start is not None and self.start is not None:
                known |= rows.start[0::2] @ self.start.T > rows.similar_above
            masked = torch.cat([masked, known], dim=1)
        similarities = first @ second.T / self.temperature  # (N, N + queued)
        return cross_entropy(similarities.masked_fill(masked, MASKED), anchors)

    def state(self) -> dict[str, Tensor]:
        """Return the queue, oldest first."""
        held = {"queue/texts": self.texts, "queue/embeddings": self.queued, "queue/start": self.start}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore the queue."""
        self.texts, self.queued = tensors.get("queue/texts"), tensors.get("queue/embeddings")
        self.start = tensors.get("queue/start")

    def after_step(self, rows: Rows) -> None:
        """Append the batch's sentences; the oldest leave a full queue."""
        assert rows.momentum is not None
        self.texts = self._append(self.texts, rows.texts)
        self.queued = self._append(self.queued, rows.momentum)
        if rows.similar_above is not None and rows.start is not None:
            self.start = self._append(self.start, rows.start)

    def _append(self, held: Tensor | None, rows: Tensor) -> Tensor:
        new = rows[0::2].detach()  # the first view of each sentence
        return (new if held is None else torch.cat([held.to(new.device), new]))[-self.size :]

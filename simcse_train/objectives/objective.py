"""What the training loop asks of an objective, and what an objective may know of the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

# What an objective may ask for; the trainer computes only that, and it is the name of a field of `Rows`.
Need = Literal["start", "smoothed", "members", "momentum"]


@dataclass(frozen=True)
class Rows:
    """What an objective knows of the rows of embeddings it is given: `views` rows per sentence, `[a, a', b, b', ...]`.

    Each tensor has one entry per row, so that the rows of several processes can be put one after another.
    """

    views: int
    texts: Tensor  # (rows,): equal where two rows are views of one text; negative where a row only fills a place
    start: Tensor | None = None  # (rows, hidden): the row's sentence under the frozen start, of length 1
    smoothed: Tensor | None = None  # (rows, hidden): the same, moved towards its nearest neighbours, of length 1
    members: Tensor | None = None  # (rows, K + 1): the numbers of the row's sentence and of its mutual neighbours
    momentum: Tensor | None = None  # (rows, hidden): the row's sentence under the momentum encoder, of length 1
    similar_above: float | None = None  # sentences whose cosine under the start is above this are never pushed apart


class Objective(Protocol):
    """A loss on the embeddings of a whole batch, chosen by name with `--objective`.

    It does not know parts or processes: `forward_backward` gives it the embeddings of all of them. What it must
    remember between steps it returns from `state`, and a checkpoint saves that.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """The fields of `Rows` that the loss reads, besides the texts."""
        ...

    def loss(self, embeddings: Tensor, rows: Rows) -> Tensor:
        """Return the loss, a float32 scalar (float64 for float64 input), of embeddings (rows, hidden)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint has to save, by name; empty where there is nothing to remember."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        ...

    def after_step(self, rows: Rows) -> None:
        """Update the state after an optimiser step on a batch with these rows, for example a queue of embeddings."""
        ...


class Stateless:
    """What objectives without memory share; one that needs more than the texts overrides `needs`."""

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing."""
        return frozenset()

    def state(self) -> dict[str, Tensor]:
        """Return nothing: there is nothing to save."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore nothing."""

    def after_step(self, rows: Rows) -> None:
        """Do nothing."""

"""What the training loop asks of an objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """What an objective knows of its embeddings: `views` rows per sentence, `[a, a', b, b', ...]`."""

    views: int
    texts: Tensor  # (rows,): equal where two rows have the same tokens; such rows are never pushed apart


class Objective(Protocol):
    """A loss on the embeddings of a whole batch, chosen by name with `--objective`.

    It does not know parts or processes: `forward_backward` gives it the embeddings of all of them. What it must remember
    between steps it returns from `state`, and a checkpoint saves that.
    """

    def loss(self, embeddings: Tensor, rows: Rows) -> Tensor:
        """Return the loss, a float32 scalar (float64 for float64 input), of embeddings (rows, hidden)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint has to save, by name; empty where there is nothing to remember."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        ...

    def after_step(self, encoder: nn.Module) -> None:
        """Update the state after an optimiser step, for example a momentum copy of the encoder."""
        ...


class Stateless:
    """The part of `Objective` that an objective without memory shares with all others of its kind."""

    def state(self) -> dict[str, Tensor]:
        """Return nothing: there is nothing to save."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore nothing."""

    def after_step(self, encoder: nn.Module) -> None:
        """Do nothing."""

"""Second views of a sentence that differ from it by more than dropout: repeated words, or a neighbour in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REPEATED = 0.32  # at most this share of the tokens (Wu et al. 2022)


@dataclass(frozen=True)
class Repetition:
    """Word repetition (ESimCSE, Wu et al. 2022, arXiv 2109.04380), on the tokens between the special ones."""

    opening: int  # special tokens before the text
    closing: int  # special tokens after it
    max_length: int

    def repeat(self, row: Sequence[int], random: np.random.Generator) -> list[int]:
        """Return the token ids of a row with some of its tokens standing twice, cut at `max_length`.

        Of n tokens, 0 to max(2, 0.32 n) are repeated, but never more than n.
        """
        end = len(row) - self.closing
        text = list(row[self.opening : end])
        most = min(len(text), max(2, int(REPEATED * len(text))))
        repeated = set(random.choice(len(text), random.integers(most + 1), replace=False).tolist()) if text else set()
        longer = [token for place, token in enumerate(text) for token in [token] * (1 + (place in repeated))]
        return [*row[: self.opening], *longer[: self.max_length - self.opening - self.closing], *row[end:]]


def neighbour_of_each(members: NDArray[np.int32], random: np.random.Generator) -> NDArray[np.int64]:
    """Return for each sentence a random neighbour, or the sentence itself where it has none.

    members: (sentences, K + 1), first the sentence's own number, then those of its neighbours, its own again where it
    has fewer than K.
    """
    others = members[:, 1:] != members[:, :1]
    chosen = (random.random(len(members)) * others.sum(1)).astype(np.int64)  # which of its neighbours
    place = (others.cumsum(1) <= chosen[:, None]).sum(1).clip(max=members.shape[1] - 2)
    found = members[np.arange(len(members)), 1 + place]
    return np.where(others.any(1), found, members[:, 0]).astype(np.int64)

"""The batches of a run: `[a, a, b, b, ...]`, packed, each a function of (seed, step) alone.

The order of an epoch is a function of (seed, epoch), so a resumed run reads nothing of what came before its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simcse_train.data.corpus import Corpus
from simcse_train.encoders.packing import pack

VIEWS = 2
HELD_OUT = 512  # sentences that are measured on and never trained on


@dataclass(frozen=True)
class Batch:
    """N sentences with V rows each, `[a, a', b, b', ...]`, packed."""

    sentences: NDArray[np.int64]  # (N,): the number of each sentence in the corpus
    views: int  # V, rows per sentence
    tokens: Tensor  # (total,): the token ids of all rows, one after another
    lengths: Tensor  # (N * V,)
    texts: Tensor  # (N * V,): equal where two rows have the same tokens, whichever sentence they came from

    def parts(self, size: int | None) -> list[tuple[Tensor, Tensor]]:
        """Return tokens (total,) and lengths (rows,) in parts of at most `size` sentences; without a size, in one part."""
        lengths = self.lengths.split(self.views * size if size else len(self.lengths))
        tokens = self.tokens.split([int(part.sum()) for part in lengths])
        return list(zip(tokens, lengths, strict=True))


@dataclass
class Batches:
    """All batches of a run over a corpus without its held-out sentences; both sorted arrays are numbers of sentences."""

    corpus: Corpus
    held_out: NDArray[np.int64]  # rising
    batch_size: int
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        self._order: tuple[int, NDArray[np.int64]] | None = None  # (epoch, its order)

    @property
    def sentences(self) -> int:
        """The number of sentences that are trained on."""
        return len(self.corpus) - len(self.held_out)

    @property
    def per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return batches_per_epoch(self.sentences, self.batch_size)

    def measured(self) -> list[list[int]]:
        """Return the token ids of the sentences to measure on: those held out, or all of a text too short for that."""
        return self.corpus.tokens(self.held_out if len(self.held_out) else np.arange(len(self.corpus)))

    def at(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_order(self.sentences, seed=self.seed, epoch=epoch)
        chosen = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        numbers = skip_held_out(chosen, self.held_out)
        return two_views(self.corpus.tokens(numbers), numbers, self.device)


def held_out_sentences(sentences: int) -> NDArray[np.int64]:
    """Return the numbers of the sentences to hold out, at most a tenth of all, rising; none of fewer than 20.

    They are evenly spaced and the same for every seed, so that the measures of two seeds compare.
    """
    count = min(HELD_OUT, sentences // 10)
    return np.linspace(0, sentences - 1, count if count >= 2 else 0, dtype=np.int64)


def batches_per_epoch(sentences: int, batch_size: int) -> int:
    """Return the number of batches in an epoch: a last short one counts if it holds at least two sentences."""
    return sentences // batch_size + (sentences % batch_size >= 2)


def epoch_order(sentences: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order (sentences,) in which an epoch visits the sentences."""
    return np.random.default_rng([seed, epoch]).permutation(sentences)


def skip_held_out(positions: NDArray[np.int64], held_out: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of sentences from their positions among those that are not held out.

    `held_out` (rising) holds numbers of sentences. Memory does not grow with the corpus.
    """
    trained_before = held_out - np.arange(len(held_out))  # for each held-out sentence
    return positions + np.searchsorted(trained_before, positions, side="right")


def two_views(rows: Sequence[Sequence[int]], sentences: NDArray[np.int64], device: torch.device | str = "cpu") -> Batch:
    """Return the batch in which the token ids of each sentence stand twice in a row (Gao, Yao & Chen 2021, section 3)."""
    first_seen: dict[bytes, int] = {}
    texts = [first_seen.setdefault(np.asarray(row, dtype=np.int64).tobytes(), len(first_seen)) for row in rows]
    tokens, lengths = pack([row for row in rows for _ in range(VIEWS)], device)
    return Batch(sentences, VIEWS, tokens, lengths, torch.tensor(texts, device=device).repeat_interleave(VIEWS))

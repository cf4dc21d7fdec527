"""Sentences -> shuffled `[a, a, b, b, ...]` batches without padding, from any position.

The order of an epoch is a function of (seed, epoch) alone, so a resumed run finds its place without reading what came before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simcse_train.packing import pack


class Batch(NamedTuple):
    """N sentences as 2N packed rows `[a, a, b, b, ...]`."""

    tokens: Tensor  # (total,): token ids of all rows, one after another
    lengths: Tensor  # (2N,)
    texts: Tensor  # (2N,): equal where two rows hold the same tokens, whatever the text they came from


def steps_per_epoch(sentences: int, batch_size: int) -> int:
    """Return how many batches an epoch has: a last short one counts if it holds at least two sentences."""
    return sentences // batch_size + (sentences % batch_size >= 2)


def epoch_batches(sentences: int, batch_size: int, *, seed: int, epoch: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield the sentence numbers of each batch of an epoch, from batch number `start` on."""
    order = np.random.default_rng([seed, epoch]).permutation(sentences)
    for batch in range(start, steps_per_epoch(sentences, batch_size)):
        yield order[batch * batch_size : (batch + 1) * batch_size]


def not_held_out(numbers: NDArray[np.int64], held_out: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where sentences stand whose numbers leave out those held out (rising): in memory that does not grow with the text."""
    others_before = held_out - np.arange(len(held_out))  # each of those held out
    return numbers + np.searchsorted(others_before, numbers, side="right")


def micro_batches(batch: Batch, size: int | None) -> list[tuple[Tensor, Tensor]]:
    """Return the tokens (total,) and lengths (rows,) of a batch in parts of at most `size` sentences; without a size in one."""
    lengths = batch.lengths.split(2 * size if size else len(batch.lengths))
    tokens = batch.tokens.split([int(part.sum()) for part in lengths])
    return list(zip(tokens, lengths, strict=True))


def two_views(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Batch:
    """Return the batch in which each row of token ids stands twice in a row."""
    first_seen: dict[bytes, int] = {}
    texts = [first_seen.setdefault(np.asarray(row, dtype=np.int64).tobytes(), len(first_seen)) for row in rows]
    tokens, lengths = pack([row for row in rows for _ in range(2)], device)
    return Batch(tokens, lengths, torch.tensor(texts, device=device).repeat_interleave(2))

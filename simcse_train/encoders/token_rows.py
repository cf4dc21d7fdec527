"""The token ids of many sentences in one array."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenRows:
    """The token ids of sentences, one after another, each cut at some length."""

    tokens: NDArray[np.int32]  # (total,)
    lengths: NDArray[np.int64]  # (rows,)
    is_cut: NDArray[np.bool_]  # (rows,): whether the sentence has more tokens than are kept

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.lengths)

    def take(self, rows: NDArray[np.int64]) -> TokenRows:
        """Return the rows with these numbers, in this order."""
        starts = self.lengths.cumsum() - self.lengths
        lengths = self.lengths[rows]
        return TokenRows(self.tokens[ranges(starts[rows], lengths)], lengths, self.is_cut[rows])

    def between(self, before: Sequence[int], after: Sequence[int]) -> TokenRows:
        """Return the rows with the same tokens before and after each."""
        lengths = self.lengths + len(before) + len(after)
        ends = lengths.cumsum()
        tokens = np.empty(int(lengths.sum()), np.int32)
        for place, token in enumerate(before):
            tokens[ends - lengths + place] = token
        for place, token in enumerate(reversed(after), start=1):
            tokens[ends - place] = token
        tokens[ranges(ends - lengths + len(before), self.lengths)] = self.tokens
        return TokenRows(tokens, lengths, self.is_cut)


def join_rows(rows: Sequence[Sequence[int]], is_cut: NDArray[np.bool_] | None = None) -> TokenRows:
    """Return token ids of sentences (a list for each) in one array; none is cut unless `is_cut` says so."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    tokens = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
    return TokenRows(tokens, lengths, np.zeros(len(rows), bool) if is_cut is None else is_cut)


def concatenate_rows(parts: Sequence[TokenRows]) -> TokenRows:
    """Return the rows of all parts, one part, at least, after another."""
    return TokenRows(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.is_cut for part in parts]),
    )


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers from each start, as many as its size says, one range after another (sum of sizes,)."""
    before = sizes.cumsum() - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))

"""The order in which an epoch visits its items: a permutation, a function of (seed, epoch) alone.

A short list of items is shuffled as a whole. Of a long one each place is computed by itself, in memory that does not
grow with the list (a Feistel network over the next power of two, with cycle walking: Black & Rogaway 2002, "Ciphers
with arbitrary finite domains", section 3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LISTED = 2**20  # items; the order of more is computed place by place
ROUNDS = 8

# How orders are made. A run keeps the one that it began with: 1, all orders are listed (before this was stored); 2, as
# described above.
LATEST = 2


class Orders:
    """The orders of the epochs of a run; the list of a short one is kept until another epoch is asked for."""

    def __init__(self, seed: int, version: int = LATEST) -> None:
        self.seed, self.version = seed, version
        self._listed: dict[int, tuple[int, NDArray[np.int64]]] = {}  # of as many items: epoch, its order

    def items_at(self, positions: slice, items: int, epoch: int) -> NDArray[np.int64]:
        """Return the items at these positions (start and stop given) of an epoch over so many items."""
        if items > LISTED and self.version > 1:
            places = np.arange(positions.start, min(positions.stop, items))
            return permuted(places, items, seed=self.seed, epoch=epoch)
        if items not in self._listed or self._listed[items][0] != epoch:
            self._listed[items] = epoch, epoch_order(items, seed=self.seed, epoch=epoch)
        return self._listed[items][1][positions]


def epoch_order(items: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order (items,) of a short list in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(items)


def permuted(positions: NDArray[np.int64], items: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the items (positions,) that stand at these positions of a long list in an epoch."""
    bits = max(2, (items - 1).bit_length())
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    found = _scrambled(positions.astype(np.uint64), bits, keys)
    # A value beyond the items is scrambled again until it is one of them, which keeps different values different.
    while (beyond := found >= items).any():
        found[beyond] = _scrambled(found[beyond], bits, keys)
    return found.astype(np.int64)


def _scrambled(values: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a permutation of the numbers of so many bits at these values; the halves may differ by a bit."""
    upper, lower = bits // 2, bits - bits // 2
    left, right = values >> np.uint64(lower), values & _mask(lower)
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & _mask(upper))
        upper, lower = lower, upper
    return (left << np.uint64(lower)) | right


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers of 64 bits mixed (Steele, Lea & Flood 2014, SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

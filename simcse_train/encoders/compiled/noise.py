"""Dropout by counter: keys and the number of an element decide whether it is dropped (`kernels/noise.h`)."""

from __future__ import annotations

from typing import Any

import torch

STEPS = 2**16  # the number of different probabilities that 16 bits can represent
WORD = 2**64 - 1


def draw_seed() -> int:
    """Return a seed for the noise of a pass, drawn from torch's random state as any dropout is."""
    return int(torch.randint(2**62, (1,)))


def noise(seed: int, layer: int, place: int, probability: float, first: int = 0) -> dict[str, Any]:
    """Return the kernels' arguments for dropout at one of up to 4 places in a layer; without effect at probability 0.

    `first` is the number of the pass's first row or sentence among those that the noise belongs to.

    The keys of different seeds, layers and places are those of SplitMix64 (Steele, Lea & Flood 2014).
    """
    x = (seed + 0x9E3779B97F4A7C15 * (4 * layer + place + 1)) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    x ^= x >> 31
    threshold = min(max(1, round(probability * STEPS)), STEPS - 1) if probability > 0 else 0
    factor = STEPS / (STEPS - threshold)
    return {"key1": x & 0xFFFFFFFF, "key2": x >> 32, "threshold": threshold, "factor": factor, "first": first}

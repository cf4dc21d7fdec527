"""Token states to one embedding per sentence."""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = ("cls", "mean")


def pool(states: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Return the embeddings (rows, hidden) of packed states (total, hidden) of sentences with `lengths` (rows,).

    `cls` takes the first token's state of each sentence, `mean` the mean over its tokens.
    """
    if pooling == "cls":
        return states[lengths.cumsum(0) - lengths]
    return mean_pool(states, lengths)


def mean_pool(states: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean state of each sentence: packed states (total, hidden), lengths (rows,) -> (rows, hidden)."""
    # `torch.segment_reduce` does this in one call but exists for CPU and CUDA only.
    row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)  # (total,)
    sums = states.new_zeros(len(lengths), states.shape[1]).index_add(0, row, states)
    return sums / lengths[:, None]

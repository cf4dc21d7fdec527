"""Token states to one embedding per sentence.

The modes are those of sentence-transformers' Pooling module, which a folder of that library may name, alone or several:
then their embeddings are concatenated in the order of `MODES`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simcse_train.encoders.packing import moved, positions

# Our name of each mode -> what sentence-transformers calls it, and the flag for it in the files of old releases. The
# order is that of concatenation there.
MODES = {
    "cls": ("cls", "pooling_mode_cls_token"),
    "max": ("max", "pooling_mode_max_tokens"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "mean_sqrt_len": ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    "weightedmean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
}


def pool(states: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Return the embeddings (rows, modes * hidden) of packed states (total, hidden); lengths: (rows,), on the CPU.

    `pooling` is one of `MODES`, or several joined by `+`. `cls` takes the first token's state of each sentence, `last`
    the last one's, `max` the largest value of each dimension, `mean` the mean over its tokens, `mean_sqrt_len` their
    sum divided by the square root of their number, `weightedmean` the mean weighted by 1, 2, 3, ... (Muennighoff 2022,
    equation 1).
    """
    parts = [_pool(states, lengths, mode) for mode in pooling.split("+")]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _pool(states: Tensor, lengths: Tensor, mode: str) -> Tensor:
    ends = lengths.cumsum(0)
    if mode == "cls":
        return states[moved(ends - lengths, states.device)]
    if mode == "last":
        return states[moved(ends - 1, states.device)]
    if mode == "mean":
        return mean_pool(states, lengths)
    if mode == "mean_sqrt_len":
        return mean_pool(states, lengths) * moved(lengths[:, None].sqrt(), states.device)
    row = _rows(states, lengths)
    if mode == "max":
        start = states.new_full((len(lengths), states.shape[1]), float("-inf"))
        return start.scatter_reduce(0, row[:, None].expand_as(states), states, reduce="amax")
    if mode == "weightedmean":
        weights = moved((positions(lengths, len(states)) + 1).to(states.dtype), states.device)
        sums = states.new_zeros(len(lengths), states.shape[1]).index_add(0, row, states * weights[:, None])
        return sums / moved((lengths * (lengths + 1) / 2)[:, None], states.device)
    raise ValueError(f"{mode!r} is no pooling; the modes are {', '.join(MODES)}")


def mean_pool(states: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean state of each sentence: packed states (total, hidden), lengths (rows,) -> (rows, hidden)."""
    # `torch.segment_reduce` does this in one call but exists for CPU and CUDA only.
    sums = states.new_zeros(len(lengths), states.shape[1]).index_add(0, _rows(states, lengths), states)
    return sums / moved(lengths[:, None], states.device)


def _rows(states: Tensor, lengths: Tensor) -> Tensor:
    """Return the sentence of each of the packed states (total, hidden), (total,)."""
    return moved(torch.arange(len(lengths)).repeat_interleave(lengths), states.device)

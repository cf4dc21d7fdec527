"""Sentences in one row without padding, and an attention that keeps them apart.

The tokens of a batch stand one sentence after another; everything in a transformer but the attention works on single tokens and
needs to know nothing of it. The attention enters an unchanged model through `transformers.AttentionInterface`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface


def pack(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the tokens (total,) of all rows, one after another, and the length of each row (rows,)."""
    tokens = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))
    lengths = torch.tensor([len(row) for row in rows])
    return tokens.to(device, non_blocking=True), lengths.to(device, non_blocking=True)


@dataclass(frozen=True)
class Packing:
    """Where the sentences of a packed row lie: what attention needs to see each sentence alone."""

    padded: Tensor  # (rows, longest): the place in the packed row of each padded place
    mask: Tensor  # (rows, 1, 1, longest): True at real tokens
    packed: Tensor  # (total,): the place in the flattened padded batch of each token


def packing(lengths: Tensor) -> Packing:
    """Return the layout of sentences with the given lengths (rows,)."""
    longest = int(lengths.max())
    starts = lengths.cumsum(0) - lengths
    columns = torch.arange(longest, device=lengths.device)
    real = columns < lengths[:, None]  # (rows, longest)
    return Packing(
        padded=torch.where(real, starts[:, None] + columns, 0),
        mask=real[:, None, None, :],
        packed=real.flatten().nonzero().squeeze(1),
    )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each sentence of a packed row.

    query, key, value: (1, heads, total, head size); returns (1, total, heads, head size). The signature is the one that
    `transformers.AttentionInterface` calls.
    """

    def pad(states: Tensor) -> Tensor:  # (1, heads, total, size) -> (rows, heads, longest, size)
        return states[0].transpose(0, 1)[packing.padded].transpose(1, 2)

    attended = scaled_dot_product_attention(pad(query), pad(key), pad(value), attn_mask=packing.mask, dropout_p=dropout, scale=scaling)
    flat = attended.transpose(1, 2).flatten(0, 1)  # (rows * longest, heads, size)
    return flat[packing.packed][None], None


AttentionInterface.register("packed", packed_attention)

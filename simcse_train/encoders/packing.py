"""Packed batches: the tokens of all sentences in one row, without padding, and where each sentence stands in it.

The lengths of the sentences stay on the CPU, whatever the device of the tokens, and so does all that is computed from
them. The CPU need not wait for a GPU to tell it how many values there are, and can prepare the next step meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from simcse_train.encoders.token_rows import TokenRows


def pack(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the token ids (total,) of all sentences, one after another, and the length of each (rows,), on the CPU."""
    tokens = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))
    return moved(tokens, device), torch.tensor([len(row) for row in rows])


def pack_rows(rows: TokenRows, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return what `pack` returns."""
    return moved(torch.from_numpy(rows.tokens.astype(np.int64)), device), torch.from_numpy(rows.lengths)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of the CPU on a device, without waiting for what the device computes."""
    # From memory that is not pinned, CUDA copies only after all work before it is done.
    pinned = tensor.pin_memory() if torch.device(device).type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def positions(lengths: Tensor, total: int) -> Tensor:
    """Return the place of each of `total` tokens in its sentence, from 0; lengths: (rows,), which sum to `total`."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(total) - starts.repeat_interleave(lengths)


@dataclass(frozen=True)
class Packing:
    """Where each sentence of a packed row starts and ends, as indices between the packed and the padded layout."""

    padded: Tensor  # (rows, longest): for each padded place, its index in the packed row
    mask: Tensor  # (rows, 1, 1, longest): True at real tokens
    row: Tensor  # (total,): the row of each token in the padded batch
    column: Tensor  # (total,): the column of each token in the padded batch
    first: Tensor  # (rows,): the index of each sentence's first token
    bounds: Tensor  # (rows + 1,), int32: the same, and after them the number of tokens
    first_only: bool  # whether the last layer computes first tokens alone
    kernel: Callable[..., Tensor] | None = None  # flash-attention's function, where it is used
    states: Tensor | None = None  # (1, total, hidden): all states, in a layer that computes first tokens alone
    # The results of `of_heads`, made once a batch.
    heads: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    masks: dict[tuple[int | None, bool], Tensor] = field(default_factory=dict)  # those of `visible`, made once a batch

    def of_heads(self, heads: int) -> tuple[Tensor, Tensor]:
        """Return indices of single heads: padded -> packed (rows, heads, longest), packed -> padded (total, heads)."""
        if heads not in self.heads:
            head = torch.arange(heads, device=self.row.device)
            longest = self.padded.shape[1]
            padded = (self.padded[:, None] * heads + head[:, None]).flatten()
            packed = (self.row[:, None] * (heads * longest) + head * longest + self.column[:, None]).flatten()
            self.heads[heads] = padded, packed
        return self.heads[heads]

    def visible(self, window: int | None, causal: bool) -> Tensor:
        """Return which keys each query sees, (rows, 1, 1 or longest, longest): those of its sentence.

        With a `window`, those at a distance below it; if `causal`, none that comes after the query.
        """
        longest = self.mask.shape[-1]
        if not causal and (window is None or window >= longest):
            return self.mask
        key = (window, causal)
        if key not in self.masks:
            places = torch.arange(longest, device=self.mask.device)
            distance = places[:, None] - places  # (longest, longest): query minus key
            seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
            mask = self.mask & (seen if window is None else seen & (distance.abs() < window))
            # A place of padding may see nothing: all keys for it, since a softmax over none is not a number.
            self.masks[key] = mask | ~mask.any(dim=-1, keepdim=True)
        return self.masks[key]


def packing(
    lengths: Tensor,
    device: torch.device | str = "cpu",
    *,
    first_only: bool = False,
    kernel: Callable[..., Tensor] | None = None,
) -> Packing:
    """Return the layout of sentences with the given lengths (rows,), on a device."""
    longest = int(lengths.max())
    bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    starts = bounds[:-1]
    columns = torch.arange(longest)
    real = columns < lengths[:, None]  # (rows, longest)
    row, column = real.nonzero(as_tuple=True)
    return Packing(
        padded=moved(torch.where(real, starts[:, None] + columns, 0), device),
        mask=moved(real[:, None, None, :], device),
        row=moved(row, device),
        column=moved(column, device),
        first=moved(starts, device),
        bounds=moved(bounds.int(), device),
        first_only=first_only,
        kernel=kernel,
    )

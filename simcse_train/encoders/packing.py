"""Packed batches: the tokens of all sentences in one row, without padding, and an attention that keeps sentences apart.

Everything in a transformer except attention works on single tokens and needs no change. The attention is registered with
`transformers.AttentionInterface`, so the model's own code stays as it is.

Where only the first token of each sentence is needed (`[CLS]`), the last layer gets those tokens alone. Its attention
still needs the keys and values of all tokens, and computes them from the states that the layer would have received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from simcse_train.encoders.dropout import drop


def pack(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the token ids (total,) of all sentences, one after another, and the length of each (rows,)."""
    tokens = torch.from_numpy(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]))
    lengths = torch.tensor([len(row) for row in rows])
    return tokens.to(device, non_blocking=True), lengths.to(device, non_blocking=True)


@dataclass(frozen=True)
class Packing:
    """Where each sentence of a packed row starts and ends, as indices between the packed and the padded layout."""

    padded: Tensor  # (rows, longest): for each padded place, its index in the packed row
    mask: Tensor  # (rows, 1, 1, longest): True at real tokens
    row: Tensor  # (total,): the row of each token in the padded batch
    column: Tensor  # (total,): the column of each token in the padded batch
    first: Tensor  # (rows,): the index of each sentence's first token
    first_only: bool  # whether the last layer computes first tokens alone
    states: Tensor | None = None  # (1, total, hidden): all states, in a layer that computes first tokens alone


def packing(lengths: Tensor, *, first_only: bool = False) -> Packing:
    """Return the layout of sentences with the given lengths (rows,)."""
    longest = int(lengths.max())
    starts = lengths.cumsum(0) - lengths
    columns = torch.arange(longest, device=lengths.device)
    real = columns < lengths[:, None]  # (rows, longest)
    row, column = real.nonzero(as_tuple=True)
    return Packing(
        padded=torch.where(real, starts[:, None] + columns, 0),
        mask=real[:, None, None, :],
        row=row,
        column=column,
        first=starts,
        first_only=first_only,
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

    query, key, value: (1, heads, total, head size); returns (1, total, heads, head size). In a layer that computes first
    tokens alone, the query and the result have `rows` instead of `total`. `transformers.AttentionInterface` sets the signature.
    """
    heads, size = query.shape[1], query.shape[-1]
    rows, longest = packing.padded.shape
    head = torch.arange(heads, device=query.device)
    # Indices of single heads: padded -> packed (rows, heads, longest), and packed -> padded (total, heads).
    padded = (packing.padded[:, None] * heads + head[:, None]).flatten()
    packed = (packing.row[:, None] * (heads * longest) + head * longest + packing.column[:, None]).flatten()

    def pad(states: Tensor) -> Tensor:  # (1, heads, total, size) -> (rows, heads, longest, size)
        flat = states.transpose(1, 2).reshape(-1, size)
        return _gather(flat, padded, packed, None).view(rows, heads, longest, size)

    if packing.states is not None:
        shape = (1, packing.states.shape[1], heads, size)
        key, value = (project(packing.states).view(shape).transpose(1, 2) for project in _key_and_value(module))
        queries = query[0].transpose(0, 1)[:, :, None]  # (rows, heads, 1, size)
        attended = _attend(queries, pad(key), pad(value), packing.mask, dropout, scaling)
        return attended.transpose(1, 2).transpose(0, 1), None
    attended = _attend(pad(query), pad(key), pad(value), packing.mask, dropout, scaling).reshape(-1, size)
    real = packing.mask.expand(rows, heads, 1, longest).reshape(-1, 1)
    return _gather(attended, packed, padded, real).view(1, -1, heads, size), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """Return the attention (rows, heads, queries, size) of a padded batch; mask: (rows, 1, 1, longest)."""
    if dropout == 0 or query.device.type != "cpu":
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    # On a CPU torch's own function takes the same steps as soon as there is dropout, with slower random numbers.
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(-1, -2)
    hidden = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    return drop((scores + hidden).softmax(-1), dropout) @ value


class _Gather(torch.autograd.Function):
    """Index rows; the backward pass is also a gather, faster than the default scatter-add."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor, inverse: Tensor, real: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, real)
        return states.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, real = ctx.saved_tensors
        gradient = gradients[0].index_select(0, inverse)
        return gradient if real is None else gradient.mul_(real), None, None, None


def _gather(states: Tensor, index: Tensor, inverse: Tensor, real: Tensor | None) -> Tensor:
    """Return `states[index]`; the gradient is gathered by `inverse` and multiplied by `real` (0 at padding)."""
    return _Gather.apply(states, index, inverse, real)  # type: ignore[no-any-return, no-untyped-call]


def _key_and_value(attention: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return an attention's key and value projections; raises `AttributeError` where its family names them otherwise."""
    names = ("key", "value") if hasattr(attention, "key") else ("k_lin", "v_lin")
    return getattr(attention, names[0]), getattr(attention, names[1])


def compute_first_tokens_in_last_layer(model: nn.Module, layers: int) -> None:
    """Make the last layer of a model compute first tokens alone wherever the packing asks for it.

    Raises `AttributeError` where the model has no list of that many layers, as where all layers are one module (ALBERT).
    """

    def first_tokens(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layout: Packing | None = kwargs.get("packing")
        if layout is None or not layout.first_only:
            return None
        states, *others = args  # states: (1, total, hidden)
        return (states[:, layout.first], *others), kwargs | {"packing": replace(layout, states=states)}

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    if len(lists) != 1:
        raise AttributeError("the model has no list of its layers")
    lists[0][-1].register_forward_pre_hook(first_tokens, with_kwargs=True)


AttentionInterface.register("packed", packed_attention)

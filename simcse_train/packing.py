"""Sentences in one row without padding, and an attention that keeps them apart.

The tokens of a batch stand one sentence after another; everything in a transformer but the attention works on single tokens and
needs to know nothing of it. The attention enters an unchanged model through `transformers.AttentionInterface`.

Where only the first token of each sentence is asked for (`[CLS]`), the last layer is given those tokens alone. Its attention still
needs the keys and values of all tokens, and makes them itself from the states that the layer was to be given.
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
    first: Tensor  # (rows,): the place in the packed row of each sentence's first token
    first_only: bool  # whether the last layer is to compute first tokens alone
    states: Tensor | None = None  # (1, total, hidden): in a layer that computes first tokens alone, the states of all tokens


def packing(lengths: Tensor, *, first_only: bool = False) -> Packing:
    """Return the layout of sentences with the given lengths (rows,)."""
    longest = int(lengths.max())
    starts = lengths.cumsum(0) - lengths
    columns = torch.arange(longest, device=lengths.device)
    real = columns < lengths[:, None]  # (rows, longest)
    return Packing(
        padded=torch.where(real, starts[:, None] + columns, 0),
        mask=real[:, None, None, :],
        packed=real.flatten().nonzero().squeeze(1),
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

    query, key, value: (1, heads, total, head size); returns (1, total, heads, head size). In a layer that computes first tokens
    alone, rows stand in place of total. The signature is the one that `transformers.AttentionInterface` calls.
    """

    def pad(states: Tensor) -> Tensor:  # (1, heads, total, size) -> (rows, heads, longest, size)
        return states[0].transpose(0, 1)[packing.padded].transpose(1, 2)

    if packing.states is not None:
        shape = (1, packing.states.shape[1], *key.shape[1::2])
        key, value = (project(packing.states).view(shape).transpose(1, 2) for project in _key_and_value(module))
        queries = query[0].transpose(0, 1)[:, :, None]  # (rows, heads, 1, size)
        attended = scaled_dot_product_attention(queries, pad(key), pad(value), attn_mask=packing.mask, dropout_p=dropout, scale=scaling)
        return attended.transpose(1, 2).transpose(0, 1), None
    attended = scaled_dot_product_attention(pad(query), pad(key), pad(value), attn_mask=packing.mask, dropout_p=dropout, scale=scaling)
    flat = attended.transpose(1, 2).flatten(0, 1)  # (rows * longest, heads, size)
    return flat[packing.packed][None], None


def _key_and_value(attention: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the two projections of an attention under the names that its family uses; raises `AttributeError` at unknown ones."""
    names = ("key", "value") if hasattr(attention, "key") else ("k_lin", "v_lin")
    return getattr(attention, names[0]), getattr(attention, names[1])


def let_last_layer_compute_first_tokens(model: nn.Module, layers: int) -> None:
    """Give the last layer of a model first tokens alone wherever the packing asks for it.

    Raises `AttributeError` where the model holds no list of that many layers, as where all layers are one module (ALBERT).
    """

    def first_tokens(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        layout: Packing | None = kwargs.get("packing")
        if layout is None or not layout.first_only:
            return None
        states, *others = args  # states: (1, total, hidden)
        return (states[:, layout.first], *others), kwargs | {"packing": replace(layout, states=states)}

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    if len(lists) != 1:
        raise AttributeError("the model's layers stand in no list of their own")
    lists[0][-1].register_forward_pre_hook(first_tokens, with_kwargs=True)


AttentionInterface.register("packed", packed_attention)

"""Attention over packed batches, which keeps sentences apart.

Everything in a transformer except attention works on single tokens and needs no change. The attention is registered
with `transformers.AttentionInterface`, so the model's own code stays as it is. What a model asks of its attention is
either understood here or raises, so that the model is given padded batches instead.

Where only the first token of each sentence is needed (`[CLS]`), the last layer gets those tokens alone. Its attention
still needs the keys and values of all tokens, and computes them from the states that the layer would have received.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from simcse_train.encoders import flash
from simcse_train.encoders.dropout import drop
from simcse_train.encoders.packing import Packing

# Arguments that change nothing here: what other implementations should return or keep, and positions, which are already
# in the queries and keys.
HARMLESS = {"deterministic", "output_attentions", "output_hidden_states", "use_cache", "return_dict", "position_ids"}


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
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each sentence of a packed row.

    query: (1, heads, total, head size); key, value: the same, or with fewer heads, each shared by a group of the
    query's. Returns (1, total, heads, head size). In a layer that computes first tokens alone, the query and the result
    have `rows` instead of `total`. `transformers.AttentionInterface` sets the signature. Raises `TypeError` for an
    argument whose meaning is not known.
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name not in HARMLESS)
    if unknown or attention_mask is not None:
        raise TypeError(f"packed attention does not know {', '.join(unknown) or 'attention_mask'}")
    heads, groups, size = query.shape[1], key.shape[1], value.shape[-1]
    rows, longest = packing.padded.shape
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    if packing.states is not None:
        shape = (1, packing.states.shape[1], groups, -1)
        key, value = (project(packing.states).view(shape).transpose(1, 2) for project in _key_and_value(module))
    if flash.fits(query, packing, sliding_window, causal):
        given = query, key, value, packing
        return flash.attend(*given, dropout=dropout, scaling=scaling, window=sliding_window, causal=causal), None
    mask = packing.visible(sliding_window, causal)

    if packing.states is not None:
        queries = query[0].transpose(0, 1)[:, :, None]  # (rows, heads, 1, size)
        keys, values = (_shared(_pad(states, packing), heads) for states in (key, value))
        attended = _attend(queries, keys, values, mask[:, :, :1], dropout, scaling)
        return attended.transpose(1, 2).transpose(0, 1), None
    keys, values = (_shared(_pad(states, packing), heads) for states in (key, value))
    attended = _attend(_pad(query, packing), keys, values, mask, dropout, scaling).reshape(-1, size)
    padded, packed = packing.of_heads(heads)
    real = packing.mask.expand(rows, heads, 1, longest).reshape(-1, 1)
    return _gather(attended, packed, padded, real).view(1, -1, heads, size), None


def _pad(states: Tensor, packing: Packing) -> Tensor:
    """Return packed states (1, heads, total, size) as a padded batch (rows, heads, longest, size)."""
    heads, size = states.shape[1], states.shape[-1]
    flat = states.transpose(1, 2).reshape(-1, size)
    return _gather(flat, *packing.of_heads(heads), None).view(*packing.padded.shape[:1], heads, -1, size)


def _shared(states: Tensor, heads: int) -> Tensor:
    """Return states (rows, groups, longest, size) repeated for the heads that share them (rows, heads, ...)."""
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """Return the attention (rows, heads, queries, size) of a padded batch; mask: (rows, 1, 1 or queries, longest)."""
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
    """Return an attention's key and value projections; raises `AttributeError` if they have other names."""
    names = ("key", "value") if hasattr(attention, "key") else ("k_lin", "v_lin")
    return getattr(attention, names[0]), getattr(attention, names[1])


def compute_first_tokens_in_last_layer(model: PreTrainedModel) -> None:
    """Make the last layer of a model compute first tokens alone wherever the packing asks for it.

    Raises `AttributeError` where the model has no list of its layers.
    """
    layers = layer_list(model)
    if layers is None:
        raise AttributeError("the model has no list of its layers")
    layers[-1].register_forward_pre_hook(_first_tokens, with_kwargs=True)


def _first_tokens(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    layout: Packing | None = kwargs.get("packing")
    if layout is None or not layout.first_only:
        return None
    states, *others = args  # states: (1, total, hidden)
    return (states[:, layout.first], *others), kwargs | {"packing": replace(layout, states=states)}


def layer_list(model: PreTrainedModel) -> nn.ModuleList | None:
    """Return the list of a model's layers, or None where it has none, as where all layers are one module (ALBERT)."""
    layers = model.config.num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    return lists[0] if len(lists) == 1 else None


AttentionInterface.register("packed", packed_attention)

"""All layers of an encoder as one function of autograd, computed by kernels.

The gradient flows from layer to layer as two parts, that of the residual in float32 and that of the products, which the
next norm adds. Parameters get their gradients from autograd as usual, so that optimiser, clipping, micro batches and
several processes need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simcse_train.encoders.compiled.add_norm import States
from simcse_train.encoders.compiled.attention import layout_of
from simcse_train.encoders.compiled.buffers import Pool
from simcse_train.encoders.compiled.families import Layer
from simcse_train.encoders.compiled.layer import LayerPass
from simcse_train.encoders.compiled.library import library
from simcse_train.encoders.compiled.noise import draw_seed
from simcse_train.encoders.compiled.work import Work
from simcse_train.encoders.dropout import present_share


class Stack:
    """The layers of an encoder on kernels."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.pool = Pool()

    def __call__(self, states: Tensor, lengths: Tensor, *, first_only: bool, training: bool) -> Tensor:
        """Return the states after the last layer in float32, (total, hidden), or (rows, hidden) with `first_only`.

        states: (total, hidden), those before the first layer, of packed sentences with lengths (rows,). Products are
        computed in autocast's precision; with `training`, there is dropout.
        """
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        parameters = [parameter for layer in self.layers for parameter in layer.parameters()]
        seed = draw_seed() if training else None
        with torch.autocast("cpu", enabled=False):
            inputs = (lengths, precision, first_only, seed, states.float().contiguous())
            passed: Tensor = _Pass.apply(self, *inputs, *parameters)  # type: ignore[no-untyped-call]
            return passed


class _Pass(torch.autograd.Function):
    """One forward pass and its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        stack: Stack,
        lengths: Tensor,
        precision: torch.dtype,
        first_only: bool,
        seed: int | None,
        states: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        """Return the last layer's states."""
        loan = stack.pool.lend()
        work = Work(library(), loan.buffers, precision, seed, present_share())
        layouts = [layout_of(lengths)] * len(stack.layers)
        if first_only:
            layouts[-1] = layout_of(lengths, first_only=True)
        layers = [
            LayerPass(work, number, layer, layout)
            for number, (layer, layout) in enumerate(zip(stack.layers, layouts, strict=True))
        ]
        out = torch.empty(len(lengths) if first_only else len(states), states.shape[1])
        passed = States(work.states("embedded", *states.shape).copy_(states), states)
        for layer in layers[:-1]:
            passed = layer.forward(passed)
        layers[-1].forward(passed, out)
        ctx.save_for_backward(*parameters)  # torch raises where one was changed before the backward pass
        ctx.loan, ctx.layers = loan, layers
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the states and of the parameters."""
        assert ctx.saved_tensors is not None  # raises in a second backward pass
        gradient, more = gradients[0].contiguous(), None
        found: list[Tensor] = []
        for layer in reversed(ctx.layers):
            gradient, more, of_layer = layer.backward(gradient, more)
            found = [*of_layer, *found]
        total = gradient if more is None else gradient + more
        ctx.layers = None
        ctx.loan.give_back()
        return (None, None, None, None, None, total, *found)

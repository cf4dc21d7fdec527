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
from simcse_train.encoders.compiled.buffers import Gradients, Pool
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
        self.gradients = Gradients()

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


def padded_tokens(tokens: int, precision: torch.dtype) -> int:
    """Return for how many tokens the products of a pass are computed, in bfloat16 at most 1/16 more than there are.

    oneDNN compiles a product in bfloat16 for each shape, which takes longer than the product itself, and keeps the last
    ones. There are 16 numbers of tokens between one power of two and the next, so that the shapes of a step are those
    of a step before. The tokens more belong to no sentence, and their gradients are zeros.
    """
    step = max(1, 2 ** (tokens.bit_length() - 5)) if precision == torch.bfloat16 else 1
    return -(-tokens // step) * step


def _with_zeros(work: Work, name: str, matrix: Tensor, rows: int) -> Tensor:
    """Return a matrix in float32 with rows of zeros after its own, up to a number of rows."""
    if len(matrix) == rows:
        return matrix
    longer = work.exact((name, "longer"), rows, matrix.shape[1])
    longer[: len(matrix)] = matrix
    longer[len(matrix) :] = 0
    return longer


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
        work = Work(library(), loan.buffers, precision, seed, present_share(), stack.gradients)
        layouts = [layout_of(lengths)] * len(stack.layers)
        if first_only:
            layouts[-1] = layout_of(lengths, first_only=True)
        tokens = len(states)
        states = _with_zeros(work, "embedded", states, padded_tokens(tokens, precision))
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
        ctx.loan, ctx.layers, ctx.work, ctx.tokens = loan, layers, work, tokens
        return out if first_only else out[:tokens]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the states and of the parameters."""
        assert ctx.saved_tensors is not None  # raises in a second backward pass
        gradient, more = gradients[0].contiguous(), None
        if not ctx.layers[-1].layout.first_only:
            gradient = _with_zeros(ctx.work, "gradient", gradient, padded_tokens(ctx.tokens, ctx.work.precision))
        found: list[Tensor] = []
        for layer in reversed(ctx.layers):
            gradient, more, of_layer = layer.backward(gradient, more)
            found = [*of_layer, *found]
        total = (gradient if more is None else gradient + more)[: ctx.tokens]
        ctx.layers = ctx.work = None
        ctx.loan.give_back()
        return (None, None, None, None, None, total, *found)

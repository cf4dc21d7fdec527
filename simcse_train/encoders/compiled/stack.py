"""The embeddings and all layers of an encoder as one function of autograd, computed by kernels.

The gradient flows from layer to layer as two parts, that of the residual in float32 and that of the products, which the
next norm adds. Parameters get their gradients from autograd as usual, so that optimiser, clipping, micro batches and
several processes need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simcse_train.encoders.compiled.attention import layout_of
from simcse_train.encoders.compiled.buffers import Gradients, Pool
from simcse_train.encoders.compiled.embedding import Embedding
from simcse_train.encoders.compiled.families import Layer, Tables
from simcse_train.encoders.compiled.layer import LayerPass
from simcse_train.encoders.compiled.library import library
from simcse_train.encoders.compiled.noise import draw_seed
from simcse_train.encoders.compiled.work import Work
from simcse_train.encoders.dropout import present_share


class Stack:
    """The embeddings and the layers of an encoder on kernels."""

    def __init__(self, tables: Tables, layers: Sequence[Layer]) -> None:
        self.tables, self.layers = tables, layers
        self.pool = Pool()
        self.gradients = Gradients()

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the parameters: those of the embeddings, the words' first, and those of each layer."""
        return (*self.tables.parameters(), *(tensor for layer in self.layers for tensor in layer.parameters()))

    def __call__(self, tokens: Tensor, places: Tensor, lengths: Tensor, *, first_only: bool, training: bool) -> Tensor:
        """Return the states after the last layer in float32, (total, hidden), or (rows, hidden) with `first_only`.

        tokens, places: (total,), ids of packed sentences with lengths (rows,) and their positions. Products are
        computed in autocast's precision; with `training`, there is dropout. Raises `IndexError` for a token or a
        position that the encoder has no embedding of.
        """
        for index, table in ((tokens, self.tables.words), (places, self.tables.positions)):
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < table.num_embeddings:
                raise IndexError(f"{int(index.min())} to {int(index.max())} of {table.num_embeddings} embeddings")
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        seed = draw_seed() if training else None
        with torch.autocast("cpu", enabled=False):
            inputs = (tokens, places, lengths, precision, first_only, seed)
            passed: Tensor = _Pass.apply(self, *inputs, *self.parameters())  # type: ignore[no-untyped-call]
            return passed


def padded_tokens(tokens: int, precision: torch.dtype) -> int:
    """Return for how many tokens the products of a pass are computed, in bfloat16 at most 1/16 more than there are.

    oneDNN compiles a product in bfloat16 for each shape, which takes longer than the product itself, and keeps the last
    ones. There are 16 numbers of tokens between one power of two and the next, so that the shapes of a step are those
    of a step before. The tokens more belong to no sentence, and their gradients are zeros.
    """
    step = max(1, 2 ** (tokens.bit_length() - 5)) if precision == torch.bfloat16 else 1
    return -(-tokens // step) * step


def _with_zeros(work: Work, gradient: Tensor, rows: int) -> Tensor:
    """Return a gradient with rows of zeros after its own, up to a number of rows."""
    if len(gradient) == rows:
        return gradient
    longer = work.exact("longer gradient", rows, gradient.shape[1])
    longer[: len(gradient)] = gradient
    longer[len(gradient) :] = 0
    return longer


class _Pass(torch.autograd.Function):
    """One forward pass and its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        stack: Stack,
        tokens: Tensor,
        places: Tensor,
        lengths: Tensor,
        precision: torch.dtype,
        first_only: bool,
        seed: int | None,
        *parameters: Tensor,
    ) -> Tensor:
        """Return the last layer's states."""
        loan = stack.pool.lend()
        work = Work(library(), loan.buffers, precision, seed, present_share(), stack.gradients)
        layouts = [layout_of(lengths)] * len(stack.layers)
        if first_only:
            layouts[-1] = layout_of(lengths, first_only=True)
        rows = padded_tokens(len(tokens), precision)
        embedding = Embedding(work, stack.tables, tokens, places, rows)
        layers = [
            LayerPass(work, number, layer, layout)
            for number, (layer, layout) in enumerate(zip(stack.layers, layouts, strict=True))
        ]
        out = torch.empty(len(lengths) if first_only else rows, stack.layers[-1].outer_norm.normalized_shape[0])
        passed = embedding.forward()
        for layer in layers[:-1]:
            passed = layer.forward(passed)
        layers[-1].forward(passed, out)
        ctx.save_for_backward(*parameters)  # torch raises where one was changed before the backward pass
        ctx.loan, ctx.embedding, ctx.layers = loan, embedding, layers
        return out if first_only else out[: len(tokens)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the parameters."""
        assert ctx.saved_tensors is not None  # raises in a second backward pass
        gradient, more = gradients[0].contiguous(), None
        if not ctx.layers[-1].layout.first_only:
            gradient = _with_zeros(ctx.embedding.work, gradient, ctx.embedding.rows)
        found: list[Tensor] = []
        for layer in reversed(ctx.layers):
            gradient, more, of_layer = layer.backward(gradient, more)
            found = [*of_layer, *found]
        of_tables = ctx.embedding.backward(gradient, more)
        ctx.embedding = ctx.layers = None
        ctx.loan.give_back()
        return (None, None, None, None, None, None, None, *of_tables, *found)

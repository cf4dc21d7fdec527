"""The feed-forward sub-layer: two products with an activation between them (kernels/gelu.h)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simcse_train.encoders.compiled.work import Work


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward sub-layer of one layer in one pass; the bias of its second product is the norm's to add."""

    work: Work
    number: int  # of the layer
    inner: Tensor  # (inner, hidden): the first weight
    outer: Tensor  # (hidden, inner): the second
    bias: Tensor  # (inner,): of the first product

    def forward(self, states: Tensor) -> Tensor:
        """Return the second product (rows, hidden) of states (rows, hidden)."""
        product, activation = self._kept(len(states))
        torch.mm(states, self.inner.t(), out=product)
        rows, width = product.shape
        self.work.run("gelu_forward", rows=rows, width=width, product=product, bias=self.bias, out=activation)
        return self.work.multiply(activation, self.outer, "product")

    def backward(self, states: Tensor, gradient: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the gradient of the states, and those of the first weight, its bias and the second weight.

        gradient: (rows, hidden), that of the second product.
        """
        derivative, activation = self._kept(len(states))
        of_outer = self.work.weight_gradient(gradient, activation)
        inner = self.work.multiply_back(gradient, self.outer, "inner gradient")
        rows, width = inner.shape
        bias = torch.empty(width)
        self.work.run(
            "gelu_backward",
            rows=rows,
            width=width,
            gradient=inner,
            derivative=derivative,
            partial=self.work.partial(width),
            bias_gradient=bias,
        )
        of_states = self.work.multiply_back(inner, self.inner, ("states gradient", 0))
        return of_states, (self.work.weight_gradient(inner, states), bias, of_outer)

    def _kept(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the memory of the first product, which becomes the activation's derivative, and of the activation."""
        width = len(self.inner)
        names = ((self.number, "inner"), (self.number, "activation"))
        product, activation = (self.work.states(name, rows, width) for name in names)
        return product, activation

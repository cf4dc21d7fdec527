"""What follows each sub-layer: bias, dropout, residual and layer norm (kernels/add_norm.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simcse_train.encoders.compiled.work import Work


@dataclass(frozen=True)
class States:
    """Hidden states, in the precision of products and exactly: as `exact`, or as `exact * gamma + beta`."""

    rounded: Tensor  # (rows, hidden)
    exact: Tensor  # (rows, hidden), float32
    gamma: Tensor | None = None  # (hidden,)
    beta: Tensor | None = None  # (hidden,)

    def at(self, index: Tensor) -> States:
        """Return the states of some rows."""
        return States(self.rounded.index_select(0, index), self.exact.index_select(0, index), self.gamma, self.beta)


@dataclass(frozen=True)
class AddNorm:
    """One norm in one pass."""

    work: Work
    name: tuple[int, int]  # layer and place: names of memory, and keys of the noise
    norm: nn.LayerNorm
    dropout: float
    of_sentences: bool = False  # whether its rows are one of each sentence, or else one of each token

    def forward(self, product: Tensor, bias: Tensor, residual: States, out: Tensor | None = None) -> States:
        """Return the states after the norm; `out` (rows, hidden) in float32 receives them too, where given."""
        rows, width = product.shape
        states = self.work.states((self.name, "out"), rows, width)
        self.work.run(
            "add_norm_forward",
            rows=rows,
            width=width,
            product=product,
            bias=bias,
            residual=residual.exact,
            residual_gamma=residual.gamma,
            residual_beta=residual.beta,
            gamma=self.norm.weight,
            beta=self.norm.bias,
            epsilon=self.norm.eps,
            normalized=self._normalized(rows, width),
            inverse=self._inverse(rows),
            out=states,
            out_float=out,
            **self._noise(),
        )
        return States(states, self._normalized(rows, width), self.norm.weight, self.norm.bias)

    def backward(self, gradient: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the gradients of the residual (float32) and of the product, and those of gamma, beta and bias.

        gradient: (rows, hidden) in float32; `more` is added to it, in the precision of products.
        """
        rows, width = gradient.shape
        of_residual = self.work.exact((self.name[1], "residual"), rows, width)
        of_product = self.work.states("product gradient", rows, width)
        gamma, beta, bias = torch.empty(3, width)
        self.work.run(
            "add_norm_backward",
            rows=rows,
            width=width,
            gradient=gradient,
            gradient_more=more,
            normalized=self._normalized(rows, width),
            inverse=self._inverse(rows),
            gamma=self.norm.weight,
            partial=self.work.partial(3 * width),
            sum_gradient=of_residual,
            product_gradient=of_product,
            gamma_gradient=gamma,
            beta_gradient=beta,
            bias_gradient=bias,
            **self._noise(),
        )
        return of_residual, of_product, (gamma, beta, bias)

    def _normalized(self, rows: int, width: int) -> Tensor:
        return self.work.exact((self.name, "normalized"), rows, width)

    def _inverse(self, rows: int) -> Tensor:
        return self.work.exact((self.name, "inverse"), rows)

    def _noise(self) -> dict[str, Any]:
        return self.work.noise(*self.name, self.dropout, of_sentences=self.of_sentences)

"""The states before the first layer: embeddings, their norm and dropout (kernels/embedding.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simcse_train.encoders.compiled.add_norm import States
from simcse_train.encoders.compiled.families import Tables
from simcse_train.encoders.compiled.work import Work

BEFORE_LAYERS = (-1, 3)  # the place of dropout: the one before the first of layer 0


@dataclass(frozen=True)
class Embedding:
    """The embeddings of one pass."""

    work: Work
    tables: Tables
    tokens: Tensor  # (total,)
    places: Tensor  # (total,): the position of each token in its sentence, as the model counts
    rows: int  # of the states, which have rows of zeros after those of the tokens

    def forward(self) -> States:
        """Return the states (rows, hidden)."""
        width = self.tables.words.embedding_dim
        rounded, exact = self._states(width)
        self.work.run(
            "embedding_forward",
            rows=len(self.tokens),
            width=width,
            tokens=self.tokens,
            places=self.places,
            words=self.tables.words.weight.contiguous(),
            positions=self.tables.positions.weight.contiguous(),
            token_type=None if self.tables.token_types is None else self.tables.token_types.weight,
            gamma=self.tables.norm.weight,
            beta=self.tables.norm.bias,
            epsilon=self.tables.norm.eps,
            normalized=self._normalized(width),
            inverse=self._inverse(),
            out=rounded,
            out_float=exact,
            **self._noise(),
        )
        for states in (rounded, exact):
            states[len(self.tokens) :] = 0
        if self.tables.projection is None:
            return States(rounded, exact)
        product = self.work.multiply(rounded, self._projection(), "projected")
        states = product.float()
        states[: len(self.tokens)] += self.tables.projection.bias
        return States(product.copy_(states), states)

    def backward(self, gradient: Tensor, more: Tensor | None) -> tuple[Tensor, ...]:
        """Return the gradients of `Tables.parameters`.

        gradient: that of the states in float32, and `more`, in the precision of products, which is added to it.
        """
        of_out: Tensor | None = gradient
        projection: tuple[Tensor, ...] = ()
        if self.tables.projection is not None:
            total = gradient if more is None else gradient + more
            of_product = self.work.states("projected gradient", *total.shape).copy_(total)
            embedded, _ = self._states(self.tables.words.embedding_dim)
            projection = (self.work.weight_gradient(of_product, embedded), total.sum(dim=0))
            of_out, more = None, self.work.multiply_back(of_product, self._projection(), "embedded gradient")
        width = self.tables.words.embedding_dim
        of_sum = self.work.exact("sum gradient", len(self.tokens), width)
        gamma, beta, token_type = torch.empty(3, width)
        self.work.run(
            "embedding_backward",
            rows=len(self.tokens),
            width=width,
            gradient=of_out,
            gradient_more=more,
            normalized=self._normalized(width),
            inverse=self._inverse(),
            gamma=self.tables.norm.weight,
            partial=self.work.partial(3 * width),
            sum_gradient=of_sum,
            gamma_gradient=gamma,
            beta_gradient=beta,
            bias_gradient=token_type,
            **self._noise(),
        )
        words = self._of_table(self.tables.words, self.tokens, of_sum)
        positions = self._of_table(self.tables.positions, self.places, of_sum)
        token_types: tuple[Tensor, ...] = ()
        if self.tables.token_types is not None:
            token_types = (torch.zeros_like(self.tables.token_types.weight),)
            token_types[0][0] = token_type
        return (words, positions, *token_types, gamma, beta, *projection)

    def _of_table(self, table: torch.nn.Embedding, index: Tensor, of_rows: Tensor) -> Tensor:
        """Return the gradient of a table from those of its rows at an index (total,).

        It is sparse where the table says so.
        """
        numbers, order = index.sort(stable=True)
        numbers, counts = numbers.unique_consecutive(return_counts=True)
        sums = torch.empty(len(numbers), of_rows.shape[1])
        self.work.kernels.run(
            "sum_rows",
            torch.float32,
            width=of_rows.shape[1],
            groups=len(numbers),
            order=order,
            ends=counts.cumsum(0),
            matrix=of_rows,
            out=sums,
        )
        if table.padding_idx is not None:  # whose embedding is not trained
            sums[numbers == table.padding_idx] = 0
        found = torch.sparse_coo_tensor(
            numbers[None], sums, table.weight.shape, is_coalesced=True, check_invariants=False
        )
        return found if table.sparse else found.to_dense()

    def _states(self, width: int) -> tuple[Tensor, Tensor]:
        return self.work.states("embedded", self.rows, width), self.work.exact("embedded", self.rows, width)

    def _projection(self) -> Tensor:
        """Return the projection's weight in the precision of products."""
        assert self.tables.projection is not None
        weight = self.tables.projection.weight
        return self.work.states("projection", *weight.shape).copy_(weight)

    def _normalized(self, width: int) -> Tensor:
        return self.work.exact("embedded, normalized", len(self.tokens), width)

    def _inverse(self) -> Tensor:
        return self.work.exact("embedded, inverse", len(self.tokens))

    def _noise(self) -> dict[str, Any]:
        return self.work.noise(*BEFORE_LAYERS, self.tables.dropout, of_sentences=False)

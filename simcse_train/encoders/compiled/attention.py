"""Multi-head attention: the three projections, and attention within each sentence (kernels/attention.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simcse_train.encoders.compiled.families import Layer
from simcse_train.encoders.compiled.work import Work


@dataclass(frozen=True)
class Layout:
    """Where the sentences of a packed batch begin, and their queries: all tokens, or the first of each sentence."""

    starts: Tensor  # (sentences,)
    lengths: Tensor  # (sentences,)
    query_starts: Tensor  # (sentences,)
    query_lengths: Tensor  # (sentences,)
    tokens: int  # of all sentences; states and gradients can have rows after these
    longest: int
    first_only: bool


def layout_of(lengths: Tensor, *, first_only: bool = False) -> Layout:
    """Return the layout of sentences with the given lengths (sentences,)."""
    starts = lengths.cumsum(0) - lengths
    queries = (torch.arange(len(lengths)), torch.ones_like(lengths)) if first_only else (starts, lengths)
    return Layout(starts, lengths, *queries, int(lengths.sum()), int(lengths.max()), first_only)


@dataclass(frozen=True)
class Projected:
    """Query, key and value of a batch, or their gradients, without biases: side by side, as one product gives them."""

    query: Tensor  # (queries, hidden)
    key: Tensor  # (tokens, hidden)
    value: Tensor  # (tokens, hidden)
    products: tuple[Tensor, ...]  # (tokens, 3 * hidden), or (queries, hidden) and (tokens, 2 * hidden)


@dataclass(frozen=True)
class Attention:
    """The attention of one layer in one pass."""

    work: Work
    number: int  # of the layer
    layer: Layer
    weight: Tensor  # (3 * hidden, hidden): of the query, the key and the value
    layout: Layout

    def forward(self, states: Tensor) -> Tensor:
        """Return the attended values (queries, hidden) of states (tokens, hidden)."""
        queries, tokens, hidden = self._sizes(states)
        projected = self._memory(self.number, queries, tokens, hidden)
        for inputs, weight, out in zip(self._inputs(states), self._weights(), projected.products, strict=True):
            torch.mm(inputs, weight.t(), out=out)
        out = self.work.states((self.number, "attended"), queries, hidden)
        self._clear_rest(out)
        self.work.run("attention_forward", out=out, **self._arguments(projected))
        return out

    def backward(self, states: Tensor, gradient: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the gradients of the states, and those of weight and bias of each projection.

        gradient: (queries, hidden), that of the attended values. The first are one for all states (tokens, hidden), or
        one for those of first tokens (queries, hidden) and one for all, which have to be added.
        """
        queries, tokens, hidden = self._sizes(states)
        found = self._memory("gradient", queries, tokens, hidden)
        self._clear_rest(*found.products)
        query_bias, key_bias, value_bias = torch.empty(3, hidden)
        self.work.run(
            "attention_backward",
            gradient=gradient,
            partial=self.work.partial(3 * hidden),
            query_gradient=found.query,
            key_gradient=found.key,
            value_gradient=found.value,
            query_bias_gradient=query_bias,
            key_bias_gradient=key_bias,
            value_bias_gradient=value_bias,
            **self._arguments(self._memory(self.number, queries, tokens, hidden)),
        )
        of_states = tuple(
            self.work.multiply_back(product, weight, ("states gradient", part))
            for part, (product, weight) in enumerate(zip(found.products, self._weights(), strict=True))
        )
        weights = [
            self.work.weight_gradient(product, inputs)
            for product, inputs in zip(found.products, self._inputs(states), strict=True)
        ]
        query, key, value = (part for weight in weights for part in weight.split(hidden))
        return of_states, (query, query_bias, key, key_bias, value, value_bias)

    def _clear_rest(self, *matrices: Tensor) -> None:
        """Set the rows that belong to no sentence to zeros."""
        for matrix in matrices:
            matrix[self.layout.tokens :] = 0

    def _sizes(self, states: Tensor) -> tuple[int, int, int]:
        tokens, hidden = states.shape
        return len(self.layout.starts) if self.layout.first_only else tokens, tokens, hidden

    def _inputs(self, states: Tensor) -> tuple[Tensor, ...]:
        return (states.index_select(0, self.layout.starts), states) if self.layout.first_only else (states,)

    def _weights(self) -> tuple[Tensor, ...]:
        hidden = self.weight.shape[1]
        return (self.weight[:hidden], self.weight[hidden:]) if self.layout.first_only else (self.weight,)

    def _memory(self, name: object, queries: int, tokens: int, hidden: int) -> Projected:
        """Return the memory with a name: with the same name and sizes, what a pass wrote there before."""
        if self.layout.first_only:
            alone = self.work.states((name, "query"), queries, hidden)
            both = self.work.states((name, "key, value"), tokens, 2 * hidden)
            key, value = both.split(hidden, dim=1)
            return Projected(alone, key, value, (alone, both))
        three = self.work.states((name, "query, key, value"), tokens, 3 * hidden)
        query, key, value = three.split(hidden, dim=1)
        return Projected(query, key, value, (three,))

    def _arguments(self, projected: Projected) -> dict[str, Any]:
        """Return the arguments that both passes of the kernel have."""
        heads, size = self.layer.heads, self.weight.shape[1] // self.layer.heads
        return {
            "heads": heads,
            "size": size,
            "sentences": len(self.layout.lengths),
            "starts": self.layout.starts,
            "lengths": self.layout.lengths,
            "query_starts": self.layout.query_starts,
            "query_lengths": self.layout.query_lengths,
            "query": projected.query,
            "key": projected.key,
            "value": projected.value,
            "query_stride": projected.query.stride(0),
            "key_stride": projected.key.stride(0),
            "query_bias": self.layer.query.bias,
            "key_bias": self.layer.key.bias,
            "value_bias": self.layer.value.bias,
            "scaling": size**-0.5,
            **self.work.noise(self.number, 0, self.layer.dropout[0], of_sentences=True),
            "normalizer": self.work.exact((self.number, "normalizer"), len(projected.query), heads),
            "scratch": self.work.scratch(self.layout.longest, size),
            "longest": self.layout.longest,
        }

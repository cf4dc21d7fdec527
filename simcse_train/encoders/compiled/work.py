"""What the parts of a pass share: the kernels, memory, the precision of products, the seed of the noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simcse_train.encoders.compiled.buffers import Buffers, Gradients
from simcse_train.encoders.compiled.library import Library
from simcse_train.encoders.compiled.noise import noise
from simcse_train.encoders.dropout import Share


@dataclass(frozen=True)
class Work:
    """One pass through the layers of an encoder."""

    kernels: Library
    buffers: Buffers
    precision: torch.dtype  # of products and the states between them; norms, softmax and sums are in float32
    seed: int | None  # of the noise; None: no dropout
    share: Share | None = None  # what of a part of a batch the pass computes, where that is not all of it
    gradients: Gradients = field(default_factory=Gradients)  # memory of those of weights

    def run(self, kernel: str, **arguments: Any) -> None:
        """Run a kernel; see `Library.run`."""
        self.kernels.run(kernel, self.precision, **arguments)

    def states(self, name: object, *shape: int) -> Tensor:
        """Return memory in the precision of products."""
        return self.buffers.get((name, self.precision), shape, self.precision)

    def exact(self, name: object, *shape: int) -> Tensor:
        """Return memory in float32."""
        return self.buffers.get((name, "exact"), shape, torch.float32)

    def partial(self, columns: int) -> Tensor:
        """Return memory for sums over rows, which each thread takes for itself."""
        return self.exact("partial", torch.get_num_threads() * columns)

    def scratch(self, longest: int, size: int) -> Tensor:
        """Return memory for attention over sentences of up to `longest` tokens with heads of `size`."""
        return self.exact("scratch", torch.get_num_threads() * self.kernels.attention_scratch(longest, size))

    def noise(self, layer: int, place: int, probability: float, *, of_sentences: bool) -> dict[str, Any]:
        """Return the arguments for dropout at a place of a layer, of sentences or else of tokens."""
        first = 0 if self.share is None else (self.share.rows if of_sentences else self.share.tokens).start
        return noise(self.seed or 0, layer, place, 0.0 if self.seed is None else probability, first)

    def multiply(self, states: Tensor, weight: Tensor, name: object) -> Tensor:
        """Return states (rows, inputs) times the transpose of a weight (outputs, inputs), in memory with a name."""
        return torch.mm(states, weight.t(), out=self.states(name, len(states), len(weight)))

    def multiply_back(self, gradient: Tensor, weight: Tensor, name: object) -> Tensor:
        """Return the gradient of the states of `multiply`, (rows, inputs)."""
        return torch.mm(gradient, weight, out=self.states(name, len(gradient), weight.shape[1]))

    def weight_gradient(self, gradient: Tensor, states: Tensor) -> Tensor:
        """Return the gradient of the weight of `multiply` (outputs, inputs) in float32.

        gradient: that of the result (rows, outputs); states: (rows, inputs). With AMX, oneDNN is fast where neither is
        to be read as its transpose, so the narrower one is transposed before.
        """
        outputs, inputs = gradient.shape[1], states.shape[1]
        out = self.gradients.get(outputs, inputs)
        if self.precision == torch.float32:
            return torch.mm(gradient.t(), states, out=out)
        if not has_amx():
            return out.copy_(torch.mm(gradient.t(), states, out=self.states("product", outputs, inputs)))
        if outputs <= inputs:
            left = self._transposed(gradient)
            return out.copy_(torch.mm(left, states, out=self.states("product", outputs, inputs)))
        product = torch.mm(self._transposed(states), gradient, out=self.states("product", inputs, outputs))
        self.run("transpose_to_float", rows=inputs, width=outputs, matrix=product, out=out)
        return out

    def _transposed(self, matrix: Tensor) -> Tensor:
        rows, width = matrix.shape
        out = self.states("transposed", width, rows)
        self.run("transpose_states", rows=rows, width=width, matrix=matrix, out=out)
        return out


@functools.cache
def has_amx() -> bool:
    """Return whether the processor multiplies matrices in bfloat16 by AMX."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))

"""AdamW and the clipping of gradients by compiled kernels, for parameters on a CPU.

The state has the names, shapes and types of torch's, so that a checkpoint can be continued with either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from simcse_train.encoders.compiled.library import library

UNIT = 4096  # elements that a thread takes at once
NOW, BEFORE = 1, 2  # mark the rows of an embedding that have a gradient, or had one before (kernels/adamw.h)


class CompiledAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` whose step also clips; `embeddings` are the parameters of which a batch has few rows.

    Those keep their gradient's memory. Its other rows hold zeros, and nothing reads or clears them.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, embeddings: Iterable[Tensor]) -> None:
        super().__init__(groups, lr=lr)
        self._embeddings = set(embeddings)
        self._rows: dict[Tensor, Tensor] = {}  # of an embedding: the marks of its rows
        self._clip: float | None = None

    def clip(self, max_norm: float, tokens: Tensor | None = None) -> Tensor:
        """Let the next step scale the gradients to a norm of at most `max_norm`; return their norm, a scalar.

        tokens: the rows of embeddings that can have a gradient, in any order and number; without it, these are found.
        """
        for parameter in self._embeddings:
            if parameter.grad is not None:
                rows = self._marks(parameter).bitwise_and_(BEFORE)
                rows[parameter.grad.any(dim=1) if tokens is None else tokens] |= NOW
        table = torch.cat([self._table(group["params"]) for group in self.param_groups])
        partial = torch.empty(torch.get_num_threads(), dtype=torch.float64)
        norm = torch.empty((), dtype=torch.float64)
        library().run("gradient_norm", torch.float32, count=len(table), parameters=table, partial=partial, norm=norm)
        self._clip = min(1.0, max_norm / (float(norm) + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        return norm.float()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step; the gradients are scaled as `clip` found."""
        if self._clip is None:
            self.clip(math.inf)
        for group in self.param_groups:
            at_step: dict[float, list[Tensor]] = {}  # a parameter counts the steps in which it had a gradient
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["step"] += 1
                    at_step.setdefault(float(self.state[parameter]["step"]), []).append(parameter)
            beta1, beta2 = group["betas"]
            for step, changed in at_step.items():
                table = self._table(changed)
                library().run(
                    "adamw",
                    torch.float32,
                    count=len(table),
                    parameters=table,
                    clip=self._clip,
                    rate=group["lr"],
                    beta1=beta1,
                    beta2=beta2,
                    epsilon=group["eps"],
                    decay=group["weight_decay"],
                    correction1=1 - beta1**step,
                    correction2=1 - beta2**step,
                )
                increment_version(changed)  # torch cannot know that they have changed
        self._clip = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients: of embeddings in place, the rows of the last step; those of others are dropped."""
        for parameter in self._embeddings:
            if parameter.grad is not None:
                met = (self._marks(parameter) & NOW).nonzero()[:, 0]
                parameter.grad.index_fill_(0, met, 0.0)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter not in self._embeddings:
                    parameter.grad = None

    def _marks(self, parameter: Tensor) -> Tensor:
        """Return the marks of the rows of an embedding (rows,), after its state was restored, if it was."""
        if parameter not in self._rows:
            moments = self.state[parameter].get("exp_avg", parameter.new_zeros(len(parameter), 1))
            self._rows[parameter] = moments.any(dim=1).to(torch.uint8) * BEFORE
        return self._rows[parameter]

    def _table(self, parameters: Iterable[Tensor]) -> Tensor:
        """Return the kernels' description of those parameters that have gradients (parameters, 7)."""
        table = []
        for parameter in parameters:
            if parameter.grad is None:
                continue
            parameter.grad = parameter.grad.contiguous()
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            tensors = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
            addresses = [tensor.data_ptr() for tensor in tensors]
            rows, unit = 0, UNIT
            if parameter in self._embeddings:
                rows, unit = self._marks(parameter).data_ptr(), parameter.shape[1]
            table.append([*addresses, rows, parameter.numel(), unit])
        return torch.tensor(table, dtype=torch.int64).view(-1, 7)

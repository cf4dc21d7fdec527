"""Numbers that a step has computed on its device, read without making the CPU wait for the steps after it."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """The loss of a step, whether it and its gradient are finite, and the gradient's norm, on the way to the CPU."""

    def __init__(self, step: int, loss: Tensor, finite: Tensor, norm: Tensor) -> None:
        """Begin to copy these scalars; on CUDA, into memory that is pinned, so that nothing waits here."""
        self.step = step  # counted from 1
        values = torch.stack([part.to(loss.device, torch.float32) for part in (loss, finite, norm)])
        self._copied: torch.cuda.Event | None = None
        if values.is_cuda:
            pinned = torch.empty_like(values, device="cpu", pin_memory=True)
            values = pinned.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._values = values

    @property
    def loss(self) -> float:
        """The loss; waits until its step is computed."""
        return self._read()[0]

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient are numbers; waits until their step is computed."""
        return bool(self._read()[1])

    @property
    def norm(self) -> float:
        """The norm of the gradient before clipping; waits until the step is computed."""
        return self._read()[2]

    def _read(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._values.tolist()
        return found

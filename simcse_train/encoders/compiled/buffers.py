"""Memory that grows to the largest batch and is used again by every step.

A step needs some hundred matrices. To allocate them anew costs a page fault for every 4 KiB, and memory of ever other
sizes leaves gaps.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

SPARE = 1.1  # memory is made for batches a little larger than the largest so far
VIEWS = 8  # of one name: three numbers of tokens cover nearly all batches in bfloat16


class Buffers:
    """Named memory of one pass."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}
        self._views: dict[Hashable, dict[tuple[int, ...], Tensor]] = {}  # of what is held

    def get(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of a shape with any content; what had the name before in this pass is overwritten."""
        views = self._views.setdefault(name, {})
        view = views.get(shape)
        if view is not None and view.dtype == dtype:
            return view
        size = math.prod(shape)
        held = self._held.get(name)
        if len(views) == VIEWS:
            views.clear()
        with torch.inference_mode(False):  # memory made while measuring is used again in training
            if held is None or held.numel() < size or held.dtype != dtype:
                self._held.pop(name, None)  # freed first
                views.clear()
                held = self._held[name] = torch.empty(int(size * SPARE), dtype=dtype)
            view = views[shape] = held[:size].view(shape)
        return view


class Pool:
    """Buffers of passes that are done, for those to come; several passes can be alive at once."""

    def __init__(self) -> None:
        self._free: list[Buffers] = []

    def lend(self) -> Loan:
        """Return buffers until the loan is given back or forgotten."""
        return Loan(self._free, self._free.pop() if self._free else Buffers())

    def __deepcopy__(self, _: Any) -> Pool:
        return Pool()


class Loan:
    """Buffers that a pass has to itself."""

    def __init__(self, free: list[Buffers], buffers: Buffers) -> None:
        self._free, self.buffers, self._given_back = free, buffers, False

    def give_back(self) -> None:
        """Let other passes use the buffers."""
        if not self._given_back:
            self._given_back = True
            self._free.append(self.buffers)

    __del__ = give_back


class Gradients:
    """Memory of gradients: whoever gets a tensor keeps it for as long as they like, and then it is used again."""

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}

    def get(self, *shape: int) -> Tensor:
        """Return memory of a shape in float32 with any content."""
        size = 4 * math.prod(shape)
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else mmap.mmap(-1, size)
        view = memoryview(memory)  # the tensor and all views of it hold this one; nothing else does
        weakref.finalize(view, free.append, memory).atexit = False
        return torch.frombuffer(view, dtype=torch.float32).view(shape)

    def __deepcopy__(self, _: Any) -> Gradients:
        return Gradients()

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simcse_train.encoders.pooling import MODES, mean_pool, pool

# Present in torch's list of native functions for the CPU and CUDA alone: they fail on Apple's GPUs.
NOT_EVERYWHERE = ("segment_reduce", "_segment_reduce_backward")


class Operations(TorchDispatchMode):
    """Records the names of the operations that run inside the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_the_mean_is_over_the_tokens_of_each_sentence_alone() -> None:
    states, lengths = torch.randn(9, 5, dtype=torch.float64), torch.tensor([2, 1, 6])
    expected = torch.stack([states[:2].mean(0), states[2], states[3:].mean(0)])
    assert torch.allclose(mean_pool(states, lengths), expected, atol=1e-15)
    assert torch.equal(pool(states, lengths, "cls"), states[[0, 2, 3]])
    assert torch.allclose(pool(states, lengths, "mean"), expected, atol=1e-15)


@pytest.mark.parametrize("pooling", MODES)
def test_the_gradient_of_pooling_is_that_of_finite_differences(pooling: str) -> None:
    states = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def pooled(states: Tensor) -> Tensor:
        return pool(states, torch.tensor([4, 2]), pooling)

    assert torch.autograd.gradcheck(pooled, (states,))


@pytest.mark.parametrize("pooling", MODES)
def test_pooling_uses_operations_that_every_device_has(pooling: str) -> None:
    states = torch.randn(6, 3, requires_grad=True)
    with Operations() as operations:
        pool(states, torch.tensor([4, 2]), pooling).sum().backward()
    assert operations.names  # the recording works
    assert not operations.names & set(NOT_EVERYWHERE)

"""The compiled AdamW against torch's."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from simcse_train.encoders.compiled.build import CannotCompile
from simcse_train.encoders.compiled.library import library
from simcse_train.training.compiled_optimizer import CompiledAdamW


@pytest.fixture(autouse=True)
def compiler(own_cache: None) -> None:
    try:
        library()
    except CannotCompile as error:
        pytest.skip(f"no kernels here: {error}")


def module() -> Any:
    torch.manual_seed(0)
    return nn.ModuleDict({"words": nn.Embedding(50, 33), "linear": nn.Linear(33, 300), "norm": nn.LayerNorm(7)})


def groups(modules: Any, decay: float) -> list[dict[str, object]]:
    parameters = list(modules.parameters())
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim == 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def give_gradients(modules: Any, step: int) -> torch.Tensor:
    """Set gradients, of the embedding in few rows, others in each step and none from row 30 on; return these rows."""
    generator = torch.Generator().manual_seed(step)
    for parameter in modules.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    weight = modules["words"].weight
    chosen = torch.randint(30, (4,), generator=generator)
    weight.grad[[row for row in range(50) if row not in chosen.tolist()]] = 0
    return chosen


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("max_norm", [1.0, 1e6])
@pytest.mark.parametrize("told", [True, False])
def test_steps_norms_and_state_are_those_of_torch(decay: float, max_norm: float, told: bool) -> None:
    ours, theirs = module(), module()
    start = copy.deepcopy(ours["words"].weight)
    compiled = CompiledAdamW(groups(ours, decay), lr=0.01, embeddings=[ours["words"].weight])
    usual = torch.optim.AdamW(groups(theirs, decay), lr=0.01, fused=True)
    for step in range(6):
        if step == 3:  # each goes on from the state of the other
            compiled = CompiledAdamW(groups(ours, decay), lr=0.01, embeddings=[ours["words"].weight])
            for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                compiled.state[mine] = {name: value.clone() for name, value in usual.state[other].items()}
        rows = give_gradients(ours, step)
        give_gradients(theirs, step)
        norm = compiled.clip(max_norm, torch.cat([rows, rows[:2]]) if told else None)
        assert torch.isclose(norm, clip_grad_norm_(theirs.parameters(), max_norm), rtol=1e-5)
        compiled.step()
        usual.step()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(mine, other, atol=1e-6)
            assert compiled.state[mine].keys() == usual.state[other].keys()
            for name, value in usual.state[other].items():
                assert torch.allclose(compiled.state[mine][name], value, atol=1e-6, rtol=1e-5), name
        compiled.zero_grad()
        assert not ours["words"].weight.grad.any()
        assert all(parameter.grad is None for parameter in [*ours["linear"].parameters(), *ours["norm"].parameters()])
    unmet = ours["words"].weight[30:]
    assert torch.equal(unmet, start[30:]) == (decay == 0)


def test_a_step_without_clipping_and_gradients_that_are_no_numbers() -> None:
    ours, theirs = module(), module()
    compiled = CompiledAdamW(groups(ours, 0.0), lr=0.01, embeddings=[ours["words"].weight])
    usual = torch.optim.AdamW(groups(theirs, 0.0), lr=0.01)
    give_gradients(ours, 0)
    give_gradients(theirs, 0)
    compiled.step()
    usual.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    for bad in (math.nan, math.inf):
        rows = give_gradients(ours, 1)
        ours["words"].weight.grad[rows[0], 5] = bad
        assert not compiled.clip(1.0).isfinite()
        assert not compiled.clip(1.0, rows).isfinite()


def test_autograd_sees_that_parameters_have_changed() -> None:
    ours = module()
    compiled = CompiledAdamW(groups(ours, 0.0), lr=0.01, embeddings=[ours["words"].weight])
    total = ours["linear"](torch.ones(1, 33, requires_grad=True)).square().sum()
    give_gradients(ours, 0)
    compiled.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_runs_use_it_where_kernels_compute_the_encoder(small: Path) -> None:
    from simcse_train.config import make_config
    from simcse_train.encoders.acceptance import use_kernels
    from simcse_train.encoders.loading import load_encoder
    from simcse_train.training.optimizer import make_optimizer

    encoder, config = load_encoder(small), make_config({"data": "x"})
    assert not isinstance(make_optimizer(encoder, config), CompiledAdamW)
    assert use_kernels(encoder, "fp32") == ""
    assert isinstance(make_optimizer(encoder, config), CompiledAdamW)


def test_each_parameter_counts_the_steps_in_which_it_had_a_gradient() -> None:
    ours, theirs = module(), module()
    compiled = CompiledAdamW(groups(ours, 0.1), lr=0.01, embeddings=[ours["words"].weight])
    usual = torch.optim.AdamW(groups(theirs, 0.1), lr=0.01, fused=True)
    for step in range(3):
        for modules, optimizer in ((ours, compiled), (theirs, usual)):
            give_gradients(modules, step)
            if step == 1:
                modules["linear"].weight.grad = None
            optimizer.step()
            optimizer.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)

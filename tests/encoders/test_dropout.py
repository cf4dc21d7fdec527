from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from simcse_train.encoders.dropout import drop, replace_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_the_mean_stays(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    size = 1_000_003  # not a multiple of four
    found = drop(torch.ones(size, dtype=dtype), probability).float()
    zeros = (found == 0).sum().item()
    assert abs(zeros - size * probability) < 5 * (size * probability * (1 - probability)) ** 0.5
    assert torch.allclose(
        found[found != 0], torch.tensor(1 / (1 - probability)), rtol=1e-4 if dtype == torch.float32 else 1e-2
    )


@given(st.floats(0.0, 1.0, exclude_min=True, exclude_max=True), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_any_probability_and_shape_give_finite_states(probability: float, shape: list[int]) -> None:
    found = drop(torch.ones(shape), probability)
    assert found.shape == torch.Size(shape)
    assert found.isfinite().all()
    assert len(found.unique()) <= 2


def test_the_noise_follows_from_torchs_random_state_and_is_new_each_time() -> None:
    torch.manual_seed(3)
    first, second = drop(torch.ones(1000), 0.5), drop(torch.ones(1000), 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(drop(torch.ones(1000), 0.5), first)


def test_neighbours_and_rows_fall_out_independently() -> None:
    torch.manual_seed(0)
    kept = (drop(torch.ones(1000, 1000), 0.5) > 0).double() - 0.5
    for other in (kept.roll(1, 0), kept.roll(1, 1), kept.roll(4, 1), kept.T):
        assert (kept * other).mean().abs() < 5 * 0.25 / 1000


def test_the_gradient_passes_where_the_state_did() -> None:
    torch.manual_seed(0)
    states = torch.randn(50, 40, requires_grad=True)
    found = drop(states, 0.3)
    found.sum().backward()
    assert states.grad is not None
    assert torch.equal(states.grad == 0, found == 0)
    assert torch.allclose(states.grad * states, found)


def test_dropout_is_replaced_wherever_a_model_has_it_and_acts_in_training_alone() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.25)))
    replace_dropout(model)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.25]
    assert not any(type(m) is nn.Dropout for m in model.modules())
    states = torch.randn(8, 4)
    model.eval()
    assert torch.equal(model(states), model(states))
    model.train()
    assert not torch.equal(model(states), model(states))

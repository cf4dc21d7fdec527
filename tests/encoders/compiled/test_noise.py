"""Dropout by counter: how often, and independence between elements, rows, layers, places, heads and seeds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simcse_train.encoders.compiled.embedding import BEFORE_LAYERS
from simcse_train.encoders.compiled.library import Library
from simcse_train.encoders.compiled.noise import draw_seed, noise
from tests.encoders.compiled.test_kernels import attention_of, factors_of, work_of

ROWS, WIDTH = 1000, 640


def kept(kernels: Library, seed: int, layer: int = 0, place: int = 1, p: float = 0.5) -> Tensor:
    """Return which elements of a matrix are kept: those through which a gradient passes (ROWS, WIDTH)."""
    gradient = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    of_product, unused = torch.empty(ROWS, WIDTH), torch.empty(3, WIDTH)
    work_of(kernels, torch.float32).run(
        "add_norm_backward",
        rows=ROWS,
        width=WIDTH,
        gradient=gradient,
        gradient_more=None,
        normalized=torch.zeros(ROWS, WIDTH),
        inverse=torch.ones(ROWS),
        gamma=torch.ones(WIDTH),
        partial=torch.empty(torch.get_num_threads() * 3 * WIDTH),
        sum_gradient=torch.empty(ROWS, WIDTH),
        product_gradient=of_product,
        gamma_gradient=unused[0],
        beta_gradient=unused[1],
        bias_gradient=unused[2],
        **noise(seed, layer, place, p),
    )
    return of_product != 0


def correlation(one: Tensor, other: Tensor) -> float:
    """Return the correlation of two sets of kept elements in its standard deviations: 5 is no chance."""
    a, b = one.double().flatten(), other.double().flatten()
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1].abs() * len(a) ** 0.5)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked(kernels: Library, p: float) -> None:
    dropped = (~kept(kernels, 5, p=p)).sum().item()
    size = ROWS * WIDTH
    assert abs(dropped - p * size) < 5 * (size * p * (1 - p)) ** 0.5


def test_elements_of_one_matrix_are_independent(kernels: Library) -> None:
    found = kept(kernels, 5)
    for distance in (1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 33, 64, 128, 320):
        assert correlation(found, found.roll(distance, 1)) < 5
        assert correlation(found, found.roll(distance, 0)) < 5
    for axis in (0, 1):  # sums along an axis spread as those of independent elements do
        sums = found.double().sum(axis)
        expected = found.shape[axis] * 0.25
        assert abs(sums.var() / expected - 1) < 5 * (2 / len(sums)) ** 0.5


def test_seeds_layers_and_places_are_independent(kernels: Library) -> None:
    found = kept(kernels, 5)
    assert torch.equal(found, kept(kernels, 5))
    others = [kept(kernels, seed) for seed in (4, 6, 7, 5 + 2**31, 5 + 2**32, 5 + 2**61)]
    others += [kept(kernels, 5, layer) for layer in (1, 2, 11)] + [kept(kernels, 5, 0, place) for place in (0, 2, 3)]
    others.append(kept(kernels, 5, *BEFORE_LAYERS))
    for number, other in enumerate(others):
        assert correlation(found, other) < 5
        for moved in (1, 16, 32):
            assert correlation(found, other.roll(moved, 1)) < 5
        assert correlation(others[number - 1], other) < 5


def test_probabilities_of_sentences_and_heads_are_independent_and_as_many_as_asked(kernels: Library) -> None:
    torch.manual_seed(0)
    attention = attention_of(kernels, [200, 200], 4, 32, 0.1, False, torch.float32)
    factors = factors_of(attention, torch.zeros(400, 128))
    matrices = [head != 0 for sentence in factors for head in sentence]
    size = 200 * 200
    for number, one in enumerate(matrices):
        assert abs((~one).sum().item() - 0.1 * size) < 5 * (size * 0.09) ** 0.5
        assert all(correlation(one, other) < 5 for other in matrices[:number])
        assert all(correlation(one, one.roll(distance, 1)) < 5 for distance in (1, 2, 8, 16, 32, 100))
        assert correlation(one, one.roll(1, 0)) < 5


def test_the_seed_follows_from_torchs_random_state() -> None:
    torch.manual_seed(3)
    first, second = draw_seed(), draw_seed()
    torch.manual_seed(3)
    assert (draw_seed(), draw_seed()) == (first, second)
    assert first != second


def test_the_number_of_threads_does_not_change_the_noise(kernels: Library) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = kept(kernels, 5, p=0.1)
        torch.set_num_threads(3)
        assert torch.equal(kept(kernels, 5, p=0.1), alone)
    finally:
        torch.set_num_threads(before)

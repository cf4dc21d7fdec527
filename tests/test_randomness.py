from __future__ import annotations

import torch

from simcse_train.randomness import seeded


def draw(*seed: int) -> list[float]:
    with seeded(*seed):
        return torch.rand(4).tolist()


def test_the_noise_is_a_function_of_every_part_of_the_seed() -> None:
    seeds = [(3, 0, 0), (3, 1, 0), (3, 1, 1), (3, 2, 0), (4, 0, 0), (0, 1, 3)]
    drawn = [draw(*seed) for seed in seeds]
    assert drawn == [draw(*seed) for seed in seeds]
    assert len({tuple(numbers) for numbers in drawn}) == len(seeds)


def test_the_outer_random_state_is_restored() -> None:
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    draw(7, 8)
    assert torch.equal(torch.rand(4), expected)

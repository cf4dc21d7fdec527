"""What each objective does to sentences of four topics, 24 points that gradient descent may move freely."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train.objectives.debiased import Debiased
from simcse_train.objectives.neighbours import Neighbours
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Objective, Rows
from simcse_train.objectives.queue import Queue
from simcse_train.objectives.relational import Relational
from simcse_train.objectives.soft import Soft
from simcse_train.search.index import nearest, smoothed

TOPICS = torch.arange(24) // 6


@cache
def start() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(4, 10, generator=generator), dim=1)
    return normalize(centres[TOPICS] + 0.25 * torch.randn(24, 10, generator=generator), dim=1)


def contrast(points: Tensor) -> float:
    """Return the mean cosine within a topic minus that between topics."""
    points = normalize(points.detach(), dim=1)
    cosines, same = points @ points.T, TOPICS[:, None] == TOPICS[None, :]
    within = cosines[same & ~torch.eye(24, dtype=torch.bool)].mean()
    return float(within - cosines[~same].mean())


def trained(objective: Objective, *, similar_above: float | None = None, mates: bool = False) -> float:
    """Return the contrast after 60 steps from the start; with `mates` a second view is another point of the topic."""
    points = start().clone().requires_grad_()
    numbers = torch.arange(24)
    others = TOPICS * 6 + (numbers + 1) % 6 if mates else numbers
    sources = torch.stack([numbers, others], dim=1).flatten()
    cosines, places = nearest(start(), start(), 5, exclude=numbers)
    moved = smoothed(start(), start(), cosines, places)
    members = torch.cat([TOPICS[:, None] * 6 + torch.arange(6)], dim=1)[sources] if mates else None
    rows = Rows(2, sources, start()[sources], moved[sources], members, start()[sources], similar_above)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD([points], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        noise = 0.05 * torch.randn(48, 10, generator=generator)
        objective.loss(points[sources] + noise, rows).backward()
        optimizer.step()
        objective.after_step(rows)
    return contrast(points)


def test_plain_training_pulls_topics_apart() -> None:
    assert trained(NTXent(0.05)) < contrast(start()) - 0.05


def test_targets_from_the_start_hold_the_topics_together() -> None:
    assert trained(Relational(0.05, 0.1, 1.0, False)) > contrast(start()) - 0.01


def test_soft_targets_pull_them_apart_less_than_one_hot_ones() -> None:
    assert trained(Soft(0.05, 0.04, 1.0, False)) > trained(NTXent(0.05)) + 0.05


def test_smoothed_targets_draw_the_topics_together() -> None:
    assert trained(Relational(0.05, 0.1, 1.0, True)) > contrast(start()) + 0.02


def test_neighbours_as_positives_draw_the_topics_together() -> None:
    assert trained(Neighbours(0.05), mates=True) > contrast(start()) + 0.05


def test_a_mask_of_similar_sentences_spares_the_topics() -> None:
    assert trained(NTXent(0.05), similar_above=0.5) > trained(NTXent(0.05)) + 0.05


def test_the_debiased_objective_spares_the_topics_and_beta_seeks_the_hard_negatives() -> None:
    plain, debiased = trained(NTXent(0.2)), trained(Debiased(0.2, 0.2, 0.0))
    assert debiased > plain + 0.01
    assert trained(Debiased(0.2, 0.2, 1.0)) < debiased - 0.01


def test_a_queue_pushes_from_where_the_others_were() -> None:
    assert trained(Queue(0.2, 48)) != pytest.approx(trained(Queue(0.2, 1)), abs=1e-4)

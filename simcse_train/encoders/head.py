"""The projection head: a linear layer and tanh on the pooled embedding, in training only."""

from __future__ import annotations

from torch import nn

from simcse_train.randomness import seeded


def projection_head(hidden_size: int, *, seed: int, initializer_range: float = 0.02) -> nn.Module:
    """Return a new head, (rows, hidden) -> (rows, hidden), initialised as BERT initialises its own layers.

    Source: Gao, Yao & Chen 2021, section 6.3; evaluation and export leave it out (`cls_before_pooler` of the paper's
    code).
    """
    with seeded(seed):
        linear = nn.Linear(hidden_size, hidden_size)
        nn.init.normal_(linear.weight, std=initializer_range)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.Tanh())

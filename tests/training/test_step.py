from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simcse_train.data.batches import two_views
from simcse_train.encoders.loading import load_encoder
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Rows
from simcse_train.randomness import seeded
from simcse_train.training.step import forward_backward


@pytest.mark.parametrize("size", [None, 1])
def test_the_scale_multiplies_every_gradient_and_not_the_loss_that_is_returned(tiny: Path, size: int | None) -> None:
    def loss_and_gradients(scale: float) -> tuple[float, dict[str, Tensor]]:
        encoder = load_encoder(tiny).train()
        batch = two_views(encoder.tokenizer.tokenize(["a man", "the cat runs", "a dog"], 16), np.arange(3))
        loss = forward_backward(
            encoder,
            NTXent(0.2),
            batch.parts(size),
            Rows(batch.views, batch.texts),
            partial(seeded, 1),
            nullcontext,
            lambda loss: loss * scale,
        )
        return loss.item(), {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}

    loss, plain = loss_and_gradients(1)
    scaled_loss, scaled = loss_and_gradients(1024)  # a power of two: exact
    assert scaled_loss == loss
    assert plain.keys() == scaled.keys()
    assert all(torch.equal(plain[name] * 1024, scaled[name]) for name in plain)

"""No step asks its device for a value.

On a GPU the CPU would have to wait for all that the GPU has been given, and could prepare nothing meanwhile. The meta
device has no values at all: whatever asks for one raises. With padded batches, transformers asks on its own account.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from simcse_train.config import make_config
from simcse_train.data.batches import two_views
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import TrainingError
from simcse_train.objectives.objective import Rows
from simcse_train.objectives.registry import OBJECTIVES, make_objective
from simcse_train.randomness import seeded
from simcse_train.runs.folder import checkpoints
from simcse_train.runs.metrics import read_metrics
from simcse_train.training.prepare import new_trainer
from simcse_train.training.step import forward_backward
from simcse_train.training.stopping import StopRequests

SENTENCES = ["a man rides a horse", "the cat", "a dog runs over the field", "rain", "two women talk"]


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "mean_sqrt_len+weightedmean+last"])
def test_a_step_asks_its_device_for_no_value(tiny: Path, objective: str, pooling: str) -> None:
    encoder = load_encoder(tiny)
    encoder.pooling, encoder.first_only = pooling, pooling == "cls"
    encoder.to("meta").train()
    batch = two_views(encoder.tokenizer.tokenize(SENTENCES, 16), np.arange(5), "meta")
    start = torch.zeros(10, encoder.hidden_size, device="meta")
    members = torch.zeros(10, 3, dtype=torch.int32, device="meta")
    rows = Rows(batch.views, batch.texts, start, start, members, start, similar_above=0.9)
    chosen = make_objective(make_config({"data": "corpus.txt", "objective": objective}))
    chosen.after_step(replace(rows, texts=torch.zeros(10, dtype=torch.long, device="meta")))  # fills a queue
    loss = forward_backward(
        encoder, chosen, batch.parts(2), rows, partial(seeded, 1), nullcontext, scale=lambda loss: loss
    )
    norm = clip_grad_norm_(encoder.parameters(), 1.0)
    assert loss.is_meta and norm.is_meta
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "pooler" not in name)


@pytest.mark.parametrize("changes", [{"save_every": 1}, {"eval_every": 1}, {"log_every": 1}, {}])
def test_a_step_that_is_not_finite_is_found_when_it_is_read_late_and_never_saved(
    text: Path, tiny: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    found: list[tuple[str, list[str], list[tuple[int, Any]]]] = []
    for reads_late in (False, True):
        config = make_config(
            {
                "data": str(text),
                "model": str(tiny),
                "max_steps": 4,
                "learning_rate": 1e20,
                "precision": "fp32",
                **changes,
            }
        )
        run = tmp_path / str(reads_late)
        run.mkdir()
        trainer = new_trainer(run, config)
        trainer.reads_late = reads_late
        with pytest.raises(TrainingError, match=r"Step 2: the loss is nan|Step 1: the embeddings") as error:
            trainer.fit(StopRequests())
        saved = [path.name for path in checkpoints(run)]
        logged = [(line["step"], line.get("loss")) for line in read_metrics(run)]
        found.append((str(error.value).replace(str(run), ""), saved, logged))
    assert found[0] == found[1]
    assert len(found[0][1]) == ("save_every" in changes)

"""The optimiser, its learning rate, and gradients that keep their memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from simcse_train.config import LEARNING_RATE, TrainConfig
from simcse_train.encoders.encoder import Encoder, input_embeddings
from simcse_train.training.compiled_optimizer import CompiledAdamW


def make_optimizer(encoder: Encoder, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters (Gao, Yao & Chen 2021, appendix A), compiled where the encoder is."""
    groups = parameter_groups(encoder, config.weight_decay)
    if encoder.stack is None or not all(parameter.is_contiguous() for parameter in encoder.parameters()):
        return torch.optim.AdamW(groups, lr=peak_rate(config), fused=True)
    embeddings = input_embeddings(encoder.model)
    rows = [] if embeddings is None else [embeddings.weight]
    return CompiledAdamW(groups, lr=peak_rate(config), embeddings=rows)


def peak_rate(config: TrainConfig) -> float:
    """Return the highest learning rate of a run."""
    return config.learning_rate or LEARNING_RATE


def learning_rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Return the rate of a step (from 0): linear to the peak during the warm-up, then linear to 0 at `total`."""
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return peak_rate(config) * (step + 1) / warmup
    return peak_rate(config) * (total - step) / max(1, total - warmup)


def parameter_groups(encoder: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in two groups: matrices decay, biases and layer norms do not (as in BERT)."""
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def keep_embedding_gradient(model: PreTrainedModel) -> None:
    """Give the word embeddings of a model on the CPU one dense gradient that every step reuses.

    A batch has a few thousand of the tens of thousands of tokens. torch would allocate a new matrix of zeros for all of
    them in each step, with a page fault for every 4 KiB, which costs more than all other zeros, copies and sums of a
    step.
    """
    embeddings = input_embeddings(model)
    if embeddings is not None and embeddings.weight.device.type == "cpu":
        embeddings.sparse = True
        embeddings.weight.grad = torch.zeros_like(embeddings.weight)


def release_embedding_gradient(model: PreTrainedModel) -> None:
    """Undo `keep_embedding_gradient`: torch's own optimisers do not take a sparse gradient."""
    embeddings = input_embeddings(model)
    if embeddings is not None:
        embeddings.sparse, embeddings.weight.grad = False, None


def clear_gradients(model: nn.Module) -> None:
    """Zero the gradients: in place for embeddings that keep theirs, by dropping them for all other parameters."""
    kept = {m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse}
    for parameter in model.parameters():
        if parameter in kept and parameter.grad is not None:
            parameter.grad.zero_()
        else:
            parameter.grad = None

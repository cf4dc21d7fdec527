"""One gradient of the word embeddings for the whole run.

A batch meets a few thousand of the tens of thousands of pieces. torch makes a new matrix of zeros for all of them at each step, fresh
from the system with a page fault for every 4 KiB, which costs more than all other zeros, copies and sums of a step together.
"""

from __future__ import annotations

import torch
from torch import nn


def keep_embedding_gradient(model: nn.Module) -> None:
    """Give the word embeddings of a model on a processor one dense gradient for good, to which each batch adds its own rows."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    if isinstance(embeddings, nn.Embedding) and embeddings.weight.device.type == "cpu":
        embeddings.sparse = True
        embeddings.weight.grad = torch.zeros_like(embeddings.weight)


def clear_gradients(model: nn.Module) -> None:
    """Set the gradients to zero: those of sparse embeddings in place, the others by letting them go."""
    lasting = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse]
    for parameter in model.parameters():
        if any(parameter is weight for weight in lasting) and parameter.grad is not None:
            parameter.grad.zero_()
        else:
            parameter.grad = None

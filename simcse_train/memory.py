"""Memory that a training step uses again instead of asking for it anew.

The numbers of a step need hundreds of megabytes that are free again at its end. Getting fresh ones from the system for the next step
costs a page fault for every 4 KiB, which is a tenth of the step.
"""

from __future__ import annotations

import ctypes
import platform

import torch
from torch import nn

# From glibc's malloc.h (mallopt, section "Malloc Tunable Parameters" of its manual).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where its allocator is glibc's."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def keep_embedding_gradient(model: nn.Module) -> None:
    """Give the word embeddings of a model on a processor one dense gradient for good, to which each batch adds its own rows.

    A batch meets a few thousand of the tens of thousands of pieces; torch would make a new matrix of zeros for all at each step.
    """
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

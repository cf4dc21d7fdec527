"""The gradient of one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from simcse_train.encoders.encoder import Encoder
from simcse_train.objectives.objective import Objective, Rows

# Seeds the dropout noise of a part of the batch, for as long as the block lasts.
Noise = Callable[[int], AbstractContextManager[None]]


def forward_backward(
    encoder: Encoder,
    objective: Objective,
    parts: Sequence[tuple[Tensor, Tensor]],
    rows: Rows,
    noise: Noise,
    autocast: Callable[[], AbstractContextManager[None]],
    scale: Callable[[Tensor], Tensor],
) -> Tensor:
    """Add the gradient of the batch's loss to the parameters' gradients; return the loss, a scalar.

    parts: tokens (total,) and lengths (rows,) of each part of the batch. The loss is computed once, on the embeddings
    of all parts, and each part carries its own slice of the gradient back to the parameters (gradient caching, Gao et
    al. 2021, arXiv 2101.06983, section 3.2). All parts but the last are embedded a second time, under the same noise,
    so that only one of them is in memory with its graph. The sum is the gradient of the undivided batch. `scale`
    multiplies the loss, as float16 needs.
    """

    def embed(part: int) -> Tensor:  # (rows of the part, hidden)
        with noise(part), autocast():
            embeddings: Tensor = encoder(*parts[part])
            return embeddings

    with torch.no_grad():
        embedded = [embed(part) for part in range(len(parts) - 1)]
    embedded.append(embed(len(parts) - 1))  # with its graph
    embeddings = torch.cat([part.detach() for part in embedded]).requires_grad_()  # (N * V, hidden)
    loss = objective.loss(embeddings, rows)
    scale(loss).backward()
    assert embeddings.grad is not None
    gradients = embeddings.grad.split([len(part) for part in embedded])
    embedded[-1].backward(gradients[-1])
    for part, gradient in enumerate(gradients[:-1]):
        embed(part).backward(gradient)
    return loss.detach()

"""What the objectives share: cosines in full precision, the mask of rows that are no negatives, and the divergence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train.objectives.objective import Rows

# -inf, not a large negative number: bfloat16 would round that, and a masked row would still have a gradient.
MASKED = float("-inf")


def normalized(embeddings: Tensor) -> Tensor:
    """Return embeddings (rows, hidden) at length 1 in float32; float64 stays float64."""
    # A cosine divided by 0.05 needs more digits than half precision has.
    return normalize(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), dim=1)


def same_text(texts: Tensor) -> Tensor:
    """Return the (rows, rows) mask that is True where two rows hold the same text, the diagonal included."""
    return texts[:, None] == texts[None, :]


def never_negative(rows: Rows) -> Tensor:
    """Return the (rows, rows) mask that is True where a row must not be pushed away from another.

    These are rows with the same text, rows that only fill a place, sentences whose neighbourhoods share a member, and
    sentences that the frozen start finds more similar than `similar_above` (probable false negatives). The diagonal is
    True, and so is the place of the positive, which the caller makes False.
    """
    masked = same_text(rows.texts) | (rows.texts < 0)[None, :]
    if rows.members is not None:
        # Column against column: a tensor of all comparisons at once would have (K + 1)^2 times the entries.
        for mine in rows.members.unbind(1):
            for theirs in rows.members.unbind(1):
                masked |= mine[:, None] == theirs[None, :]
    if rows.similar_above is not None:
        assert rows.start is not None
        masked |= rows.start @ rows.start.T > rows.similar_above
    return masked


def divergence(target: Tensor, student: Tensor, masked: Tensor) -> Tensor:
    """Return the mean over rows of KL(softmax(target) || softmax(student)) over places that are not `masked`.

    target, student, masked: (rows, rows). A row with all places masked has nothing to compare and does not count.
    """
    nothing = masked.all(dim=1, keepdim=True)
    hidden = masked & ~nothing  # a softmax over no places at all would not be a number
    target, student = (
        logits.masked_fill(hidden, MASKED).log_softmax(1).masked_fill(masked, 0.0) for logits in (target, student)
    )
    probabilities = target.exp().masked_fill(masked, 0.0)
    return (probabilities * (target - student)).sum() / (~nothing).sum().clamp(min=1)

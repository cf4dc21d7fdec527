"""Exact nearest neighbours by cosine, in memory that does not grow with the number of queries or rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

QUERIES, ROWS = 256, 65_536  # of a block of cosines: 64 MiB in float32


def nearest(
    queries: NDArray[np.floating],
    embeddings: NDArray[np.floating],
    count: int,
    *,
    exclude: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return cosines and numbers (queries, count) of the nearest rows of `embeddings` to each query, the nearest first.

    queries: (queries, hidden), embeddings: (rows, hidden), both normalised; `embeddings` may be a float16 memory map.
    exclude: (queries,), the number of a row that is no answer to that query, such as the query itself. If there
    are fewer rows than `count`, all are returned.
    """
    count = min(count, len(embeddings) - (exclude is not None))
    cosines = np.empty((len(queries), max(count, 0)), dtype=np.float32)
    numbers = np.empty(cosines.shape, dtype=np.int64)
    if count < 1:
        return cosines, numbers
    for start in range(0, len(queries), QUERIES):
        chosen = slice(start, start + QUERIES)
        wanted = torch.from_numpy(np.ascontiguousarray(queries[chosen], dtype=np.float32))
        best = torch.empty(len(wanted), 0)
        best_numbers = torch.empty(len(wanted), 0, dtype=torch.int64)
        for first in range(0, len(embeddings), ROWS):
            rows = torch.from_numpy(np.ascontiguousarray(embeddings[first : first + ROWS], dtype=np.float32))
            block = wanted @ rows.T  # (queries, rows of the block)
            if exclude is not None:
                _hide(block, exclude[chosen] - first)
            values, places = block.topk(min(count, block.shape[1]), dim=1)
            best, best_numbers = torch.cat([best, values], 1), torch.cat([best_numbers, places + first], 1)
            kept = best.topk(min(count, best.shape[1]), dim=1)
            best, best_numbers = kept.values, best_numbers.gather(1, kept.indices)
        cosines[chosen], numbers[chosen] = best.numpy(), best_numbers.numpy()
    return cosines, numbers


def _hide(block: torch.Tensor, columns: NDArray[np.int64]) -> None:
    """Set one column of each row to -inf, where that column is in the block."""
    inside = np.flatnonzero((columns >= 0) & (columns < block.shape[1]))
    block[torch.from_numpy(inside), torch.from_numpy(columns[inside])] = float("-inf")

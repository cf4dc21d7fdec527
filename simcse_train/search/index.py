"""Nearest neighbours by cosine: exact by blocks, and with a faiss index where that would take too long."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train.encoders.packing import moved
from simcse_train.errors import InputError

EXACT_PRODUCTS = 4e10  # queries x keys that are compared exactly: 200,000 sentences with each other, minutes on a CPU
QUERY_BLOCK, KEY_BLOCK = 1024, 16_384
PROBES = 32  # of the index's lists that a query searches
TRAINING = 64  # sampled keys per list from which the index finds its lists


def nearest(queries: Tensor, keys: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the cosines and the places of the k nearest keys of each query, both (queries, k), nearest first.

    queries: (queries, hidden), keys: (keys, hidden), of length 1 in any precision; `exclude` (queries,), on the CPU, is
    a place among the keys that is left out for each query, negative for none. Where there are fewer than k keys, the
    cosine is -inf. The result is exact up to 4e10 comparisons; beyond that it is an index's, which finds nearly all.
    Raises `InputError` if the index's library is needed and missing.
    """
    if len(queries) * len(keys) > EXACT_PRODUCTS and len(queries) > QUERY_BLOCK:
        return _from_index(queries, keys, k, exclude)
    found = [
        _exact(
            queries[start : start + QUERY_BLOCK],
            keys,
            k,
            None if exclude is None else exclude[start : start + QUERY_BLOCK],
        )
        for start in range(0, len(queries), QUERY_BLOCK)
    ]
    return torch.cat([cosines for cosines, _ in found]), torch.cat([places for _, places in found])


def mutual_neighbours(embeddings: Tensor, k: int) -> NDArray[np.int32]:
    """Return for each of embeddings (rows, hidden) its own place and those of its mutual neighbours, (rows, k + 1).

    Two rows are mutual neighbours if each is among the k nearest of the other. The row's own place stands first, and
    again in the places of neighbours that it does not have.
    """
    own = torch.arange(len(embeddings))
    places = nearest(embeddings, embeddings, k, exclude=own)[1].cpu()  # (rows, k)
    found = torch.empty(len(embeddings), k + 1, dtype=torch.int32)
    for start in range(0, len(embeddings), KEY_BLOCK):
        block = slice(start, start + KEY_BLOCK)
        mutual = (places[places[block]] == own[block, None, None]).any(2)  # (block, k)
        found[block] = torch.cat([own[block, None], torch.where(mutual, places[block], own[block, None])], dim=1).int()
    array: NDArray[np.int32] = found.numpy()
    return array


def smoothed(embeddings: Tensor, keys: Tensor, cosines: Tensor, places: Tensor) -> Tensor:
    """Return embeddings (rows, hidden) moved towards their nearest keys, of length 1.

    cosines and places: (rows, k), as `nearest` returns them. A neighbour weighs the third power of its cosine and the
    row itself 1, so that near neighbours count and a row without any stays where it is.
    """
    weights = cosines.clamp(min=0).pow(3)  # -inf, for a neighbour that is not there, becomes 0
    neighbours = keys[places].to(embeddings)  # (rows, k, hidden)
    return normalize(embeddings + (weights[..., None] * neighbours).sum(1))


def _exact(queries: Tensor, keys: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compare each query with each key; only the best k so far and one block of cosines are in memory."""
    best = torch.full((len(queries), k), float("-inf"), device=queries.device)
    places = torch.zeros(len(queries), k, dtype=torch.long, device=queries.device)
    for start in range(0, len(keys), KEY_BLOCK):
        block = keys[start : start + KEY_BLOCK].to(queries.device).float()
        cosines = queries.float() @ block.T
        if exclude is not None:
            inside = ((exclude >= start) & (exclude < start + len(block))).nonzero().squeeze(1)
            left_out = moved(torch.stack([inside, exclude[inside] - start]), queries.device)
            cosines[left_out[0], left_out[1]] = float("-inf")
        of_block, columns = cosines.topk(min(k, len(block)), dim=1)
        best, chosen = torch.cat([best, of_block], dim=1).topk(k, dim=1)
        places = torch.cat([places, columns + start], dim=1).gather(1, chosen)
    return best, places


def _from_index(queries: Tensor, keys: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Search an inverted file of 8-bit keys (faiss), then compute the exact cosines of what it found."""
    try:
        import faiss
    except ImportError:
        raise InputError(
            f"Finding the neighbours of {len(queries):,} sentences among {len(keys):,} needs an index: "
            "pip install 'simcse-train[index]'."
        ) from None
    lists = round(4 * math.sqrt(len(keys)))
    index = faiss.index_factory(keys.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = PROBES  # type: ignore[attr-defined]
    sample = torch.from_numpy(np.linspace(0, len(keys) - 1, min(len(keys), TRAINING * lists), dtype=np.int64))
    index.train(_float32(keys[sample]))
    for start in range(0, len(keys), KEY_BLOCK):
        index.add(_float32(keys[start : start + KEY_BLOCK]))
    cosines, places = [], []
    for start in range(0, len(queries), QUERY_BLOCK):
        block = queries[start : start + QUERY_BLOCK].float().cpu()
        found = torch.from_numpy(index.search(_float32(block), k + 1)[1])  # (block, k + 1), -1 where there is none
        exact = (keys[found.clamp(min=0)].float().cpu() @ block[..., None]).squeeze(2)
        left_out = found < 0
        if exclude is not None:
            left_out |= found == exclude[start : start + QUERY_BLOCK, None]
        best, chosen = exact.masked_fill(left_out, float("-inf")).topk(k, dim=1)
        cosines.append(best)
        places.append(found.clamp(min=0).gather(1, chosen))
    return torch.cat(cosines).to(queries.device), torch.cat(places).to(queries.device)


def _float32(rows: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.ascontiguousarray(rows.float().cpu().numpy())
    return array

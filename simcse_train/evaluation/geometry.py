"""Measures of an embedding space that need no labels."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train import distributed
from simcse_train.encoders.encoder import Encoder, mode
from simcse_train.encoders.packing import pack
from simcse_train.randomness import seeded
from simcse_train.search.cached_arrays import remember, remembered
from simcse_train.search.embeddings import embed_rows_together

BATCH = 64  # sentences embedded at once
VIEWED = 128  # sentences of which two views are embedded: alignment is a mean that needs no more
NEIGHBOURS = 10
FEWEST = 2 * NEIGHBOURS  # sentences: of fewer, the ten nearest would be most of the others
RUNS = 4  # of k-means


@dataclass(frozen=True)
class Space:
    """What an encoder makes of sentences, on the CPU; all rows have length 1."""

    embeddings: Tensor  # (sentences, hidden), without dropout
    views: tuple[Tensor, Tensor]  # (viewed, hidden) each, of some of the sentences


def look(encoder: Encoder, rows: Sequence[Sequence[int]], embeddings: Tensor | None = None) -> Space:
    """Embed tokenised sentences, and two views of at most `VIEWED` of them; every process does its share.

    `embeddings` (rows, hidden) are those of the sentences, if they are known.
    """
    first, second = embed_views(encoder, rows[:: -(-len(rows) // VIEWED)])
    if embeddings is None:
        embeddings = embed_rows_together(encoder, rows)
    return Space(embeddings.cpu(), (first.cpu(), second.cpu()))


@torch.inference_mode()
def embed_views(encoder: Encoder, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return two views (rows, hidden) of tokenised sentences, normalised, without the head; only dropout differs.

    The noise of a batch is the same in each call, so that two calls compare encoders and not random draws. Every
    process is given the same rows, and embeds its share of the batches.
    """
    shares = [(first * BATCH, min(end * BATCH, len(rows))) for first, end in distributed.shares(-(-len(rows) // BATCH))]
    counts = [end - first for first, end in shares]
    mine = range(*shares[distributed.rank()], BATCH)

    def view(number: int) -> Tensor:
        found = [torch.zeros(0, encoder.hidden_size, device=encoder.device)]
        for first in mine:
            with seeded(number, first):
                found.append(encoder.embed(*pack(rows[first : first + BATCH], encoder.device)).float())
        return distributed.gather_rows(normalize(torch.cat(found)), counts)

    with mode(encoder, training=True):
        return view(0), view(1)


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean squared distance of positive pairs (rows, hidden), normalised (Wang & Isola 2020, section 4)."""
    return float((first - second).square().sum(dim=1).mean())


def uniformity(embeddings: Tensor) -> float:
    """Return log mean exp(-2 d^2) over all pairs of different rows (rows, hidden), normalised.

    It is 0 where all rows are equal and about -4 where they are spread evenly over the sphere (Wang & Isola 2020,
    section 4).
    """
    squared = torch.pdist(embeddings.cpu().double()).square()  # a Mac's GPU has no double precision
    return float(squared.mul(-2).exp().mean().log())


def nearest_rows(embeddings: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Return the numbers (rows, k) of each row's nearest other rows, normalised (rows, hidden), nearest first."""
    cosines = embeddings @ embeddings.T
    cosines.fill_diagonal_(-torch.inf)
    return cosines.topk(min(k, len(embeddings) - 1)).indices


def neighbours_kept(before: Tensor, after: Tensor) -> float:
    """Return the mean share of nearest rows that are the same in two spaces; both (rows, k), from `nearest_rows`."""
    return float((before[:, :, None] == after[:, None, :]).any(dim=2).float().mean())


def neighbour_contrast(embeddings: Tensor, nearest: Tensor) -> float:
    """Return how much closer each row is to given rows than to all others, as a difference of mean cosines.

    embeddings: (rows, hidden), normalised; nearest: (rows, k), for example the `nearest_rows` of another space. It is 0
    where the nearest rows are all others.
    """
    if nearest.shape[1] >= len(embeddings) - 1:
        return 0.0
    cosines = embeddings @ embeddings.T
    others = (cosines.sum() - cosines.diagonal().sum()) / (len(cosines) * (len(cosines) - 1))
    return float(cosines.gather(1, nearest).mean() - others)


def known_agreement(embeddings: Tensor) -> float:
    """Return `cluster_agreement`, from the cache where the same embeddings (rows, hidden) were clustered before."""
    key = hashlib.sha256(embeddings.float().cpu().numpy().tobytes()).hexdigest()
    found = remembered("agreement", key, (), np.float64)
    if found is None:
        found = np.array(cluster_agreement(embeddings))
        remember("agreement", key, found)
    return float(found)


def cluster_agreement(embeddings: Tensor) -> float:
    """Return how well k-means runs from different starts agree, as mean adjusted Rand index (1 the same, 0 chance).

    embeddings: (rows, hidden), normalised. There are 25 clusters for 512 rows. It is high where the text falls into
    topics that the encoder sees, and training that destroys topics lowers it.
    """
    from sklearn.cluster import KMeans  # its import takes 0.7 s, which the first step need not wait for
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_rand_score

    clusters = max(2, len(embeddings) // 20)
    points = embeddings.float().cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of sentences with one embedding
        runs = [KMeans(clusters, n_init=1, max_iter=50, random_state=seed).fit_predict(points) for seed in range(RUNS)]
    return float(np.mean([adjusted_rand_score(first, second) for first, second in combinations(runs, 2)]))

"""Measures of an encoder on one's own labels, such as the topic of each sentence: is what is near of the same label?

Three measures, each x 100: how often the nearest other sentence has the same label, the share of the ten nearest that
have it (precision@10), and the normalised mutual information of k-means clusters, as many as there are labels, with the
labels (NMI, arithmetic mean of the entropies; Strehl & Ghosh 2002). Clustering is by scikit-learn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from simcse_train.data.files import one_file, open_file
from simcse_train.data.source import named
from simcse_train.data.texts import read_labelled_texts
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError
from simcse_train.search.embeddings import encode_together, require_finite
from simcse_train.search.index import nearest

NEIGHBOURS = 10
# K-means takes time in proportion to sentences x clusters: half a minute here, with 384 values a sentence.
CLUSTERING_LIMIT = 10_000_000
NO_NMI = "  left out: as many clusters as there are labels would take minutes"


@dataclass(frozen=True)
class LabelScores:
    """What is measured on labelled sentences; the measures are x 100."""

    sentences: int
    labels: int
    nearest: float
    precision: float  # of the ten nearest
    nmi: float | None  # None where clustering would take minutes


def evaluate_labels(
    encoder: Encoder,
    data: Path,
    label_column: str,
    text_column: str | None,
    encoding: str | None = None,
    *,
    show_progress: bool = False,
) -> LabelScores:
    """Score an encoder on a table of labelled sentences.

    Raises `InputError` if it cannot be read, or holds fewer than two labels or no label twice.
    """
    sentences, labels = read_labelled(data, label_column, text_column, encoding)
    embeddings = encode_together(encoder, sentences, show_progress=show_progress)
    require_finite(embeddings, sentences.__getitem__)
    return score_labels(embeddings, labels)


def score_labels(embeddings: NDArray[np.float32], labels: Sequence[str]) -> LabelScores:
    """Return the measures of normalised embeddings (sentences, hidden) and the label of each."""
    numbers = _numbered(labels)
    first, precision = score_neighbours(embeddings, labels)
    return LabelScores(
        sentences=len(labels),
        labels=int(numbers.max()) + 1,
        nearest=first,
        precision=precision,
        nmi=_clustering_agreement(embeddings, numbers),
    )


def score_neighbours(embeddings: NDArray[np.float32], labels: Sequence[str]) -> tuple[float, float]:
    """Return how often the nearest other sentence has the same label, and the share of the ten nearest; x 100.

    embeddings: (sentences, hidden), normalised.
    """
    rows, numbers = torch.from_numpy(embeddings), _numbered(labels)
    _, found = nearest(rows, rows, min(NEIGHBOURS, len(rows) - 1), exclude=torch.arange(len(rows)))
    same = numbers[found.numpy()] == numbers[:, None]  # (sentences, ten)
    return 100 * float(same[:, 0].mean()), 100 * float(same.mean())


def _numbered(labels: Sequence[str]) -> NDArray[np.intp]:
    """Return a number for each label: an array of strings would take the memory of the longest for each."""
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    return np.array([numbers[label] for label in labels], np.intp)


def _clustering_agreement(embeddings: NDArray[np.float32], numbers: NDArray[np.intp]) -> float | None:
    """Return NMI x 100 of k-means clusters with the labels, or None where there are too many of both."""
    labels = int(numbers.max()) + 1
    if len(numbers) * labels > CLUSTERING_LIMIT:
        return None
    clusters = KMeans(labels, n_init=3, random_state=0).fit_predict(embeddings)
    return 100 * float(normalized_mutual_info_score(numbers, clusters))


def read_labelled(
    path: Path,
    label_column: str,
    text_column: str | None,
    encoding: str | None = None,
    *,
    option: str = "--data",
    fallback_encoding: str | None = None,
) -> tuple[list[str], list[str]]:
    """Return the sentences and labels of a table of any format; records without either are left out.

    The encodings are those of `read_pairs`; `option` is what named the table. A table without a header has its columns
    named by their number, from 1. Raises `InputError` if the table cannot be read or its labels cannot be scored.
    """
    if not path.exists():
        raise InputError(f"{option} {path}: there is no such file. --label-column needs a table of labelled sentences.")
    file = one_file(path, option)
    source = named(
        file,
        option,
        text_column=text_column,
        encoding=encoding,
        label_column=label_column,
        fallback_encoding=fallback_encoding,
    )
    with open_file(file, option) as raw:
        records = [
            (text.strip(), label.strip())
            for text, label in read_labelled_texts(raw, source)
            if text.strip() and label.strip()
        ]
    kinds = len({label for _, label in records})
    if kinds < 2 or kinds == len(records):
        found = f"{len(records):,} labelled sentences with {kinds:,} different labels"
        raise InputError(
            f"{option} {path}, --label-column {label_column}: {found}. At least two labels are "
            "needed, and one of them on two sentences."
        )
    return [text for text, _ in records], [label for _, label in records]


def table(scores: LabelScores, name: str) -> str:
    """Return the measures as a plain-text table."""
    return "\n".join(
        [
            f"{name}: {scores.sentences:,} sentences with {scores.labels:,} labels, each measure x 100",
            f"{'nearest has the same label':<28}{scores.nearest:>8.2f}",
            f"{'precision@10':<28}{scores.precision:>8.2f}",
            f"{'NMI of k-means':<28}{f'{scores.nmi:.2f}' if scores.nmi is not None else NO_NMI:>8}",
        ]
    )


def as_json(scores: LabelScores) -> str:
    """Return the measures as one JSON object."""
    return json.dumps(asdict(scores))

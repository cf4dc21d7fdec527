"""Pairs to learn from: anchor, positive, and where there is one a hard negative."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simcse_train.data.files import one_file
from simcse_train.data.pairs import read_columns
from simcse_train.data.sentences import SentenceList
from simcse_train.data.source import Source, named
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.errors import InputError

ABSENT = -1  # in the place of a hard negative that a pair does not have


@dataclass(frozen=True)
class TrainingPairs:
    """Pairs by the numbers of their sentences."""

    rows: NDArray[np.int64]  # (pairs, 2), or (pairs, 3) where any has a hard negative; ABSENT for those without
    sentences: SentenceList  # distinct
    fingerprint: str


def open_training_pairs(
    path: Path,
    tokenizer: SentenceTokenizer,
    max_length: int,
    encoding: str | None = None,
    *,
    fallback_encoding: str | None = None,
) -> TrainingPairs:
    """Return the pairs of a file, each sentence cut at `max_length` tokens.

    The encodings are those of `read_pairs`. Raises `InputError`.
    """
    source = named(one_file(path, "--pairs"), "--pairs", encoding=encoding, fallback_encoding=fallback_encoding)
    records = list(read_training_pairs(source))
    if len(records) < 2:
        raise InputError(f"--pairs {path} holds {len(records)} pairs; at least two are needed.")
    numbers: dict[str, int] = {}
    views = 3 if any(len(record) > 2 for record in records) else 2
    rows = np.full((len(records), views), ABSENT, dtype=np.int64)
    for pair, record in enumerate(records):
        rows[pair, : len(record)] = [numbers.setdefault(sentence, len(numbers)) for sentence in record]
    sentences = list(numbers)
    if len(sentences) < 2:
        raise InputError(f"--pairs {path} holds the same sentence everywhere; at least two different ones are needed.")
    tokens = tokenizer.tokenize(sentences, max_length)
    return TrainingPairs(rows, SentenceList(sentences, tokens), _digest(records))


def read_training_pairs(source: Source) -> Iterator[tuple[str, ...]]:
    """Yield the sentences of each pair, two or three, from a table of any format.

    The columns are found by their names, or are the first two or three of a table without header. Raises `InputError`
    with the line where a sentence is missing.
    """
    for place, row in read_columns(source, ("first", "second"), ("negative",)):
        first, second, negative = (str(row[role] or "").strip() for role in ("first", "second", "negative"))
        if not first or not second:
            raise place.error(
                "does not hold an anchor and a positive. Each record needs both; a hard negative may follow."
            )
        yield (first, second, negative) if negative else (first, second)


def _digest(records: list[tuple[str, ...]]) -> str:
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()

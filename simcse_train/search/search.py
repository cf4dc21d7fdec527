"""Search a text for the sentences that an encoder finds nearest to a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simcse_train.data.corpus import Corpus, open_corpus
from simcse_train.encoders.encoder import Encoder
from simcse_train.search.embeddings import cached_embeddings, require_finite
from simcse_train.search.index import nearest


@dataclass(frozen=True)
class SearchedText:
    """The distinct sentences of a text and their embeddings (sentences, hidden), float16, mapped, of length 1."""

    corpus: Corpus
    embeddings: Tensor


@dataclass(frozen=True)
class Hit:
    """A sentence that was found, and its cosine with the query."""

    cosine: float
    sentence: str


def open_text(
    encoder: Encoder, data: Sequence[str], text_column: str | None = None, encoding: str | None = None
) -> SearchedText:
    """Return a text with its embeddings, which are computed once and kept beside the tokenised text in the cache.

    Raises `InputError` if the text cannot be read or the cache cannot be written.
    """
    corpus = open_corpus(data, text_column, encoder.tokenizer, encoder.max_length, encoding=encoding)
    numbers = np.arange(len(corpus), dtype=np.int64)
    key = f"{corpus.fingerprint} {encoder.max_length}"
    return SearchedText(corpus, torch.from_numpy(cached_embeddings(encoder, corpus.tokens, numbers, key)))


def search(encoder: Encoder, text: SearchedText, queries: Sequence[str], count: int) -> list[list[Hit]]:
    """Return for each query the `count` nearest sentences, or all where there are fewer, the nearest first."""
    embedded = encoder.encode(queries)  # (queries, hidden)
    require_finite(embedded, queries.__getitem__)
    cosines, places = nearest(torch.from_numpy(embedded), text.embeddings, min(count, len(text.corpus)))
    found = []
    for row, numbers in zip(cosines.tolist(), places.numpy(), strict=True):
        sentences = text.corpus.texts(numbers)
        found.append([Hit(cosine, sentence) for cosine, sentence in zip(row, sentences, strict=True)])
    return found

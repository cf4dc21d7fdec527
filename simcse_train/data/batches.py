"""The batches of a run: `[a, a, b, b, ...]`, packed, each a function of (seed, step) alone.

The order of an epoch is a function of (seed, epoch), so a resumed run reads nothing of what came before its step. Where
a run has training pairs, an epoch also holds their batches, `[a, a+, b, b+, ...]` or with a hard negative `[a, a+, a-,
...]`, evenly spread among those of the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simcse_train.data.order import LATEST, Orders
from simcse_train.data.sentences import Sentences
from simcse_train.data.training_pairs import TrainingPairs
from simcse_train.data.views import Repetition, neighbour_of_each
from simcse_train.encoders.packing import moved, pack

VIEWS = 2
HELD_OUT = 512  # sentences that are measured on and never trained on


@dataclass(frozen=True)
class Batch:
    """N sentences with V rows each, `[a, a', b, b', ...]`, packed."""

    sentences: NDArray[np.int64]  # (N,): the number of each sentence in the text
    views: int  # V, rows per sentence
    tokens: Tensor  # (total,): the token ids of all rows, one after another
    lengths: Tensor  # (N * V,), on the CPU
    texts: Tensor  # (N * V,): equal where two rows are views of one text, whichever sentence they came from
    sources: NDArray[np.int64]  # (N * V,): the number of the sentence that each row holds, negative where it holds none
    paired: bool = False  # whether it holds training pairs

    def parts(self, size: int | None) -> list[tuple[Tensor, Tensor]]:
        """Return tokens (total,) and lengths (rows,) in parts of at most `size` sentences, or undivided."""
        lengths = self.lengths.split(self.views * size if size else len(self.lengths))
        tokens = self.tokens.split([int(part.sum()) for part in lengths])
        return list(zip(tokens, lengths, strict=True))


@dataclass
class Batches:
    """All batches of a run over a text without its held-out sentences, or over training pairs, or over both.

    The sentences of the pairs are numbered after those of the text.
    """

    text: Sentences | None
    held_out: NDArray[np.int64]  # rising numbers of sentences
    batch_size: int
    seed: int
    device: torch.device
    pairs: TrainingPairs | None = None
    repetition: Repetition | None = None  # repeats words in second views
    members: NDArray[np.int32] | None = None  # (sentences, K + 1): neighbourhoods that second views are drawn from
    order_version: int = LATEST

    def __post_init__(self) -> None:
        self._orders = Orders(self.seed, self.order_version)

    @property
    def sentences(self) -> int:
        """The number of sentences of the text that are trained on."""
        return len(self.text) - len(self.held_out) if self.text is not None else 0

    @property
    def trained(self) -> int:
        """The number of sentences that are trained on: those of the text, or without a text those of the pairs."""
        return self.sentences if self.text is not None else self.numbered

    def trained_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the sentences at these positions among all that are trained on."""
        return positions if self.text is None else skip_held_out(positions, self.held_out)

    @property
    def numbered(self) -> int:
        """The number of sentences of the text and the pairs, held out or not."""
        return self._first_paired + (len(self.pairs.sentences) if self.pairs is not None else 0)

    @property
    def per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return batches_per_epoch(self.sentences, self.batch_size) + self._paired_per_epoch

    @property
    def _paired_per_epoch(self) -> int:
        return batches_per_epoch(len(self.pairs.rows), self.batch_size) if self.pairs is not None else 0

    def paired_before(self, step: int) -> int:
        """Return how many batches before a step hold pairs: evenly spread, its share of them, rounded down."""
        return step * self._paired_per_epoch // self.per_epoch

    def measured(self) -> list[list[int]]:
        """Return the token ids of the sentences to measure on: those held out, or all of a text too short for that.

        Without a text they are some of the sentences of the pairs.
        """
        if self.text is None:
            assert self.pairs is not None
            count = len(self.pairs.sentences)
            return self.pairs.sentences.tokens(np.linspace(0, count - 1, min(HELD_OUT, count), dtype=np.int64))
        return self.text.tokens(self.held_out if len(self.held_out) else np.arange(len(self.text)))

    def sample(self) -> list[list[int]]:
        """Return the token ids of sentences of the whole text, evenly spaced, by which encoder and text are judged.

        Before training those that are trained on say as much as those held out, of which a short text has few.
        """
        if self.text is None:
            return self.measured()
        count = len(self.text)
        return self.text.tokens(np.linspace(0, count - 1, min(HELD_OUT, count), dtype=np.int64))

    def tokens(self, numbers: NDArray[np.int64]) -> list[list[int]]:
        """Return the token ids of sentences of the text or the pairs."""
        of_text, of_pairs = self._split(numbers)
        found = dict(zip(of_text.tolist(), self.text.tokens(of_text), strict=True)) if self.text is not None else {}
        if self.pairs is not None:
            tokens = self.pairs.sentences.tokens(of_pairs - self._first_paired)
            found |= zip(of_pairs.tolist(), tokens, strict=True)
        return [found[number] for number in numbers.tolist()]

    def texts(self, numbers: NDArray[np.int64]) -> list[str]:
        """Return sentences of the text, then those of the pairs."""
        of_text, of_pairs = self._split(numbers)
        found = self.text.texts(of_text) if self.text is not None else []
        return found + (self.pairs.sentences.texts(of_pairs - self._first_paired) if self.pairs is not None else [])

    def at(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.per_epoch)
        before, after = (self.paired_before(place) for place in (position, position + 1))
        if after > before:
            assert self.pairs is not None
            return self._pairs_at(self._chosen(len(self.pairs.rows), epoch, before))
        numbers = skip_held_out(self._chosen(self.sentences, epoch, position - before), self.held_out)
        assert self.text is not None
        rows = self.text.tokens(numbers)
        if self.repetition is None and self.members is None:
            return two_views(rows, numbers, self.device)
        random = np.random.default_rng([self.seed, step, 1])
        if self.members is None:
            assert self.repetition is not None
            repeated = [self.repetition.repeat(row, random) for row in rows]
            return two_views(rows, numbers, self.device, second_rows=repeated)
        neighbours = neighbour_of_each(self.members[numbers], random)
        return two_views(rows, numbers, self.device, neighbours, self.text.tokens(neighbours))

    def _pairs_at(self, chosen: NDArray[np.int64]) -> Batch:
        """Return the batch of the training pairs with these numbers."""
        assert self.pairs is not None
        table = self.pairs.rows[chosen]  # (N, V)
        flat = table.ravel()
        rows = self.pairs.sentences.tokens(flat.clip(min=0))
        sources = np.where(flat < 0, flat, flat + self._first_paired)
        return _batch(rows, sources[:: table.shape[1]], table.shape[1], self.device, sources, paired=True)

    def _chosen(self, items: int, epoch: int, index: int) -> NDArray[np.int64]:
        """Return the items of the batch with this index among those of an epoch over so many items."""
        return self._orders.items_at(slice(index * self.batch_size, (index + 1) * self.batch_size), items, epoch)

    @property
    def _first_paired(self) -> int:
        return len(self.text) if self.text is not None else 0

    def _split(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        is_paired = numbers >= self._first_paired
        return numbers[~is_paired], numbers[is_paired]


def held_out_sentences(sentences: int) -> NDArray[np.int64]:
    """Return the numbers of the sentences to hold out, at most a tenth of all, rising; none of fewer than 20.

    They are evenly spaced and the same for every seed, so that the measures of two seeds compare.
    """
    count = min(HELD_OUT, sentences // 10)
    return np.linspace(0, sentences - 1, count if count >= 2 else 0, dtype=np.int64)


def batches_per_epoch(sentences: int, batch_size: int) -> int:
    """Return the number of batches in an epoch: a last short one counts if it holds at least two sentences."""
    return sentences // batch_size + (sentences % batch_size >= 2)


def skip_held_out(positions: NDArray[np.int64], held_out: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of sentences from their positions among those that are not held out.

    `held_out` (rising) holds numbers of sentences. Memory does not grow with the corpus.
    """
    trained_before = held_out - np.arange(len(held_out))  # for each held-out sentence
    return positions + np.searchsorted(trained_before, positions, side="right")


def two_views(
    rows: Sequence[Sequence[int]],
    sentences: NDArray[np.int64],
    device: torch.device | str = "cpu",
    second: NDArray[np.int64] | None = None,
    second_rows: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """Return the batch in which the token ids of each sentence stand twice in a row (Gao, Yao & Chen 2021, section 3).

    `second_rows` are token ids of other second views: of the sentences numbered `second`, else of the same in another
    form, which are the same text.
    """
    others = rows if second_rows is None else second_rows
    sources = np.stack([sentences, sentences if second is None else second], axis=1).ravel()
    tokens, texts = (
        [row for pair in zip(rows, views, strict=True) for row in pair]
        for views in (others, rows if second is None else others)
    )
    return _batch(tokens, sentences, VIEWS, device, sources, texts=texts)


def _batch(
    rows: Sequence[Sequence[int]],
    sentences: NDArray[np.int64],
    views: int,
    device: torch.device | str,
    sources: NDArray[np.int64],
    *,
    texts: Sequence[Sequence[int]] | None = None,
    paired: bool = False,
) -> Batch:
    """Return the batch with these rows of token ids; `texts` are those of the texts that rows in other forms stand for.

    A row whose source is negative fills a place and has a negative text.
    """
    # A hash and not a number within the batch: rows of other processes and of past batches can be compared too.
    named = zip(texts or rows, sources.tolist(), strict=True)
    names = [source if source < 0 else _text_of(text) for text, source in named]
    tokens, lengths = pack(rows, device)
    return Batch(sentences, views, tokens, lengths, moved(torch.tensor(names), device), sources, paired)


def _text_of(row: Sequence[int]) -> int:
    """Return a number from 0 to 2^63 that is the same for the same token ids and differs, almost surely, for others."""
    digest = hashlib.blake2b(np.asarray(row, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

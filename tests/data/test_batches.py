from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simcse_train.data.batches import (
    Batches,
    batches_per_epoch,
    held_out_sentences,
    skip_held_out,
    two_views,
)
from simcse_train.data.order import epoch_order
from simcse_train.data.sentences import SentenceList
from simcse_train.data.training_pairs import TrainingPairs
from simcse_train.data.views import Repetition

sizes = given(
    sentences=st.integers(0, 300),
    batch_size=st.integers(2, 70),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
)


class Numbers:
    """A corpus whose sentence i has the tokens [2, i, 3]."""

    def __init__(self, sentences: int) -> None:
        self.sentences = sentences

    def __len__(self) -> int:
        return self.sentences

    def tokens(self, numbers: NDArray[np.int64]) -> list[list[int]]:
        return [[2, int(number), 3] for number in numbers]

    def texts(self, numbers: NDArray[np.int64]) -> list[str]:
        return [str(number) for number in numbers]


def batches_of(sentences: int, batch_size: int, held_out: list[int], seed: int = 0) -> Batches:
    corpus: Any = Numbers(sentences)
    return Batches(corpus, np.array(held_out, dtype=np.int64), batch_size, seed, torch.device("cpu"))


@settings(max_examples=100, deadline=None)
@sizes
def test_an_epoch_has_every_sentence_once_except_a_last_single_one(
    sentences: int, batch_size: int, seed: int, epoch: int
) -> None:
    held_out = list(range(0, sentences, 7))
    batches = batches_of(sentences, batch_size, held_out, seed)
    per_epoch = batches.per_epoch
    found = [batches.at(step).sentences for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
    assert all(2 <= len(numbers) <= batch_size for numbers in found)
    seen = [int(number) for numbers in found for number in numbers]
    trained = sentences - len(held_out)
    assert len(set(seen)) == len(seen) == trained - (trained % batch_size == 1)
    assert not set(seen) & set(held_out)


def test_the_batch_of_a_step_does_not_depend_on_the_steps_before_it() -> None:
    one_by_one = batches_of(50, 8, [3, 20])
    expected = [one_by_one.at(step).sentences.tolist() for step in range(18)]  # three epochs
    for step in reversed(range(18)):
        assert batches_of(50, 8, [3, 20]).at(step).sentences.tolist() == expected[step]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(50, seed=s, epoch=e)) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_a_last_batch_of_one_sentence_is_left_out() -> None:
    assert [batches_per_epoch(n, 8) for n in (0, 1, 2, 8, 9, 10, 17)] == [0, 0, 1, 1, 1, 2, 2]


def test_each_sentence_stands_twice_in_a_row_and_equal_tokens_share_a_text() -> None:
    batch = two_views([[2, 7, 3], [2, 8, 9, 3], [2, 7, 3]], np.arange(3))
    assert batch.lengths.tolist() == [3, 3, 4, 4, 3, 3]
    assert batch.tokens.tolist() == [2, 7, 3, 2, 7, 3, 2, 8, 9, 3, 2, 8, 9, 3, 2, 7, 3, 2, 7, 3]
    assert batch.texts[[0, 2]].unique().numel() == 2


def test_parts_hold_both_views_of_at_most_so_many_sentences() -> None:
    batch = two_views([[2, 7, 3], [2, 8, 9, 3], [2, 3]], np.arange(3))
    parts = [(tokens.tolist(), lengths.tolist()) for tokens, lengths in batch.parts(2)]
    assert parts == [([2, 7, 3, 2, 7, 3, 2, 8, 9, 3, 2, 8, 9, 3], [3, 3, 4, 4]), ([2, 3, 2, 3], [2, 2])]
    for size in (None, 3, 100):
        (whole,) = batch.parts(size)
        assert whole[0].tolist() == batch.tokens.tolist()
        assert whole[1].tolist() == batch.lengths.tolist()


def test_held_out_sentences_are_a_tenth_at_most_and_evenly_spaced() -> None:
    assert held_out_sentences(19).tolist() == []
    assert held_out_sentences(31).tolist() == [0, 15, 30]
    found = held_out_sentences(1_000_000)
    assert len(found) == 512
    assert set(np.diff(found)) <= {1956, 1957}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1)), max_size=n))))
def test_positions_count_only_the_sentences_that_are_not_held_out(drawn: tuple[int, set[int]]) -> None:
    sentences, chosen = drawn
    held_out = np.array(sorted(number for number in chosen if number < sentences), dtype=np.int64)
    found = skip_held_out(np.arange(sentences - len(held_out)), held_out)
    assert found.tolist() == np.delete(np.arange(sentences), held_out).tolist()


def pairs_of(count: int, views: int = 2) -> TrainingPairs:
    """Pairs whose sentence i has the tokens [2, 1000 + i, 3]."""
    rows = np.arange(count * views).reshape(count, views)
    sentences = [str(number) for number in range(count * views)]
    return TrainingPairs(rows, SentenceList(sentences, [[2, 1000 + i, 3] for i in range(count * views)]), "")


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.integers(2, 120), st.integers(2, 20), st.integers(0, 3))
def test_an_epoch_has_every_pair_and_every_sentence_once_evenly_mixed(
    sentences: int, pairs: int, batch_size: int, epoch: int
) -> None:
    mixed = Batches(Numbers(sentences), np.zeros(0, np.int64), batch_size, 1, torch.device("cpu"), pairs_of(pairs))
    found = [mixed.at(step) for step in range(epoch * mixed.per_epoch, (epoch + 1) * mixed.per_epoch)]
    of_pairs = [batch for batch in found if batch.paired]
    of_text = [batch for batch in found if not batch.paired]
    anchors = [int(number) for batch in of_pairs for number in batch.sentences]
    assert len(set(anchors)) == len(anchors) == pairs - (pairs % batch_size == 1)
    seen = [int(number) for batch in of_text for number in batch.sentences]
    assert len(set(seen)) == len(seen) == sentences - (sentences % batch_size == 1)
    share = len(of_pairs) / len(found)
    for position in range(len(found) + 1):  # at no place is one kind more than a batch ahead
        assert abs(sum(batch.paired for batch in found[:position]) - share * position) < 1
    for batch in of_pairs:
        assert batch.sources.tolist() == [n + i for n in batch.sentences for i in (0, 1)]
        assert batch.tokens.tolist() == [t for n in batch.sources for t in (2, 1000 + n - sentences, 3)]


def test_the_sentences_of_pairs_are_numbered_after_those_of_the_text() -> None:
    mixed = Batches(Numbers(5), np.zeros(0, np.int64), 4, 1, torch.device("cpu"), pairs_of(3))
    assert mixed.numbered == 11
    assert mixed.tokens(np.array([7, 0, 5, 0])) == [[2, 1002, 3], [2, 0, 3], [2, 1000, 3], [2, 0, 3]]


def test_a_place_without_a_hard_negative_has_a_negative_text_and_source() -> None:
    pairs = pairs_of(2, views=3)
    pairs.rows[1, 2] = -1
    batch = Batches(None, np.zeros(0, np.int64), 2, 1, torch.device("cpu"), pairs).at(0)
    assert batch.views == 3
    place = 3 * batch.sentences.tolist().index(3) + 2
    assert [i for i in range(6) if batch.texts[i] < 0] == [i for i in range(6) if batch.sources[i] < 0] == [place]
    assert len(batch.lengths) == 6


def test_second_views_come_from_neighbourhoods_where_they_are_known() -> None:
    members = np.array([[i, (i + 1) % 10] for i in range(10)], dtype=np.int32)
    batches = Batches(Numbers(10), np.zeros(0, np.int64), 5, 1, torch.device("cpu"), members=members)
    batch = batches.at(0)
    assert batch.sources.tolist() == [x for n in batch.sentences.tolist() for x in (n, (n + 1) % 10)]
    assert batch.tokens.tolist() == [t for n in batch.sources.tolist() for t in (2, n, 3)]
    assert batch.texts[1] != batch.texts[0]


def test_the_places_of_repeated_words_are_a_function_of_seed_and_step() -> None:
    same = SentenceList(["x"] * 8, [[2, *range(10, 40), 3]] * 8)  # whichever sentences a batch holds

    def tokens(seed: int, step: int) -> list[int]:
        batches = Batches(same, np.zeros(0, np.int64), 4, seed, torch.device("cpu"), repetition=Repetition(1, 1, 64))
        return batches.at(step).tokens.tolist()

    for other in ((5, 1), (6, 0), (6, 1)):
        assert tokens(*other) != tokens(5, 0)
        assert tokens(*other) == tokens(*other)
    assert tokens(6, 0) != tokens(6, 1)
    assert tokens(5, 1) != tokens(6, 1)


def test_a_sentence_with_repeated_words_is_the_text_that_it_was() -> None:
    """Else objectives would push it from an equal sentence, and take it for another than its twin."""
    same = SentenceList(["x"] * 8, [[2, *range(10, 40), 3]] * 7 + [[2, 50, 51, 3]])
    batch = Batches(same, np.zeros(0, np.int64), 8, 5, torch.device("cpu"), repetition=Repetition(1, 1, 64)).at(0)
    assert len(set(batch.lengths.tolist())) > 2
    other = batch.texts[2 * batch.sentences.tolist().index(7)]
    assert [int(text != other) for text in batch.texts] == [int(n != 7) for n in batch.sentences for _ in range(2)]
    assert len(batch.texts.unique()) == 2

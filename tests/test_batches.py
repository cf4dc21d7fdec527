from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_train.batches import epoch_batches, micro_batches, not_held_out, steps_per_epoch, two_views

sizes = given(sentences=st.integers(0, 300), batch_size=st.integers(2, 70), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 5))


@settings(max_examples=100, deadline=None)
@sizes
def test_an_epoch_has_every_sentence_once_but_a_last_single_one(sentences: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = list(epoch_batches(sentences, batch_size, seed=seed, epoch=epoch))
    assert len(batches) == steps_per_epoch(sentences, batch_size)
    assert all(2 <= len(batch) <= batch_size for batch in batches)
    seen = np.concatenate([np.zeros(0, dtype=int), *batches])
    assert len(set(seen.tolist())) == len(seen) == sentences - (sentences % batch_size == 1)


@settings(max_examples=100, deadline=None)
@sizes
def test_any_position_can_be_reached_without_what_came_before(sentences: int, batch_size: int, seed: int, epoch: int) -> None:
    whole = list(epoch_batches(sentences, batch_size, seed=seed, epoch=epoch))
    for start in {0, len(whole) // 2, len(whole)}:
        rest = list(epoch_batches(sentences, batch_size, seed=seed, epoch=epoch, start=start))
        assert [b.tolist() for b in rest] == [b.tolist() for b in whole[start:]]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(np.concatenate(list(epoch_batches(50, 8, seed=s, epoch=e)))) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_each_sentence_stands_twice_in_a_row_and_twins_share_a_text() -> None:
    batch = two_views([[2, 7, 3], [2, 8, 9, 3], [2, 7, 3]])
    assert batch.lengths.tolist() == [3, 3, 4, 4, 3, 3]
    assert batch.tokens.tolist() == [2, 7, 3, 2, 7, 3, 2, 8, 9, 3, 2, 8, 9, 3, 2, 7, 3, 2, 7, 3]
    assert batch.texts.tolist() == [0, 0, 1, 1, 0, 0]


def test_micro_batches_hold_both_views_of_at_most_so_many_sentences() -> None:
    batch = two_views([[2, 7, 3], [2, 8, 9, 3], [2, 3]])
    parts = [(tokens.tolist(), lengths.tolist()) for tokens, lengths in micro_batches(batch, 2)]
    assert parts == [([2, 7, 3, 2, 7, 3, 2, 8, 9, 3, 2, 8, 9, 3], [3, 3, 4, 4]), ([2, 3, 2, 3], [2, 2])]
    for size in (None, 3, 100):
        (whole,) = micro_batches(batch, size)
        assert whole[0].tolist() == batch.tokens.tolist()
        assert whole[1].tolist() == batch.lengths.tolist()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1)), max_size=n))))
def test_the_sentences_that_are_not_held_out_are_all_others(drawn: tuple[int, set[int]]) -> None:
    sentences, chosen = drawn
    held_out = np.array(sorted(number for number in chosen if number < sentences), dtype=np.int64)
    found = not_held_out(np.arange(sentences - len(held_out)), held_out)
    assert found.tolist() == np.delete(np.arange(sentences), held_out).tolist()

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simcse_train.data import order
from simcse_train.data.order import Orders, epoch_order, permuted


@settings(max_examples=200, deadline=None)
@given(items=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 9))
@example(items=1, seed=0, epoch=0)
@example(items=2, seed=0, epoch=0)
@example(items=2048, seed=0, epoch=0)
@example(items=2049, seed=0, epoch=0)
def test_every_item_stands_at_one_position(items: int, seed: int, epoch: int) -> None:
    found = permuted(np.arange(items), items, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(found), np.arange(items))


def test_a_position_is_found_by_itself_and_orders_differ() -> None:
    whole = permuted(np.arange(5000), 5000, seed=1, epoch=2)
    assert np.array_equal(permuted(np.array([4999, 17]), 5000, seed=1, epoch=2), whole[[4999, 17]])
    for seed, epoch in ((1, 3), (2, 2)):
        same = permuted(np.arange(5000), 5000, seed=seed, epoch=epoch) == whole
        assert same.sum() < 10  # one in 5,000 by chance


def test_an_order_is_as_irregular_as_a_shuffled_list() -> None:
    found = permuted(np.arange(2**16), 2**16, seed=3, epoch=0)
    # Neighbours, the bits of an item, and the place of its first digit: each as often as by chance.
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(found, np.arange(2**16))[0, 1]) < 0.02
    for bit in range(16):
        ones = (found[: 2**12] >> bit & 1).mean()
        assert abs(ones - 0.5) < 0.05
    falls = np.histogram(found[: 2**12], bins=16, range=(0, 2**16))[0]
    assert ((falls - 256) ** 2 / 256).sum() < 45  # chi square, 15 degrees of freedom: 1e-4


def test_a_batch_of_a_huge_list_takes_no_memory_for_the_list() -> None:
    orders = Orders(seed=5)
    orders.items_at(slice(0, 64), 10**12, 0)
    tracemalloc.start()
    found = orders.items_at(slice(10**12 - 32, 10**12 + 32), 10**12, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(found.tolist())) == 32  # the last batch is a short one
    assert found.min() >= 0
    assert found.max() < 10**12
    assert peak < 100_000


def test_a_run_keeps_the_order_that_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "LISTED", 100)
    listed = epoch_order(101, seed=7, epoch=1)
    assert np.array_equal(Orders(7, version=1).items_at(slice(0, 101), 101, 1), listed)
    assert not np.array_equal(Orders(7).items_at(slice(0, 101), 101, 1), listed)
    assert np.array_equal(Orders(7).items_at(slice(0, 100), 100, 1), epoch_order(100, seed=7, epoch=1))

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simcse_train.data.views import Repetition, neighbour_of_each


@given(st.integers(0, 40), st.integers(4, 50), st.integers(0, 10_000))
def test_repetition_keeps_the_order_and_the_special_tokens(length: int, longest: int, seed: int) -> None:
    row = [2, *range(10, 10 + min(length, longest - 2)), 3]
    found = Repetition(1, 1, longest).repeat(row, np.random.default_rng(seed))
    assert (found[0], found[-1]) == (2, 3)
    assert len(found) <= longest
    text = found[1:-1]
    assert text == sorted(text)  # repeated tokens stand beside each other
    assert max(Counter(text).values(), default=1) <= 2
    if len(found) < longest:
        assert set(text) == set(row[1:-1])
    assert len(found) - len(row) <= max(2, int(0.32 * len(row[1:-1])))


def test_repetition_repeats_up_to_a_third_of_the_tokens() -> None:
    row, random = [2, *range(10, 35), 3], np.random.default_rng(0)
    added = {len(Repetition(1, 1, 99).repeat(row, random)) - len(row) for _ in range(500)}
    assert added == set(range(9))  # 0 to 0.32 * 25


def test_each_neighbour_is_chosen_equally_often_and_a_lonely_sentence_stays_alone() -> None:
    members = np.array([[0, 5, 0, 7, 0], [1, 1, 1, 1, 1], [2, 3, 4, 5, 6]], dtype=np.int32)
    random = np.random.default_rng(0)
    drawn = np.array([neighbour_of_each(members, random) for _ in range(4000)])
    assert set(drawn[:, 0]) == {5, 7}
    assert set(drawn[:, 1]) == {1}
    counts = Counter(drawn[:, 2].tolist())
    assert set(counts) == {3, 4, 5, 6}
    assert min(counts.values()) > 850

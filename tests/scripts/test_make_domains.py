from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from scripts.make_domains import LABELS, SENTENCES, balanced


@given(st.lists(st.integers(0, 2 * SENTENCES), min_size=1, max_size=LABELS + 5))
def test_a_domain_has_few_labels_and_not_too_much_of_each(sizes: list[int]) -> None:
    rows = [(f"label {label}", f"sentence {number}") for label, size in enumerate(sizes) for number in range(size)]
    found = balanced(rows * 2)
    counts = Counter(label for label, _ in found)
    assert len(found) == len(set(found)) and set(found) <= set(rows)
    assert sorted(counts.values()) == sorted(min(size, SENTENCES) for size in sorted(sizes)[-LABELS:] if size)
    assert found == balanced(rows)

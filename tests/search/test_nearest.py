from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_train.search import nearest as module
from simcse_train.search.nearest import nearest


def unit_rows(count: int, seed: int, width: int = 4) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 30), count=st.integers(1, 12), block=st.integers(1, 9), seed=st.integers(0, 999))
def test_blocks_find_what_one_sorted_matrix_of_cosines_shows(rows: int, count: int, block: int, seed: int) -> None:
    embeddings = unit_rows(rows, seed)
    all_cosines = embeddings @ embeddings.T
    np.fill_diagonal(all_cosines, -np.inf)
    expected = np.sort(all_cosines, axis=1)[:, ::-1][:, : min(count, rows - 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", block)
        patch.setattr(module, "QUERIES", block)
        cosines, numbers = nearest(embeddings, embeddings, count, exclude=np.arange(rows))
    assert np.allclose(cosines, expected, atol=1e-6)
    assert np.allclose(np.take_along_axis(all_cosines, numbers, axis=1), cosines, atol=1e-6)
    assert not (numbers == np.arange(rows)[:, None]).any()  # a sentence is no neighbour of its own


def test_a_half_precision_memory_map_is_searched_as_it_is(tmp_path: Path) -> None:
    embeddings = unit_rows(50, 0)
    np.save(tmp_path / "rows.npy", embeddings.astype(np.float16))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    cosines, numbers = nearest(embeddings[:3], mapped, 1)
    assert numbers[:, 0].tolist() == [0, 1, 2]
    assert np.allclose(cosines, 1, atol=1e-2)

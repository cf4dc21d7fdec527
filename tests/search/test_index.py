from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train.search import index
from simcse_train.search.index import mutual_neighbours, nearest, smoothed


def unit(rows: int, hidden: int = 6, seed: int = 0) -> Tensor:
    return normalize(torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_nearest_finds_what_sorting_all_cosines_finds(
    queries: int, keys: int, k: int, query_block: int, key_block: int
) -> None:
    left, right = unit(queries), unit(keys, seed=1)
    exclude = torch.arange(queries) % (keys + 1) - 1  # -1 for some, which leaves nothing out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "QUERY_BLOCK", query_block)
        patch.setattr(index, "KEY_BLOCK", key_block)
        cosines, places = nearest(left, right, k, exclude)
    for query in range(queries):
        expected = [(float(left[query] @ right[key]), key) for key in range(keys) if key != exclude[query]]
        expected = sorted(expected, reverse=True)[:k]
        found = int((cosines[query] > float("-inf")).sum())
        assert found == len(expected)
        assert cosines[query, :found].tolist() == pytest.approx([cosine for cosine, _ in expected], abs=1e-6)
        assert places[query, :found].tolist() == [key for _, key in expected]


def test_an_index_finds_nearly_what_an_exact_search_finds_and_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("faiss")
    rows = normalize(unit(60, 16).repeat_interleave(50, 0) + 0.3 * unit(3000, 16, seed=2), dim=1).half()
    own = torch.arange(len(rows))
    exact = nearest(rows, rows, 5, own)
    monkeypatch.setattr(index, "EXACT_PRODUCTS", 0)
    cosines, places = nearest(rows, rows, 5, own)
    assert not (places == own[:, None]).any()
    shared = (places[:, :, None] == exact[1][:, None, :]).any(2).float().mean()
    assert shared > 0.95
    assert torch.allclose(cosines, (rows[own[:, None]].float() * rows[places].float()).sum(2), atol=1e-5)
    assert torch.equal(nearest(rows, rows, 5, own)[1], places)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 1000))
def test_mutual_neighbours_know_each_other(rows: int, k: int, seed: int) -> None:
    embeddings = unit(rows, seed=seed)
    members = mutual_neighbours(embeddings, k)
    assert members[:, 0].tolist() == list(range(rows))
    known = [set(row.tolist()) for row in members]
    ranked = (embeddings @ embeddings.T - 9 * torch.eye(rows)).argsort(1, descending=True)[:, :k].tolist()
    for i in range(rows):
        mutual = {j for j in ranked[i] if i in ranked[j] and j != i}
        assert known[i] == mutual | {i}


def test_a_row_moves_towards_its_neighbours_by_the_third_power_of_their_cosines() -> None:
    row, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    found = smoothed(row, keys, torch.tensor([[0.6, float("-inf")]]), torch.tensor([[0, 2]]))
    expected = np.array([1 + 0.216 * 0.6, 0.216 * 0.8])
    assert np.allclose(found.numpy(), expected / np.linalg.norm(expected))
    alone = smoothed(row, keys, torch.tensor([[-1.0, 0.0]]), torch.tensor([[2, 1]]))
    assert torch.allclose(alone, row)

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simcse_train.config import make_config, objective_setting
from simcse_train.objectives.infonce import InfoNCE
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Rows
from simcse_train.objectives.queue import Queue
from simcse_train.objectives.registry import make_objective

Loss = Callable[..., Tensor]


def ntxent_loss(views: Tensor, temperature: float, texts: Tensor | None = None) -> Tensor:
    return NTXent(temperature).loss(views, _rows(views, texts))


def infonce_loss(views: Tensor, temperature: float, texts: Tensor | None = None) -> Tensor:
    return InfoNCE(temperature).loss(views, _rows(views, texts))


def _rows(views: Tensor, texts: Tensor | None) -> Rows:
    return Rows(2, torch.arange(len(views)) // 2 if texts is None else texts)


LOSSES = {"ntxent": ntxent_loss, "infonce": infonce_loss}
both = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def embeddings(sentences: int, seed: int = 0, hidden: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * sentences, hidden, dtype=torch.float64, generator=generator)


def by_hand(views: Tensor, temperature: float, objective: str, texts: list[int] | None = None) -> float:
    """The definition, anchor by anchor, in plain Python floats."""
    rows = [[float(x) for x in row] for row in views]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    texts = texts or [i // 2 for i in range(len(rows))]
    total = []
    anchors = range(len(rows)) if objective == "ntxent" else range(0, len(rows), 2)
    for i in anchors:
        positive = i + 1 if i % 2 == 0 else i - 1
        others = range(len(rows)) if objective == "ntxent" else range(1, len(rows), 2)
        negatives = [j for j in others if j != positive and texts[j] != texts[i]]
        numerator = math.exp(cosine(rows[i], rows[positive]) / temperature)
        total.append(
            -math.log(
                numerator / (numerator + sum(math.exp(cosine(rows[i], rows[j]) / temperature) for j in negatives))
            )
        )
    return sum(total) / len(total)


def test_orthogonal_sentences_with_equal_views_have_the_loss_worked_out_on_paper() -> None:
    views = torch.eye(2, dtype=torch.float64).repeat_interleave(2, dim=0)
    assert ntxent_loss(views, 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), abs=1e-12)
    assert infonce_loss(views, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-12)


@both
@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
def test_loss_is_its_definition(loss: Loss, temperature: float) -> None:
    views = embeddings(5)
    name = next(n for n, f in LOSSES.items() if f is loss)
    assert loss(views, temperature).item() == pytest.approx(by_hand(views, temperature, name), rel=1e-12)


@both
def test_rows_of_one_text_are_never_each_others_negatives(loss: Loss) -> None:
    views = embeddings(4)
    texts = [0, 0, 1, 1, 0, 0, 2, 2]
    name = next(n for n, f in LOSSES.items() if f is loss)
    found = loss(views, 0.05, torch.tensor(texts)).item()
    assert found == pytest.approx(by_hand(views, 0.05, name, texts), rel=1e-12)
    assert found != pytest.approx(loss(views, 0.05).item(), rel=1e-6)


def test_the_objectives_agree_on_a_single_sentence_and_where_all_views_are_equal() -> None:
    assert ntxent_loss(embeddings(1), 0.05).item() == infonce_loss(embeddings(1), 0.05).item() == 0
    # With equal views each negative of infonce counts twice in ntxent.
    views = embeddings(3)[0::2].repeat_interleave(2, dim=0)
    units = torch.nn.functional.normalize(views[0::2], dim=1)
    weights = ((units @ units.T) / 0.5).exp()
    negatives = weights.sum(1) - weights.diagonal()
    assert infonce_loss(views, 0.5).item() == pytest.approx(
        (1 + negatives / weights.diagonal()).log().mean().item(), rel=1e-12
    )
    assert ntxent_loss(views, 0.5).item() == pytest.approx(
        (1 + 2 * negatives / weights.diagonal()).log().mean().item(), rel=1e-12
    )


@both
def test_gradients_are_those_of_finite_differences(loss: Loss) -> None:
    views = embeddings(3).requires_grad_()
    texts = torch.tensor([0, 0, 1, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda v: loss(v, 0.2), (views,))
    assert torch.autograd.gradcheck(lambda v: loss(v, 0.2, texts), (views,))


@both
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), sentences=st.integers(1, 8), order=st.randoms())
def test_order_of_sentences_and_scale_do_not_matter(
    loss: Loss, seed: int, sentences: int, order: np.random.Generator
) -> None:
    views = embeddings(sentences, seed)
    expected = loss(views, 0.1).item()
    numbers = list(range(sentences))
    order.shuffle(numbers)
    permuted = views.reshape(sentences, 2, -1)[numbers].reshape(2 * sentences, -1)
    assert loss(permuted, 0.1).item() == pytest.approx(expected, abs=1e-9)
    scales = torch.rand(len(views), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    assert loss(views * scales, 0.1).item() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), sentences=st.integers(1, 8))
def test_swapping_the_views_does_not_change_ntxent(seed: int, sentences: int) -> None:
    views = embeddings(sentences, seed)
    swapped = views.reshape(sentences, 2, -1).flip(1).reshape(2 * sentences, -1)
    assert ntxent_loss(swapped, 0.1).item() == pytest.approx(ntxent_loss(views, 0.1).item(), abs=1e-9)


def test_swapping_the_views_transposes_infonce() -> None:
    views = embeddings(4)
    swapped = views.reshape(4, 2, -1).flip(1).reshape(8, -1)
    units = torch.nn.functional.normalize(views, dim=1)
    transposed = torch.nn.functional.cross_entropy((units[0::2] @ units[1::2].T).T / 0.1, torch.arange(4))
    assert infonce_loss(swapped, 0.1).item() == pytest.approx(transposed.item(), rel=1e-12)


@both
def test_half_precision_embeddings_are_compared_in_float32(loss: Loss) -> None:
    views = embeddings(4).bfloat16()
    assert loss(views, 0.05).dtype == torch.float32
    assert loss(views, 0.05).item() == pytest.approx(loss(views.double(), 0.05).item(), rel=1e-4)


@pytest.mark.parametrize(("batch_size", "size"), [(64, 160), (5, 12)])
def test_the_queue_holds_two_and_a_half_batches_behind_a_momentum_of_0_995_as_published(
    batch_size: int, size: int
) -> None:
    config = make_config({"data": "x.txt", "objective": "queue", "batch_size": batch_size})
    queue = make_objective(config)
    assert isinstance(queue, Queue)
    assert queue.size == size
    assert objective_setting(config, "momentum") == 0.995

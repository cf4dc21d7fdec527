"""Each objective against its formula, written out in plain Python floats, anchor by anchor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from simcse_train.config import make_config
from simcse_train.objectives.debiased import Debiased
from simcse_train.objectives.infonce import InfoNCE
from simcse_train.objectives.neighbours import Neighbours
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Objective, Rows
from simcse_train.objectives.queue import Queue
from simcse_train.objectives.registry import make_objective
from simcse_train.objectives.relational import Relational
from simcse_train.objectives.soft import Soft
from tests.objectives.rows import embeddings, known_rows


def cosines(left: Tensor, right: Tensor) -> list[list[float]]:
    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    return [[cosine(a, b) for b in right.tolist()] for a in left.tolist()]


def softmax(logits: dict[int, float]) -> dict[int, float]:
    total = sum(math.exp(x) for x in logits.values())
    return {i: math.exp(x) / total for i, x in logits.items()}


def kl(target: dict[int, float], student: dict[int, float]) -> float:
    return sum(p * math.log(p / student[i]) for i, p in target.items())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def twin(i: int) -> int:
    return i + 1 if i % 2 == 0 else i - 1


TEXTS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 0, 3, 3])  # the first and the fourth sentence have the same tokens


@pytest.mark.parametrize(("temperature", "tau_plus", "beta"), [(0.5, 0.1, 0.0), (0.2, 0.05, 1.0), (1.0, 0.4, 2.0)])
def test_debiased_is_equation_8_with_hard_negatives_weighted(temperature: float, tau_plus: float, beta: float) -> None:
    views, rows = embeddings(5), known_rows(5, texts=TEXTS)
    s = [[c / temperature for c in row] for row in cosines(views, views)]
    losses = []
    for i in range(10):
        negatives = [s[i][j] for j in range(10) if TEXTS[j] != TEXTS[i]]
        weights = [math.exp(beta * x) for x in negatives]
        weighted = sum(w * math.exp(x) for w, x in zip(weights, negatives, strict=True)) / sum(weights)
        positive = math.exp(s[i][twin(i)])
        estimate = (weighted - tau_plus * positive) / (1 - tau_plus)
        g = max(estimate, math.exp(-1 / temperature))
        losses.append(-math.log(positive / (positive + len(negatives) * g)))
    found = Debiased(temperature, tau_plus, beta).loss(views, replace(rows, members=None)).item()
    assert found == pytest.approx(mean(losses), rel=1e-12)


def test_debiased_stops_at_the_floor_of_equation_8() -> None:
    # Opposite sentences: the mean of exp(s) over negatives is below tau+ times that of the positive.
    views = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64)
    found = Debiased(1.0, 0.5, 0.0).loss(views, known_rows(2)).item()
    assert found == pytest.approx(-math.log(math.e / (math.e + 2 / math.e)), rel=1e-12)


def test_debiased_without_a_prior_is_ntxent() -> None:
    views, rows = embeddings(5), known_rows(5, texts=TEXTS)
    assert Debiased(0.3, 0.0, 0.0).loss(views, rows).item() == pytest.approx(NTXent(0.3).loss(views, rows).item())


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_soft_is_the_divergence_from_the_starts_softmax_with_the_twin(smoothed: bool, weight: float) -> None:
    views, rows = embeddings(5), known_rows(5, texts=TEXTS)
    start = rows.smoothed if smoothed else rows.start
    assert start is not None
    target, student = cosines(start, start), cosines(views, views)
    losses = []
    for i in range(10):
        seen = [j for j in range(10) if j == twin(i) or TEXTS[j] != TEXTS[i]]
        p, q = softmax({j: target[i][j] / 0.2 for j in seen}), softmax({j: student[i][j] / 0.4 for j in seen})
        losses.append(weight * kl(p, q) - (1 - weight) * math.log(q[twin(i)]))
    assert Soft(0.4, 0.2, weight, smoothed).loss(views, rows).item() == pytest.approx(mean(losses), rel=1e-10)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_relational_is_the_divergence_over_the_other_sentences(smoothed: bool, weight: float) -> None:
    views, rows = embeddings(5), known_rows(5, texts=TEXTS)
    start = rows.smoothed if smoothed else rows.start
    assert start is not None
    target, student = cosines(start, start), cosines(views, views)
    losses = []
    for i in range(10):
        others = [j for j in range(10) if TEXTS[j] != TEXTS[i]]
        p, q = softmax({j: target[i][j] / 0.2 for j in others}), softmax({j: student[i][j] / 0.2 for j in others})
        one_hot = softmax({j: student[i][j] / 0.4 for j in [*others, twin(i)]})
        losses.append(weight * kl(p, q) - (1 - weight) * math.log(one_hot[twin(i)]))
    assert Relational(0.4, 0.2, weight, smoothed).loss(views, rows).item() == pytest.approx(mean(losses), rel=1e-10)


@pytest.mark.parametrize("name", ["soft", "relational"])
def test_the_starts_embeddings_are_smoothed_over_as_many_neighbours_as_asked_and_none_is_0(name: str) -> None:
    views, rows = embeddings(5), known_rows(5)
    found = [make_objective(make_config({"data": "x", "objective": name, "neighbours": k})) for k in (0, 5)]
    assert [objective.needs for objective in found] == [{"start"}, {"smoothed"}]
    only_start, only_smoothed = replace(rows, smoothed=None), replace(rows, start=None)
    losses = [objective.loss(views, known) for objective, known in zip(found, [only_start, only_smoothed], strict=True)]
    assert losses[0].item() != pytest.approx(losses[1].item())


def test_an_encoder_that_is_the_start_has_no_relational_loss() -> None:
    rows = known_rows(5)
    assert rows.start is not None
    assert Relational(0.05, 0.1, 1.0, False).loss(rows.start, rows).item() == pytest.approx(0, abs=1e-12)
    assert Relational(0.05, 0.1, 1.0, True).loss(rows.start, rows).item() > 0.01


def test_a_batch_of_one_text_has_nothing_to_relate_and_a_gradient_of_zero() -> None:
    views, rows = embeddings(2).requires_grad_(), known_rows(2, texts=torch.zeros(4, dtype=torch.long))
    for objective in (Relational(0.05, 0.1, 1.0, False), Debiased(0.05, 0.1, 1.0)):
        loss = objective.loss(views, rows)
        (gradient,) = torch.autograd.grad(loss, views)
        assert loss.item() == 0
        assert torch.equal(gradient, torch.zeros_like(views))


def test_neighbourhoods_that_share_a_member_hold_no_negatives() -> None:
    views = embeddings(4)
    # Sentences 0 and 1 both know 9; 2 and 3 know nobody.
    members = torch.tensor([[0, 9], [0, 9], [1, 9], [1, 9], [2, 2], [2, 2], [3, 3], [3, 3]])
    s = cosines(views, views)
    losses = []
    for i in range(8):
        near = {0: 0, 1: 0, 2: 1, 3: 2}[i // 2]
        seen = [j for j in range(8) if j == twin(i) or {0: 0, 1: 0, 2: 1, 3: 2}[j // 2] != near]
        losses.append(-math.log(softmax({j: s[i][j] / 0.3 for j in seen})[twin(i)]))
    found = Neighbours(0.3).loss(views, replace(known_rows(4), members=members)).item()
    assert found == pytest.approx(mean(losses), rel=1e-12)


def test_pairs_with_hard_negatives_have_equation_5() -> None:
    views = embeddings(4, views=3)
    texts = torch.arange(12)
    texts[5] = -1  # the second pair has no hard negative
    s = cosines(views, views)
    losses = []
    for i in range(4):
        candidates = [3 * j + 1 for j in range(4)] + [3 * j + 2 for j in range(4) if j != 1]
        losses.append(-math.log(softmax({j: s[3 * i][j] / 0.3 for j in candidates})[3 * i + 1]))
    found = InfoNCE(0.3).loss(views, Rows(3, texts)).item()
    assert found == pytest.approx(mean(losses), rel=1e-12)


def test_a_hard_negative_of_ones_own_stays_one_however_similar() -> None:
    views = embeddings(2, views=3)
    start = normalize(torch.ones(6, 7, dtype=torch.float64), dim=1)
    found = InfoNCE(0.3).loss(views, Rows(3, torch.arange(6), start=start, similar_above=0.5)).item()
    s = cosines(views, views)
    expected = mean([-math.log(softmax({j: s[i][j] / 0.3 for j in (i + 1, i + 2)})[i + 1]) for i in (0, 3)])
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_queue_holds_the_most_recent_sentences_as_further_negatives() -> None:
    queue = Queue(0.3, size=5)
    past = [known_rows(3, seed=10, texts=torch.tensor([7, 7, 8, 8, 9, 9])), known_rows(3, seed=20, texts=TEXTS[:6])]
    views, rows = embeddings(3), known_rows(3, texts=torch.tensor([0, 0, 5, 5, 6, 6]))
    without = queue.loss(views, rows).item()
    assert without == InfoNCE(0.3).loss(views, rows).item()
    for known in past:
        queue.after_step(known)
    momenta = [known.momentum for known in past if known.momentum is not None]
    queued = torch.cat([momentum[0::2] for momentum in momenta])[1:]  # the oldest of six has left
    texts = [8, 9, 0, 1, 2]
    inside, beyond = cosines(views, views), cosines(views, queued)
    losses = []
    for i in range(3):
        logits = {j: inside[2 * i][2 * j + 1] / 0.3 for j in range(3)}
        logits |= {10 + m: beyond[2 * i][m] / 0.3 for m in range(5) if texts[m] != rows.texts[2 * i]}
        losses.append(-math.log(softmax(logits)[i]))
    assert queue.loss(views, rows).item() == pytest.approx(mean(losses), rel=1e-12)
    again = Queue(0.3, size=5)
    again.load_state(queue.state())
    assert again.loss(views, rows).item() == queue.loss(views, rows).item()


OBJECTIVES: dict[str, Objective] = {
    "ntxent": NTXent(0.2),
    "infonce": InfoNCE(0.2),
    "debiased": Debiased(0.2, 0.1, 1.0),
    "soft": Soft(0.2, 0.1, 0.6, False),
    "relational": Relational(0.2, 0.1, 0.6, True),
    "neighbours": Neighbours(0.2),
    "queue": Queue(0.2, 4),
}
every = pytest.mark.parametrize("name", OBJECTIVES)


@every
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    rows = known_rows(4, texts=TEXTS[:8], similar_above=0.3)
    OBJECTIVES[name].after_step(known_rows(3, seed=30, similar_above=0.3))
    views = embeddings(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: OBJECTIVES[name].loss(v, rows), (views,))


@every
def test_sentences_that_the_start_finds_similar_are_not_pushed_apart(name: str) -> None:
    rows = known_rows(4)
    assert rows.start is not None
    cosine = torch.tensor(cosines(rows.start, rows.start))
    between = cosine[torch.arange(8)[:, None] // 2 != torch.arange(8)[None, :] // 2]
    views = embeddings(4)
    objective = OBJECTIVES[name]
    unmasked = objective.loss(views, rows).item()
    assert objective.loss(views, replace(rows, similar_above=2.0)).item() == pytest.approx(unmasked, rel=1e-12)
    some = objective.loss(views, replace(rows, similar_above=between.median().item())).item()
    assert some != pytest.approx(unmasked, rel=1e-6)
    every_other = replace(rows, similar_above=-2.0)
    if name in ("ntxent", "infonce", "debiased", "neighbours", "queue"):  # nothing is a negative, nothing to do
        assert objective.loss(views, every_other).item() == pytest.approx(0, abs=1e-12)


@every
def test_a_step_against_the_gradient_lowers_the_loss(name: str) -> None:
    views, rows = embeddings(6).requires_grad_(), known_rows(6)
    before = OBJECTIVES[name].loss(views, rows)
    (gradient,) = torch.autograd.grad(before, views)
    assert OBJECTIVES[name].loss(views - 0.05 * gradient, rows).item() < before.item()


@every
def test_half_precision_embeddings_are_compared_in_float32(name: str) -> None:
    rows = known_rows(4, dtype=torch.float32)
    views = embeddings(4).bfloat16()
    objective = OBJECTIVES[name]
    objective.load_state({})
    assert objective.loss(views, rows).dtype == torch.float32
    assert objective.loss(views, rows).item() == pytest.approx(
        objective.loss(views.double(), known_rows(4)).item(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("texts", "left_out"),
    [
        ([0, 1, 2, 1, 3, 4], {0: {3}, 2: {1}}),  # two anchors with one positive
        ([0, 1, 0, 2, 3, 4], {0: {3}, 2: {1}}),  # one anchor with two positives
        ([0, 1, 2, 3, 4, 5], {}),
    ],
)
def test_a_text_that_is_pulled_to_an_anchor_is_not_pushed_from_it(
    texts: list[int], left_out: dict[int, set[int]]
) -> None:
    views = embeddings(3)
    s = cosines(views, views)
    losses = []
    for anchor in (0, 2, 4):
        seen = [j for j in (1, 3, 5) if j not in left_out.get(anchor, set())]
        losses.append(-math.log(softmax({j: s[anchor][j] / 0.3 for j in seen})[anchor + 1]))
    found = InfoNCE(0.3).loss(views, Rows(2, torch.tensor(texts))).item()
    assert found == pytest.approx(mean(losses), rel=1e-12)


def test_a_hard_negative_that_is_the_positive_is_left_out() -> None:
    views = embeddings(2, views=3)
    s = cosines(views, views)
    losses = [
        -math.log(softmax({j: s[0][j] / 0.3 for j in (1, 4, 5)})[1]),
        -math.log(softmax({j: s[3][j] / 0.3 for j in (4, 1, 2, 5)})[4]),
    ]
    found = InfoNCE(0.3).loss(views, Rows(3, torch.tensor([0, 1, 1, 3, 4, 5]))).item()
    assert found == pytest.approx(mean(losses), rel=1e-12)

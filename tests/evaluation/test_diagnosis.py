from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from simcse_train.evaluation import geometry
from simcse_train.evaluation.diagnosis import (
    CROWDED,
    LEAST_SPREAD,
    Diagnosis,
    diagnose,
    recommend,
    recommend_for_pairs,
    was_tuned,
)
from simcse_train.evaluation.geometry import (
    cluster_agreement,
    known_agreement,
    nearest_rows,
    neighbour_contrast,
    neighbours_kept,
)
from simcse_train.evaluation.hardness import gradient_shares, most_similar_pairs, negative_cosines


def random_rows(rows: int, hidden: int = 64, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed)))


def topics(count: int = 25, each: int = 20, spread: float = 0.4) -> torch.Tensor:
    """Rows around `count` centres."""
    noise = random_rows(count * each, seed=1) * spread
    return normalize(random_rows(count).repeat_interleave(each, 0) + noise)


def test_spread_rows_are_tuned_and_general_and_topics_are_clustered() -> None:
    spread, clustered, collapsed = random_rows(500, 384), topics(), normalize(1 + 0.1 * random_rows(500))
    of_spread, of_topics, of_collapsed = (
        diagnose(rows, for_sentences=False) for rows in (spread, clustered, collapsed)
    )
    assert of_spread.is_tuned
    assert of_spread.is_general
    assert not of_spread.is_clustered
    assert of_topics.is_tuned
    assert not of_topics.is_general
    assert of_topics.is_clustered
    assert not of_collapsed.is_tuned
    assert diagnose(collapsed, for_sentences=True).is_tuned


def test_what_was_tuned_is_read_from_step_0_whatever_version_logged_it() -> None:
    assert was_tuned({"uniformity": -1.0, "tuned": True})
    assert not was_tuned({"uniformity": -3.0, "tuned": False})
    assert was_tuned({"uniformity": -2.3})
    assert not was_tuned({"uniformity": -2.1})
    assert not was_tuned({})


@pytest.mark.parametrize(
    ("diagnosis", "settings"),
    [
        (Diagnosis(-1.0, 0.7, 0.9, 0.6), {"objective": "ntxent"}),
        (Diagnosis(-2.1, 0.4, 0.7, 0.5), {"objective": "ntxent"}),
        (Diagnosis(-2.3, 0.4, 0.7, 0.5), {"objective": "relational", "neighbours": 5}),
        (Diagnosis(-2.1, 0.4, 0.9, 0.6, for_sentences=True), {"objective": "relational", "neighbours": 5}),
        (Diagnosis(-3.8, 0.02, 0.25, 0.2), {"objective": "ntxent"}),
        (Diagnosis(-2.9, 0.2, 0.62, 0.5), {"objective": "relational", "neighbours": 5}),
        (Diagnosis(-3.2, 0.1, 0.42, 0.2), {"objective": "relational", "neighbours": 0, "start_weight": 0.1}),
    ],
)
def test_the_objective_follows_encoder_and_text(diagnosis: Diagnosis, settings: dict[str, object]) -> None:
    found, reason = recommend(diagnosis, 250)
    assert found == settings
    assert "the encoder is" in reason
    can_unlearn = diagnosis.is_tuned and settings["objective"] == "ntxent"
    found, reason = recommend(diagnosis, 2000)
    assert found == ({**settings, "learning_rate": 3.8e-6} if can_unlearn else settings)
    assert ("in 2,000 steps at 3e-05 it would unlearn" in reason) is can_unlearn


@pytest.mark.parametrize(
    ("hardest", "agreement", "settings"),
    [
        (0.85, 0.1, {"objective": "ntxent", "temperature": 0.01}),  # 0.25 with the usual spread: a general text
        (0.9, 0.5, {"objective": "relational", "neighbours": 5, "temperature": 0.01, "start_temperature": 0.02}),
    ],
)
def test_where_all_cosines_are_high_a_text_is_judged_by_their_spread_and_temperatures_are_lowered(
    hardest: float, agreement: float, settings: dict[str, object]
) -> None:
    tuned = Diagnosis(-0.8, 0.8, hardest, agreement, for_sentences=True)
    found, reason = recommend(tuned, 250)
    assert found == settings
    assert "random pairs have a mean cosine of 0.80, which asks for low temperatures" in reason
    assert f"has a cosine of {hardest:.2f}, {1 - (1 - hardest) / 0.2:.2f} if the mean were not 0.80" in reason
    assert recommend(replace(tuned, for_sentences=False), 250)[0] == {"objective": "ntxent"}
    assert "temperature" not in recommend(replace(tuned, mean_cosine=0.45), 250)[0]


@given(mean=st.floats(0, 1 - LEAST_SPREAD), above=st.floats(0, 1))
def test_hardness_does_not_change_with_a_direction_that_all_embeddings_share(mean: float, above: float) -> None:
    plain = Diagnosis(-3.0, 0.0, above, 0.2)
    shared = Diagnosis(-1.0, mean, mean + (1 - mean) * above, 0.2)
    assert shared.hardness == pytest.approx(above if mean > CROWDED else shared.hardest_negative, abs=1e-6)
    assert plain.hardness == pytest.approx(above, abs=1e-6)


def test_only_pairs_of_a_narrow_text_are_masked() -> None:
    assert recommend_for_pairs(Diagnosis(-2.9, 0.2, 0.62, 0.5))[0] == {"objective": "infonce", "mask_similar": 0.985}
    for plain_or_general in (Diagnosis(-1.0, 0.7, 0.9, 0.6), Diagnosis(-3.8, 0.02, 0.25, 0.2)):
        assert recommend_for_pairs(plain_or_general)[0] == {"objective": "infonce"}


@pytest.mark.parametrize("for_sentences", [False, True])
def test_an_encoder_for_which_all_sentences_are_one_is_diagnosed(for_sentences: bool) -> None:
    found = diagnose(normalize(torch.ones(100, 8)), for_sentences=for_sentences)
    assert found.hardness == pytest.approx(1, abs=1e-4)
    settings, _ = recommend(found, 250)
    assert settings.get("temperature", 0.001) == 0.001


def test_pairs_too_are_trained_at_a_low_temperature_where_all_cosines_are_high() -> None:
    found, reason = recommend_for_pairs(Diagnosis(-0.8, 0.8, 0.9, 0.5, for_sentences=True))
    assert found == {"objective": "infonce", "mask_similar": 0.985, "temperature": 0.01}
    assert reason.endswith("a mean cosine of 0.80, which asks for low temperatures")


def test_neighbours_kept_counts_the_shared_ones_whatever_their_order() -> None:
    before = torch.tensor([[1, 2], [0, 3]])
    assert neighbours_kept(before, torch.tensor([[2, 1], [3, 0]])) == 1
    assert neighbours_kept(before, torch.tensor([[2, 3], [3, 2]])) == 0.5
    rows = random_rows(30)
    assert neighbours_kept(nearest_rows(rows), nearest_rows(rows)) == 1
    assert not (nearest_rows(rows) == torch.arange(30)[:, None]).any()


def test_clusterings_agree_on_topics_and_not_on_noise() -> None:
    assert cluster_agreement(topics(spread=0.1)) > 0.8
    assert cluster_agreement(random_rows(500, 384)) < 0.2


def test_gradient_shares_are_those_of_the_softmax() -> None:
    negatives = torch.tensor([[0.9, 0.1, *[0.0] * 8]])  # ten negatives: the hardest 1 % and 10 % are the first
    expected = math.exp(9) / (math.exp(9) + math.exp(1) + 8)
    found = gradient_shares(negatives, 0.1)
    assert found.hardest_1 == found.hardest_10 == pytest.approx(expected, rel=1e-6)
    assert gradient_shares(negatives, 10).hardest_1 < 0.12


def test_negatives_and_similar_pairs_stay_within_a_batch_and_leave_the_sentence_itself_out() -> None:
    rows = random_rows(8)
    rows[5] = rows[1]  # in another batch of four
    rows[6] = normalize(rows[4] + 0.1 * rows[7], dim=0)
    negatives = negative_cosines(rows, 4)
    assert negatives.shape == (8, 3)
    assert negatives.max() < 0.999
    assert (negatives.diff(dim=1) <= 0).all()
    best = most_similar_pairs(rows, 4, 2)[0]
    assert (best.first, best.second) == (4, 6)


def test_neighbour_contrast_is_the_mean_cosine_with_given_rows_beyond_that_of_all_others() -> None:
    rows = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    twins = torch.tensor([[1], [0], [3], [2]])
    assert neighbour_contrast(rows, twins) == pytest.approx(1 - 1 / 3)
    assert neighbour_contrast(rows, torch.tensor([[2], [2], [0], [0]])) == pytest.approx(-1 / 3)


@pytest.mark.parametrize("count", range(2, 12))
def test_where_all_others_are_the_nearest_there_is_no_contrast(count: int) -> None:
    rows = random_rows(count)
    assert neighbour_contrast(rows, nearest_rows(rows)) == 0


def test_sentences_that_are_unlike_are_still_pairs_of_different_ones() -> None:
    rows = torch.tensor([[1.0, 0], [-0.6, 0.8], [-0.6, -0.8]])
    found = [(pair.first, pair.second, round(pair.cosine, 3)) for pair in most_similar_pairs(rows, 3, 9)]
    assert found == [(1, 2, -0.28), (0, 1, -0.6), (0, 2, -0.6)]


def test_the_agreement_of_clusterings_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = random_rows(200, 8), random_rows(200, 8, seed=1)
    expected = [cluster_agreement(first), cluster_agreement(second)]
    assert expected[0] != expected[1]
    assert [known_agreement(first), known_agreement(second)] == expected
    monkeypatch.delattr(geometry, "cluster_agreement")
    assert [known_agreement(first), known_agreement(second)] == expected

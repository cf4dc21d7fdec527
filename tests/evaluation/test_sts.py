from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_train.data.pairs import Pair, read_pairs
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError
from simcse_train.evaluation.geometry import alignment, embed_views, uniformity
from simcse_train.evaluation.sts import SUBSETS, as_json, evaluate, spearman, table
from simcse_train.search.embeddings import embed_rows

PAIRS = [Pair("a man", "the man", 4.5), Pair("a cat", "guitar", 0.2), Pair("a dog, runs", "a dog", 3.0)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'sentence1,sentence2,score\na man,the man,4.5\na cat,guitar,0.2\n"a dog, runs",a dog,3\n'),
        ("p.csv", 'score,sentence2,sentence1\n4.5,the man,a man\n0.2,guitar,a cat\n3,a dog,"a dog, runs"\n'),
        ("p.csv", 'a man,the man,4.5\na cat,guitar,0.2\n"a dog, runs",a dog,3\n'),
        ("p.tsv", "sentence1\tsentence2\tscore\na man\tthe man\t4.5\na cat\tguitar\t0.2\na dog, runs\ta dog\t3\n"),
        ("p.tsv", "a man\tthe man\t4.5\na cat\tguitar\t0.2\nx\ty\t\na dog, runs\ta dog\t3\n"),
        ("p.txt", "1||a man||the man||4.5\n2||a cat||guitar||0.2\n3||a dog, runs||a dog||3\n"),
        (
            "sts.csv",
            "g\tf\ty\t1\t4.500\ta man\tthe man\ng\tf\ty\t2\t0.2\ta cat\tguitar\textra\n"
            "g\tf\ty\t3\t3\ta dog, runs\ta dog\n",
        ),
        (
            "p.jsonl",
            "".join(
                json.dumps(p._asdict() and {"sentence1": p.first, "sentence2": p.second, "score": p.score}) + "\n"
                for p in PAIRS
            ),
        ),
    ],
)
def test_every_layout_of_pairs_is_read(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_pairs(tmp_path / name) == PAIRS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\t1\na\tb\tgood\n", "line 2: the score 'good'"),
        ("a\tb\t1\na\tb\n", "line 2 has too few fields"),
        ("a\tb\t1\n", "1 scored pairs"),
        ("", "is empty"),
    ],
)
def test_a_pair_that_can_not_be_read_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.tsv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "p.tsv")


def test_spearman_handles_ties_as_average_ranks_and_refuses_constants() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: Pearson of the ranks is 4.5 / sqrt(4.5 * 5).
    assert spearman(np.array([0.0, 0.5, 0.5, 1.0]), np.array([1.0, 2, 3, 4])) == pytest.approx(
        100 * 4.5 / math.sqrt(22.5)
    )
    assert spearman(np.ones(4), np.array([1.0, 2, 3, 4])) is None
    assert spearman(np.array([1, 1 - 2e-7, 1 - 1e-7, 1], np.float32), np.array([1.0, 2, 3, 4])) is None  # rounding
    assert spearman(np.array([1.0, np.nan, 2]), np.array([1.0, 2, 3])) is None


def test_spearman_sees_the_order_alone() -> None:
    cosines = np.array([0.1, 0.2, 0.9, 0.3])
    assert spearman(cosines, np.array([1.0, 10.0, 10_000.0, 100.0])) == pytest.approx(100)
    assert spearman(-cosines, np.array([1.0, 10.0, 10_000.0, 100.0])) == pytest.approx(-100)


def test_alignment_and_uniformity_are_their_definitions() -> None:
    points = torch.eye(3)
    assert alignment(points, points) == 0
    assert alignment(points, -points) == pytest.approx(4)
    assert uniformity(points) == pytest.approx(math.log(math.exp(-4)))
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0], [0, 1]])) == pytest.approx(
        math.log((math.exp(-8) + 2 * math.exp(-4)) / 3)
    )


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(2, 20), seed=st.integers(0, 1000))
def test_uniformity_lies_between_collapse_and_opposite_poles(rows: int, seed: int) -> None:
    points = torch.nn.functional.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)), dim=1)
    assert -8 <= uniformity(points) <= 0
    assert uniformity(points[:1].repeat(rows, 1)) == pytest.approx(0, abs=1e-6)


def test_two_dropout_views_differ_and_the_measure_repeats(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    rows = encoder.tokenizer.tokenize(["a man", "the cat runs", "a dog"], 16)
    state = torch.get_rng_state()
    aligned, uniform = alignment(*embed_views(encoder, rows)), uniformity(embed_rows(encoder, rows))
    assert aligned > 1e-4
    assert uniform < 0
    assert alignment(*embed_views(encoder, rows)) == aligned
    assert uniformity(embed_rows(encoder, rows)) == uniform
    assert torch.equal(torch.get_rng_state(), state)


def senteval(folder: Path) -> Path:
    """Write a SentEval tree: one subset of STS12, STS-B and SICK."""
    sts12 = folder / "STS" / "STS12-en-test"
    sts12.mkdir(parents=True)
    (sts12 / "STS.input.MSRpar.txt").write_text("a man\tthe man\na cat\tguitar\nunscored\tpair\na dog runs\ta dog\n")
    (sts12 / "STS.gs.MSRpar.txt").write_text("4.5\n0.2\n\n3\n")
    (folder / "STS" / "STSBenchmark").mkdir()
    (folder / "STS" / "STSBenchmark" / "sts-test.csv").write_text(
        "g\tf\ty\t1\t4.5\ta man\tthe man\ng\tf\ty\t2\t0.2\ta cat\tguitar\n"
    )
    (folder / "SICK").mkdir()
    sick = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    sick += "1\ta man\tthe man\t4.5\tX\n2\ta cat\tguitar\t1\tY\n"
    (folder / "SICK" / "SICK_test_annotated.txt").write_text(sick)
    return folder


def test_a_missing_subset_is_named_and_never_averaged_away(tiny: Path, tmp_path: Path) -> None:
    rows = evaluate(load_encoder(tiny), senteval(tmp_path))
    found = {row.name: row for row in rows}
    assert list(found) == ["STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R"]  # and no average
    assert found["STS12"].pairs == 3
    assert "MSRvid" in found["STS12"].missing
    assert found["STS13"].score is None
    assert found["SICK-R"].pairs == 2
    printed = table(rows)
    assert "without MSRvid" in printed
    assert "No average" in printed
    assert json.loads(as_json(rows))["STS-B"]["pairs"] == 2


def test_a_set_whose_labels_are_all_equal_has_the_reason_beside_it(tiny: Path, tmp_path: Path) -> None:
    senteval(tmp_path)
    (tmp_path / "STS" / "STS12-en-test" / "STS.gs.MSRpar.txt").write_text("-1\n-1\n\n-1\n")
    row = evaluate(load_encoder(tiny), tmp_path)[0]
    assert row.score is None
    assert row.reason == "all 3 pairs have the same label"
    assert "undefined        3  without MSRvid" in table([row])
    assert "all 3 pairs have the same label" in table([row])


def test_a_complete_tree_has_an_average(tiny: Path, tmp_path: Path) -> None:
    senteval(tmp_path)
    for year, subsets in SUBSETS.items():
        folder = tmp_path / "STS" / f"{year}-en-test"
        folder.mkdir(exist_ok=True)
        for subset in subsets:
            (folder / f"STS.input.{subset}.txt").write_text("a man\tthe man\na cat\tguitar\na dog runs\ta dog\n")
            (folder / f"STS.gs.{subset}.txt").write_text("4.5\n0.2\n3\n")
    rows = evaluate(load_encoder(tiny), tmp_path)
    scores = [row.score for row in rows[:-1]]
    assert rows[-1].name == "average"
    assert rows[-1].score == pytest.approx(sum(s for s in scores if s is not None) / 7)


def test_the_score_of_a_year_is_over_all_its_subsets_together(tiny: Path, tmp_path: Path) -> None:
    subsets = {
        "FNWN": [("a man", "the man", 1.0), ("a cat", "guitar", 4.0)],
        "headlines": [("a dog, runs", "a dog", 3.0), ("red", "blue hill", 0.5), ("sings", "a woman sings", 2.0)],
        "OnWN": [("in the park", "on the hill", 5.0), ("a man plays", "the man", 0.1)],
    }
    folder = tmp_path / "STS" / "STS13-en-test"
    folder.mkdir(parents=True)
    for name, pairs in subsets.items():
        (folder / f"STS.input.{name}.txt").write_text("".join(f"{a}\t{b}\n" for a, b, _ in pairs))
        (folder / f"STS.gs.{name}.txt").write_text("".join(f"{score}\n" for *_, score in pairs))
    encoder = load_encoder(tiny)
    everything = [pair for pairs in subsets.values() for pair in pairs]
    first, second = (encoder.encode([str(pair[side]) for pair in everything]) for side in (0, 1))
    cosines = (first * second).sum(1)
    expected = spearman(cosines, np.array([score for *_, score in everything]))
    (row,) = [row for row in evaluate(encoder, tmp_path) if row.name == "STS13"]
    assert (row.pairs, row.missing) == (7, ())
    assert row.score == pytest.approx(expected)


def test_minilm_reaches_its_published_score(minilm: Path, shared: Path) -> None:
    rows = evaluate(load_encoder(minilm), shared / "sts" / "STSBenchmark" / "sts-test.csv")
    assert rows[0].score == pytest.approx(82.03, abs=0.02)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simcse_train.data.sample import LineCounts
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.evaluation.diagnosis import Diagnosis
from simcse_train.report.inspect import Inspection, as_text, inspect_text
from simcse_train.search.embeddings import embed_rows
from tests.conftest import EXAMPLES

# 4, 4, 5, 5, 3, 6 and 6 tokens. The tokenizer lower-cases, so that two pairs of lines have one embedding each.
LINES = ["the cat", "The cat", "a red dog", "A red dog", "runs", "big small park on", "! ! ! !"]


@pytest.fixture(scope="module")
def found(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    path = tmp_path_factory.mktemp("inspected") / "x.txt"
    path.write_text("\n".join([*LINES, "", "a red dog", "a red dog"]) + "\n")
    return inspect_text([str(path)], str(tiny), max_length=5)


def test_lines_are_counted_and_only_sentences_longer_than_the_limit_are_cut(found: Inspection) -> None:
    assert found.counts == LineCounts(10, 1, 2)
    assert found.sampled == 7
    assert (found.lengths.median, found.lengths.percentile_95) == (5, 6)
    assert found.lengths.share_cut == pytest.approx(2 / 7)


def test_sentences_are_counted_beyond_the_length_at_which_the_encoders_own_files_cut(
    tiny: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(tiny)
    encoder.max_length = 8
    save_encoder(encoder, tmp_path / "short")
    assert load_encoder(tmp_path / "short").max_length == 8
    (tmp_path / "x.txt").write_text("\n".join(f"a man {'and a dog ' * 4}{word}" for word in ("runs", "sits")))
    lengths = inspect_text([str(tmp_path / "x.txt")], str(tmp_path / "short"), max_length=20).lengths
    assert lengths.median > 14
    assert lengths.share_cut == (lengths.median > 20)


def test_lines_with_almost_the_embedding_of_another_are_near_duplicates(found: Inspection, tiny: Path) -> None:
    encoder = load_encoder(tiny)
    rows = embed_rows(encoder, encoder.tokenizer.tokenize(LINES, 5)).numpy()
    others = (rows @ rows.T - 2 * np.eye(7)).max(axis=1)[4:]
    assert 0.8 < others.min() <= others.max() < 0.94
    assert found.near_duplicates == pytest.approx(4 / 7)


def test_a_warning_is_given_for_a_tuned_encoder_on_a_narrow_text_alone(found: Inspection) -> None:
    def warns(uniformity: float, hardest_negative: float) -> bool:
        return replace(found, diagnosis=Diagnosis(uniformity, 0.1, hardest_negative, 0.2)).warns

    assert warns(-3.2, 0.5)
    assert not warns(-3.2, 0.2)
    assert not warns(-1.0, 0.5)


def test_the_kind_of_encoder_is_said_with_where_it_is_known_from(found: Inspection) -> None:
    def said(uniformity: float, *, for_sentences: bool) -> str:
        diagnosis = Diagnosis(uniformity, 0.1, 0.5, 0.2, for_sentences=for_sentences)
        return as_text(replace(found, diagnosis=diagnosis), 32)

    assert "Encoder: a plain language model. Uniformity -1.00" in said(-1.0, for_sentences=False)
    assert "Encoder: tuned for sentences. Uniformity -3.00" in said(-3.0, for_sentences=False)
    by_files = "Encoder: tuned for sentences, as its sentence-transformers files say. Uniformity -1.00"
    assert by_files in said(-1.0, for_sentences=True)


def test_the_recommended_rate_is_for_the_steps_that_the_different_sentences_take(tmp_path: Path) -> None:
    lines = (EXAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines()[:32]
    (tmp_path / "x.txt").write_text("\n".join(lines * 20) + "\n", encoding="utf-8")
    found = inspect_text([str(tmp_path / "x.txt")], "starter", batch_size=2)
    assert found.diagnosis.is_tuned
    assert found.diagnosis.is_general
    assert found.counts.duplicates == 19 * 32
    assert found.recommended == "--objective ntxent"  # 640 sentences would be more than 250 steps

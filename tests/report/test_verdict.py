from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simcse_train.config import make_config
from simcse_train.encoders.loading import load_encoder
from simcse_train.export.folder import export
from simcse_train.report.summary import summarise
from simcse_train.report.verdict import Outcome, judge, judge_run
from simcse_train.runs.checkpoint import load_state
from simcse_train.runs.folder import checkpoints
from simcse_train.training.start import resume, train
from tests.conftest import EXAMPLES

TUNED = {
    "alignment": 0.15,
    "uniformity": -3.0,
    "neighbours_kept": 1.0,
    "neighbour_contrast": 0.5,
    "cluster_agreement": 0.6,
    "hardness": 0.4,
}
FEW = {"alignment": 0.15, "uniformity": -3.0, "cluster_agreement": 0.1, "hardness": 0.25}
GENERAL = {**TUNED, "hardness": 0.25, "cluster_agreement": 0.1}


def after(**changes: float) -> dict[str, float]:
    return {**TUNED, **changes}


@pytest.mark.parametrize(
    ("before", "measured", "outcome"),
    [
        (TUNED, after(neighbours_kept=0.5), Outcome.HARMED),
        (TUNED, after(neighbours_kept=0.9, neighbour_contrast=0.45), Outcome.HARMED),
        (TUNED, after(neighbours_kept=0.8, neighbour_contrast=0.56), Outcome.HELPED),
        (TUNED, after(neighbours_kept=0.77, neighbour_contrast=0.56), Outcome.UNCLEAR),
        (TUNED, after(neighbours_kept=0.68, neighbour_contrast=0.56), Outcome.HARMED),
        (TUNED, after(neighbours_kept=0.5, neighbour_contrast=0.56), Outcome.HARMED),
        (TUNED, after(neighbours_kept=0.9, neighbour_contrast=0.51), Outcome.UNCLEAR),
        # A narrow text without topics has close neighbours to lose; that they are closer proves nothing.
        (after(cluster_agreement=0.2), after(neighbours_kept=0.5), Outcome.HARMED),
        (after(cluster_agreement=0.2), after(neighbours_kept=0.75, neighbour_contrast=0.4), Outcome.HARMED),
        (after(cluster_agreement=0.2), after(neighbours_kept=0.8, neighbour_contrast=0.7), Outcome.UNCLEAR),
        (GENERAL, after(neighbours_kept=0.3, uniformity=-3.1), Outcome.HARMED),
        # Labelled pairs that have a score no more: all have the same cosine.
        (after(score=80.0, uniformity=-1.0), after(uniformity=0.0), Outcome.HARMED),
        (after(score=80.0), after(score=80.3, neighbours_kept=0.1), Outcome.HELPED),
        # A plain language model has no neighbourhoods worth keeping.
        (after(uniformity=-1.0), after(uniformity=-3.0, neighbours_kept=0.1), Outcome.UNCLEAR),
        (after(uniformity=-1.0), after(uniformity=-3.0, alignment=0.45), Outcome.HARMED),
        # An encoder for sentences has, also where all of them are about one thing.
        (after(uniformity=-1.0, tuned=True), after(uniformity=-3.0, neighbours_kept=0.1), Outcome.HARMED),
        (after(alignment=0.45), after(alignment=0.6), Outcome.UNCLEAR),
        # Sentences of a general text may move apart as long as two views of one stay close.
        (GENERAL, after(uniformity=-3.1, neighbours_kept=0.44, neighbour_contrast=0.3), Outcome.HELPED),
        (GENERAL, after(uniformity=-3.1, alignment=0.21), Outcome.UNCLEAR),
        (GENERAL, after(uniformity=-3.02), Outcome.UNCLEAR),
        (GENERAL | {"cluster_agreement": 0.6}, after(neighbours_kept=0.6, neighbour_contrast=0.56), Outcome.HELPED),
        # Where its neighbours come closer, topics are learned at the price of the rest.
        (GENERAL, after(uniformity=-3.1, neighbour_contrast=0.505), Outcome.HELPED),
        (GENERAL, after(uniformity=-3.1, neighbour_contrast=0.515), Outcome.UNCLEAR),
        (after(cluster_agreement=0.2), after(uniformity=-3.1), Outcome.UNCLEAR),
        # Labelled pairs decide where there are any.
        (after(score=70.0), after(score=70.9, neighbours_kept=0.1), Outcome.HELPED),
        (after(score=70.0), after(score=69.1), Outcome.HARMED),
        (after(score=70.0), after(score=70.1), Outcome.UNCLEAR),
        ({}, after(), Outcome.UNCLEAR),
        # Of few sentences the neighbours are not measured; two views that have moved apart are still seen.
        (FEW, FEW | {"uniformity": -3.2}, Outcome.UNCLEAR),
        (FEW, FEW | {"alignment": 0.6}, Outcome.HARMED),
        (FEW | {"score": 70.0}, FEW | {"score": 71.0}, Outcome.HELPED),
    ],
)
def test_the_verdict_follows_the_labels_or_else_the_neighbourhoods(
    before: dict[str, float], measured: dict[str, float], outcome: Outcome
) -> None:
    assert judge(before, measured).outcome == outcome


@given(
    kept=st.floats(0, 0.35, exclude_max=True),
    contrast=st.floats(0, 1),
    agreement=st.floats(-1, 1),
    negative=st.floats(-1, 1),
)
def test_lost_neighbours_are_never_called_a_help(
    kept: float, contrast: float, agreement: float, negative: float
) -> None:
    before = after(cluster_agreement=agreement, hardness=negative)
    verdict = judge(before, after(neighbours_kept=kept, neighbour_contrast=contrast))
    assert verdict.outcome == Outcome.HARMED
    assert f"{kept:.0%}" in str(verdict)


def test_a_run_that_exports_its_start_is_judged_by_its_last_measurement() -> None:
    lines = [{"step": 0, **TUNED}, {"step": 2, "loss": 0.1}, {"step": 4, **TUNED, "neighbours_kept": 0.3}]
    assert judge_run(lines, 0).outcome == judge_run(lines, 4).outcome == Outcome.HARMED
    assert judge_run(lines[:2], 0).reason == "Nothing was measured after training began"


def settings(output: Path, **changes: Any) -> Any:
    base = {"data": str(EXAMPLES / "sentences.txt"), "output": str(output), "log_every": 1, "precision": "fp32"}
    return make_config({**base, **changes})


def test_a_ruined_encoder_is_reported_where_it_happens_and_the_start_is_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ruin = {"objective": "ntxent", "learning_rate": 0.03, "max_steps": 6, "eval_every": 3}
    with caplog.at_level(logging.INFO, logger="simcse_train"):
        run = train(settings(tmp_path / "run", **ruin))
    assert caplog.text.count("Step 3: training harms the encoder. Only") == 1
    assert "Verdict: harmed. Only" in caplog.text
    assert "Training did not help here. Encoder: " in caplog.text
    sentences = ["A man plays the guitar.", "The market closed higher."]
    start = load_encoder("starter")
    assert np.array_equal(load_encoder(run.folder / "encoder").encode(sentences), start.encode(sentences))
    # The report and the model card say it too, and do not compare the start with itself.
    assert summarise(run.folder, with_sentences=False).verdict.startswith("Verdict: harmed. Only")
    assert "Verdict: harmed. Only" in (run.folder / "encoder" / "README.md").read_text()
    assert export(run.folder, tmp_path / "out") == 0
    assert np.array_equal(load_encoder(tmp_path / "out").encode(sentences), start.encode(sentences))
    assert "Verdict: harmed. Only" in (tmp_path / "out" / "README.md").read_text()
    assert export(run.folder, tmp_path / "last", "last") == 6
    assert not np.array_equal(load_encoder(tmp_path / "last").encode(sentences), start.encode(sentences))
    # What the run returns can be trained again.
    kept = [parameter.detach().clone() for parameter in run.encoder.model.parameters()]
    again = train(settings(tmp_path / "again", max_steps=1, objective="ntxent"), run.encoder).encoder
    changed = [not torch.equal(old, new) for old, new in zip(kept, again.model.parameters(), strict=True)]
    assert sum(changed) > len(kept) / 2


def test_patience_ends_a_run_that_does_not_improve_and_a_resumed_one_stops_at_the_same_step(tmp_path: Path) -> None:
    ruin = {"objective": "ntxent", "learning_rate": 0.03, "max_steps": 30, "eval_every": 2, "save_every": 3}
    run = train(settings(tmp_path / "run", patience=3, **ruin))
    steps = [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 6  # harmed at 2, 4 and 6
    saved = checkpoints(run.folder)
    assert [path.name for path in saved] == ["step-00000003", "step-00000006"]
    assert load_state(saved[-1]).without_improvement == 3
    assert [load_state(path).is_last for path in saved] == [False, True]
    again = resume(saved[0])
    steps = [json.loads(line)["step"] for line in (again.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 6


@pytest.mark.parametrize("lines", [8, 110, 240])
def test_a_few_sentences_are_not_judged_by_their_neighbours(
    tmp_path: Path, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With eleven sentences the ten nearest are all others: their contrast is the rounding of zero."""
    sentences = (EXAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines()[:lines]
    (tmp_path / "few.txt").write_text("\n".join(sentences))
    run = train(make_config({"data": str(tmp_path / "few.txt"), "output": str(tmp_path / "run"), "max_steps": 2}))
    assert ("neighbour_contrast" in run.after) == (lines == 240)  # 24 are held out
    if lines < 240:
        with caplog.at_level("INFO"):
            judged = judge(run.before, run.after)
        assert judged.outcome == Outcome.UNCLEAR
        assert "fewer than 20 sentences" in judged.reason


def test_few_sentences_do_not_say_what_kind_the_encoder_is() -> None:
    plain = FEW | {"uniformity": -1.0}
    assert "fewer than 20 sentences" in judge(plain, plain | {"uniformity": -1.5}).reason


def test_a_harm_that_pairs_may_have_asked_for_is_said_beside_the_export(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sentences = (EXAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines()[:240]
    lines = [f"{one}\t{other}" for one, other in zip(sentences, reversed(sentences), strict=True)]
    (tmp_path / "pairs.tsv").write_text("anchor\tpositive\n" + "\n".join(lines))
    ruin = {"learning_rate": 0.03, "max_steps": 8, "batch_size": 32}
    with caplog.at_level("INFO"):
        run = train(make_config({"pairs": str(tmp_path / "pairs.tsv"), "output": str(tmp_path / "run"), **ruin}))
    assert judge(run.before, run.after).outcome == Outcome.HARMED
    assert "exported all the same: --pairs may ask for other neighbours" in caplog.text
    assert "(step 8)" in caplog.text
    assert "0 sentences" not in (run.folder / "encoder" / "README.md").read_text()
    assert len(repr(run)) < 2000

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import Stopped
from simcse_train.evaluation.diagnosis import diagnose
from simcse_train.evaluation.sts import similarity_score
from simcse_train.runs.checkpoint import load_state
from simcse_train.runs.folder import checkpoint_path, checkpoints
from simcse_train.runs.metrics import read_metrics
from simcse_train.search.embeddings import embed_rows
from simcse_train.training import loop as loop_module
from simcse_train.training import monitor as monitor_module
from simcse_train.training.loop import Trainer
from simcse_train.training.plan import make_batches
from simcse_train.training.start import resume, train
from simcse_train.training.texts import open_texts
from tests.training.test_loop import bits, settings

SECONDS = 20.0  # that a step takes by the clock of these tests


class Clock:
    """A clock that stands still except during a training step."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    original = Trainer.train_step

    def timed(*arguments: Any) -> Any:
        clock.now += SECONDS
        return original(*arguments)

    monkeypatch.setattr(Trainer, "train_step", timed)
    monkeypatch.setattr(loop_module, "time", clock)
    return clock


def logged(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "loss" in line]


def test_a_line_holds_the_mean_loss_since_the_last_one_and_the_rate_of_its_step(
    text: Path, tiny: Path, tmp_path: Path
) -> None:
    each = logged(train(settings(text, tiny, tmp_path / "each", max_steps=7)).folder)
    run = logged(train(settings(text, tiny, tmp_path / "run", max_steps=7, log_every=2)).folder)
    losses = [line["loss"] for line in each]
    assert len(set(losses)) == 7
    assert [line["step"] for line in run] == [2, 4, 6, 7]
    means = [(losses[i] + losses[i + 1]) / 2 for i in (0, 2, 4)]
    assert [line["loss"] for line in run] == [*means, losses[6]]
    assert [line["learning_rate"] for line in run] == [1e-3 * (7 - step) / 7 for step in (1, 3, 5, 6)]


def test_speed_counts_sentences_and_not_views(text: Path, tiny: Path, tmp_path: Path, clock: Clock) -> None:
    run = train(settings(text, tiny, tmp_path / "run", epochs=1, log_every=2)).folder
    speeds = {line["step"]: line["sentences_per_second"] for line in logged(run)}
    # 108 sentences in batches of 8: the 14th batch has four.
    assert speeds == {2 * i: 8 / SECONDS for i in range(1, 7)} | {14: (8 + 4) / (2 * SECONDS)}


def test_save_minutes_counts_minutes_since_the_last_checkpoint(
    text: Path, tiny: Path, tmp_path: Path, clock: Clock
) -> None:
    run = train(
        settings(text, tiny, tmp_path / "run", max_steps=10, save_every=5, save_minutes=1, keep=10, eval_every=100)
    ).folder
    # Every three steps of 20 seconds, and at 5 and 10 by --save-every, after which the clock begins anew.
    assert [int(path.name.removeprefix("step-")) for path in checkpoints(run)] == [3, 5, 8, 10]


def test_steps_that_a_resumed_run_repeats_are_logged_once(text: Path, tiny: Path, tmp_path: Path) -> None:
    whole = train(settings(text, tiny, tmp_path / "run", max_steps=10, keep=5, eval_every=5)).folder
    before = read_metrics(whole)
    shutil.copytree(whole, tmp_path / "copy")
    resume(tmp_path / "copy" / "checkpoints" / "step-00000005")
    again = read_metrics(tmp_path / "copy")
    assert [line["step"] for line in again] == [0, *range(1, 11)]
    assert [(m.get("loss"), m.get("uniformity")) for m in again] == [
        (m.get("loss"), m.get("uniformity")) for m in before
    ]


def test_the_best_step_is_that_of_the_highest_score_also_across_a_resume(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a man\tthe man\t5\na cat\tguitar\t0\na dog\tthe dog runs\t3\n")

    def scores() -> Iterator[float]:
        yield from (40.0, 50.0, 60.0, 55.0)  # before training and at steps 1, 2 and 3
        yield from (58.0, 59.0)  # at steps 4 and 5, resumed

    score = scores()
    monkeypatch.setattr(monitor_module, "similarity_score", lambda *_, **__: next(score))
    config = settings(text, tiny, tmp_path / "run", max_steps=3, eval=str(pairs), eval_every=1, keep=1)
    assert train(config).after["score"] == 60
    run = resume(tmp_path / "run", {"max_steps": 5})
    assert run.after["score"] == 60
    assert [path.name for path in checkpoints(run.folder)] == ["step-00000002", "step-00000005"]
    assert bits(run.folder / "encoder") == bits(checkpoints(run.folder)[0] / "encoder")


def test_a_collapsed_encoder_has_no_score_is_said_and_never_the_best(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a man\tthe man\t5\na cat\tguitar\t0\na dog\tthe dog runs\t3\n")
    scores: Iterator[float | None] = iter([40.0, None, 30.0])
    monkeypatch.setattr(monitor_module, "similarity_score", lambda *_, **__: next(scores))
    train(settings(text, tiny, tmp_path / "run", max_steps=2, eval=str(pairs), eval_every=1))
    assert "Step 1: all labelled pairs have the same cosine" in caplog.text
    assert load_state(checkpoints(tmp_path / "run")[-1]).best_step == 0


@pytest.mark.parametrize(
    ("changes", "is_warned"),
    [
        ({"objective": "debiased"}, True),  # its estimate of the negatives is at its floor
        ({"objective": "debiased", "temperature": 0.5}, False),
        ({"objective": "ntxent"}, False),
    ],
)
def test_a_run_that_learns_nothing_says_so_once(
    text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], is_warned: bool
) -> None:
    run = train(settings(text, "starter", tmp_path / "run", max_steps=3, **changes)).folder
    assert [("Step" in line, "nothing is learned" in line) for line in caplog.messages].count((True, True)) == is_warned
    start, end = (line for line in read_metrics(run) if line["step"] in (0, 3))
    assert (abs(start["uniformity"] - end["uniformity"]) < 1e-3) is is_warned


@pytest.mark.parametrize("objective", ["auto", "ntxent"])
def test_step_0_has_the_measures_by_which_the_objective_is_chosen(
    text: Path, tiny: Path, tmp_path: Path, objective: str
) -> None:
    run = train(settings(text, tiny, tmp_path / "run", max_steps=2, objective=objective)).folder
    encoder = load_encoder(tiny)
    config = load_state(checkpoints(run)[-1]).config()
    batches = make_batches(config, encoder, open_texts(config, encoder))
    assert batches.text is not None
    every = batches.text.tokens(np.arange(len(batches.text)))  # of so short a text
    of_all, of_measured = (
        diagnose(embed_rows(encoder, rows), for_sentences=False) for rows in (every, batches.measured())
    )
    before, *_, after = read_metrics(run)
    assert before["hardness"] == pytest.approx(of_all.hardness, abs=1e-6)
    for measure in ("cluster_agreement", "uniformity"):  # compared with those after training
        assert before[measure] == pytest.approx(getattr(of_measured, measure), abs=1e-6)
    assert after["step"] == 2
    assert after["uniformity"] != before["uniformity"]


PAIRS = "a man\tthe man\t5\na cat\tguitar\t0\na dog\tthe dog runs\t3\n"


def test_a_run_stopped_while_it_was_measured_before_training_counts_that_evaluation_once(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    changes = {"max_steps": 3, "eval": str(tmp_path / "pairs.tsv"), "eval_every": 1, "patience": 2}

    def stopping(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return similarity_score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(monitor_module, "similarity_score", stopping)
        with pytest.raises(Stopped):
            train(settings(text, tiny, tmp_path / "stopped", **changes))
    assert [path.name for path in checkpoints(tmp_path / "stopped")] == ["step-00000000"]
    whole = train(settings(text, tiny, tmp_path / "whole", **changes)).folder
    resumed = resume(tmp_path / "stopped").folder
    assert [line["step"] for line in read_metrics(resumed)] == [line["step"] for line in read_metrics(whole)]
    assert read_metrics(resumed)[0]["tuned"] is False  # though its checkpoint has sentence-transformers files
    shutil.rmtree(resumed)
    save_encoder(load_encoder(tiny), tmp_path / "for-sentences")
    with monkeypatch.context() as patch:
        patch.setattr(monitor_module, "similarity_score", stopping)
        with pytest.raises(Stopped):
            train(settings(text, tmp_path / "for-sentences", tmp_path / "stopped", **changes))
    (tmp_path / "stopped" / "metrics.jsonl").write_text("")  # killed while it was measured again
    assert read_metrics(resume(tmp_path / "stopped").folder)[0]["tuned"] is True
    assert (
        load_state(checkpoints(resumed)[-1]).without_improvement
        == load_state(checkpoints(whole)[-1]).without_improvement
    )


def test_a_run_that_ends_by_patience_leaves_no_checkpoint_of_an_abandoned_one(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    changes = {"max_steps": 8, "save_every": 2, "keep": 9, "eval": str(tmp_path / "pairs.tsv"), "eval_every": 2}
    falling = iter(range(100, 0, -1))
    monkeypatch.setattr(monitor_module, "similarity_score", lambda *_: float(next(falling)))
    run = train(settings(text, tiny, tmp_path / "run", patience=4, **changes)).folder
    resumed = resume(checkpoint_path(run, 2), {"max_steps": 80, "save_every": 100})
    assert [path.name for path in checkpoints(run)] == ["step-00000002", "step-00000008"]
    assert load_state(checkpoint_path(run, 8)).steps == 80
    assert resumed.folder == run


def test_a_best_step_that_is_gone_is_said_and_another_one_taken(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    scores = iter([1.0, 9.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(monitor_module, "similarity_score", lambda *_: next(scores))
    changes = {"max_steps": 3, "save_every": 1, "keep": 9, "eval": str(tmp_path / "pairs.tsv"), "eval_every": 1}
    run = train(settings(text, tiny, tmp_path / "run", **changes)).folder
    assert load_state(checkpoint_path(run, 3)).best_step == 1
    shutil.rmtree(checkpoint_path(run, 1))
    resume(run, {"max_steps": 5})
    assert "The best checkpoint" in caplog.text
    assert load_state(checkpoint_path(run, 5)).best_step == 5


def test_patience_counts_evaluations_in_a_row(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "simcse_train")
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    scores = iter([10.0, 5.0, 20.0, 15.0, 30.0, 25.0, 28.0, 40.0, 50.0])  # from step 0 on
    monkeypatch.setattr(monitor_module, "similarity_score", lambda *_: next(scores))
    changes = {"max_steps": 8, "eval": str(tmp_path / "pairs.tsv"), "eval_every": 1, "patience": 2}
    run = train(settings(text, tiny, tmp_path / "run", **changes)).folder
    assert [line["step"] for line in read_metrics(run)] == list(range(7))
    assert load_state(checkpoints(run)[-1]).best_step == 4
    said = "ends before its {} steps: the last 2 evaluations brought no improvement (--patience 2), the best was step 4"
    assert said.format(8) in caplog.text
    resume(run, {"max_steps": 9})  # takes no step
    assert said.format(9) in caplog.text
    assert "can hardly end this run" not in caplog.text


def test_a_patience_that_hardly_anything_uses_up_is_said(
    text: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(settings(text, tiny, tmp_path / "run", max_steps=1, patience=2))
    assert "--patience 2 can hardly end this run: without --eval, 12 sentences are too few to see" in caplog.text


def test_where_the_best_step_is_gone_the_start_is_still_better_than_what_is_worse(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    scores = iter([5.0, 9.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(monitor_module, "similarity_score", lambda *_: next(scores))
    changes = {"max_steps": 3, "save_every": 1, "keep": 9, "eval": str(tmp_path / "pairs.tsv"), "eval_every": 1}
    run = train(settings(text, tiny, tmp_path / "run", **changes)).folder
    shutil.rmtree(checkpoint_path(run, 1))
    assert resume(run, {"max_steps": 4}).after["score"] == 5
    assert load_state(checkpoint_path(run, 4)).chosen_step == 0

"""Whole runs with each objective, with pairs, and with the start beside them."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simcse_train.config import TrainConfig, make_config
from simcse_train.config_file import read_settings
from simcse_train.data.batches import Batches
from simcse_train.errors import InputError, Stopped
from simcse_train.report.verdict import Outcome, judge
from simcse_train.runs.checkpoint import load_state
from simcse_train.runs.folder import checkpoints
from simcse_train.runs.metrics import read_metrics
from simcse_train.search import bank
from simcse_train.training.start import resume, train
from tests.conftest import make_bert

# Each with the option that it alone has, so that a resumed run must read it back.
RUNS: dict[str, dict[str, Any]] = {
    "debiased": {"objective": "debiased", "beta": 0.5, "micro_batch_size": 3},
    "soft": {"objective": "soft", "start_weight": 0.5},
    "relational": {"objective": "relational", "neighbours": 3, "micro_batch_size": 3},
    "neighbours": {"objective": "neighbours", "neighbours": 4},
    "queue": {"objective": "queue", "queue_size": 11, "momentum": 0.5, "pooling": "cls", "micro_batch_size": 3},
    "mask": {"objective": "queue", "mask_similar": 0.7},
    "repetition": {"view": "repetition"},
    "pairs": {"pairs": "pairs.csv", "micro_batch_size": 3},
    "pairs alone": {"pairs": "pairs.csv", "data": []},
    "pairs masked": {"pairs": "pairs.csv", "mask_similar": 0.5, "objective": "relational"},
}


@pytest.fixture(scope="module")
def few(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 lines of text and 20 pairs, some of them with a hard negative."""
    folder = tmp_path_factory.mktemp("few")
    lines = text.read_text(encoding="utf-8").splitlines()
    (folder / "text.txt").write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    records = [{"anchor": lines[i], "positive": lines[i + 20]} for i in range(20)]
    for i in range(0, 20, 2):
        records[i]["negative"] = lines[i + 40]
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["anchor", "positive", "negative"], restval="", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
    return folder


def settings(few: Path, model: Path, output: Path, **changes: Any) -> TrainConfig:
    base: dict[str, Any] = {"batch_size": 8, "max_length": 12, "learning_rate": 1e-3, "max_steps": 7, "keep": 9}
    base |= {"data": str(few / "text.txt"), "model": str(model), "output": str(output), "pooling": "mean", **changes}
    return make_config(base | ({"pairs": str(few / base["pairs"])} if "pairs" in base else {}))


def bits(run: Path) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in load_file(run / "encoder" / "model.safetensors").items()}


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a SIGTERM arrive during the given step."""
    original = Batches.at

    def at(self: Batches, index: int) -> Any:
        if index == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return original(self, index)

    monkeypatch.setattr(Batches, "at", at)


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(
    name: str, few: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    if name == "relational":
        monkeypatch.setattr(bank, "BANK", 16)  # sentences outside the bank are embedded when they are asked for
    whole = train(settings(few, model, tmp_path / "whole", **RUNS[name]))
    plain = {"objective": "ntxent"} if "data" not in RUNS[name] else {"pairs": "pairs.csv", "data": [], "seed": 1}
    assert bits(whole.folder) != bits(train(settings(few, model, tmp_path / "plain", **plain)).folder)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Stopped):
            train(settings(few, model, tmp_path / "stopped", **RUNS[name]))
    shutil.rmtree(model)  # the run has its own copy of what it started from
    assert bits(resume(tmp_path / "stopped").folder) == bits(whole.folder)


def test_only_a_run_that_needs_its_start_keeps_a_copy_of_it(few: Path, tiny: Path, tmp_path: Path) -> None:
    assert not (train(settings(few, tiny, tmp_path / "plain", max_steps=1)).folder / "start").exists()
    run = train(settings(few, tiny, tmp_path / "soft", max_steps=2, objective="soft")).folder
    assert load_file(run / "start" / "model.safetensors").keys() == load_file(tiny / "model.safetensors").keys()
    (run / "start" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"start, the encoder that the run started from.*config.json is damaged"):
        resume(run, {"max_steps": 4})
    shutil.rmtree(run / "start")
    with pytest.raises(InputError, match=r"start, the encoder that the run started from, is gone"):
        resume(run, {"max_steps": 4})


def test_a_run_that_fails_before_it_begins_leaves_no_folder(few: Path, tiny: Path, tmp_path: Path) -> None:
    few_pairs = tmp_path / "one.csv"
    few_pairs.write_text("anchor,positive\na man,the man\n")
    with pytest.raises(InputError, match="--pairs .*one.csv holds 1 pairs; at least two are needed"):
        train(settings(tmp_path, tiny, tmp_path / "run", pairs="one.csv", data=[]))
    assert not (tmp_path / "run").exists()


def test_other_pairs_are_refused_and_moved_ones_accepted(few: Path, tiny: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(few / "pairs.csv", tmp_path / "pairs.csv"))
    run = train(settings(tmp_path, tiny, tmp_path / "run", pairs="pairs.csv", data=[], max_steps=2)).folder
    moved = own.rename(tmp_path / "moved.csv")
    resume(run, {"max_steps": 3, "pairs": str(moved)})
    moved.write_text(moved.read_text() + "a man,the man,\n")
    with pytest.raises(InputError, match="does not hold the pairs that the run was trained on"):
        resume(run, {"max_steps": 4})


def test_the_screen_says_how_pairs_and_text_are_mixed(
    few: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "simcse_train")
    run = train(settings(few, tiny, tmp_path / "run", pairs="pairs.csv", max_steps=3)).folder
    assert "Pairs: 20, which 1 of the steps learn, evenly spread among those of the text" in caplog.text
    assert json.loads((run / "checkpoints" / "step-00000003" / "state.json").read_text())["training_pairs"]


def test_a_run_that_ends_before_its_first_pairs_is_refused(few: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--max-steps 2 ends .* an epoch of 8 steps: step 3 is the first"):
        train(settings(few, tiny, tmp_path / "run", pairs="pairs.csv", max_steps=2))
    assert not (tmp_path / "run").exists()


def test_a_few_pairs_alone_are_gone_through_often_enough(few: Path, tiny: Path, tmp_path: Path) -> None:
    run = train(settings(few, tiny, tmp_path / "run", pairs="pairs.csv", data=[], max_steps=None)).folder
    assert read_settings(run / "config.yaml")["epochs"] == 14  # of three batches each
    assert [line["step"] for line in read_metrics(run)][-1] == 42


def test_the_encoder_behind_the_queue_follows_the_trained_one_slowly_and_queues_rows_of_length_1(
    few: Path, tiny: Path, tmp_path: Path
) -> None:
    run = train(settings(few, tiny, tmp_path / "run", max_steps=1, objective="queue", momentum=0.75)).folder
    held = load_file(run / "checkpoints" / "step-00000001" / "objective.safetensors")
    start = load_file(tiny / "model.safetensors")
    trained = load_file(run / "checkpoints" / "step-00000001" / "encoder" / "model.safetensors")
    assert sum(not trained[name].equal(start[name]) for name in start) > 10
    for name in start:
        expected = 0.75 * start[name] + 0.25 * trained[name]
        torch.testing.assert_close(held[f"momentum/model.{name}"], expected, rtol=0, atol=1e-6)
    queued = held["queue/embeddings"]
    assert queued.shape == (8, 32)
    torch.testing.assert_close(queued.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("other", ["another length", "another encoder"])
def test_neighbours_are_those_of_this_encoder_at_this_length_whatever_ran_before(
    few: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    common: dict[str, Any] = {"objective": "neighbours", "neighbours": 4, "max_steps": 3}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "used"))
    if other == "another length":
        train(settings(few, tiny, tmp_path / "before", **common, max_length=5))
    else:
        train(settings(few, make_bert(tmp_path / "other", hidden=48), tmp_path / "before", **common))
    after = train(settings(few, tiny, tmp_path / "after", **common)).folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    alone = train(settings(few, tiny, tmp_path / "alone", **common)).folder
    assert bits(after) == bits(alone)


def test_a_run_on_pairs_gives_the_trained_encoder_however_its_neighbours_changed(few: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"pairs": "pairs.csv", "data": [], "max_steps": 3, "learning_rate": 0.05}
    run = train(settings(few, Path("starter"), tmp_path / "run", **changes, kernels="off")).folder
    before, after = (line for line in read_metrics(run) if "uniformity" in line)
    assert judge(before, after).outcome == Outcome.HARMED  # as it would be called on a text
    (state,) = [load_state(path) for path in checkpoints(run)]
    assert (state.step, state.best_step) == (3, 3)
    trained = load_file(checkpoints(run)[0] / "encoder" / "model.safetensors")
    assert bits(run) == {name: tensor.numpy().tobytes() for name, tensor in trained.items()}

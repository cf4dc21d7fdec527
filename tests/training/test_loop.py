from __future__ import annotations

import json
import shutil
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import is_bf16_available
from safetensors.torch import load_file

from simcse_train.config import TrainConfig, make_config
from simcse_train.config_file import read_settings
from simcse_train.data import batches as batches_module
from simcse_train.data.batches import two_views
from simcse_train.encoders.head import projection_head
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError, Stopped, TrainingError
from simcse_train.manifest import damage
from simcse_train.objectives.registry import OBJECTIVES, make_objective
from simcse_train.randomness import seeded
from simcse_train.runs.folder import checkpoint_path, checkpoints
from simcse_train.training.finish import Run
from simcse_train.training.optimizer import learning_rate_at, parameter_groups
from simcse_train.training.start import resume, train
from simcse_train.training.step import forward_backward
from simcse_train.training.stopping import StopRequests
from tests.conftest import make_bert
from tests.encoders.families import make_family
from tests.objectives.rows import known_rows


def settings(text: Path, model: Path | str, output: Path, **changes: Any) -> TrainConfig:
    base = {"batch_size": 8, "max_length": 16, "learning_rate": 1e-3, "log_every": 1, "save_every": 5, "eval_every": 6}
    return make_config({"data": str(text), "model": str(model), "output": str(output), **base, **changes})


def bits(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def interrupted_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a SIGTERM arrive during the given step."""
    count = 0
    original = two_views

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **more)

    monkeypatch.setattr(batches_module, "two_views", counted)


def test_a_run_learns_and_leaves_what_the_contract_says(text: Path, tiny: Path, tmp_path: Path) -> None:
    run = train(settings(text, tiny, tmp_path / "run", epochs=2))
    lines = metrics(run.folder)
    assert lines[0].keys() == {
        "step",
        "alignment",
        "uniformity",
        "cluster_agreement",
        "hardness",  # of the text, so only before training
        "tuned",  # of the encoder, too
    }  # without neighbours: too few sentences are held out
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 29))  # 108 sentences, 12 held out: 14 steps an epoch
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[13]["epoch"] == 1
    assert all(line["sentences_per_second"] > 0 for line in steps)
    assert [line["step"] for line in lines if "uniformity" in line] == [0, 6, 12, 18, 24, 28]
    assert [p.name for p in checkpoints(run.folder)] == ["step-00000025", "step-00000028"]  # --keep 2
    assert all(damage(p) is None for p in checkpoints(run.folder))
    assert np.array_equal(load_encoder(run.folder).encode(["a man"]), run.encoder.encode(["a man"]))
    assert not list(run.folder.rglob("*.partial"))


def test_config_yaml_repeats_the_run_with_the_same_bits(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(settings(text, tiny, tmp_path / "first", max_steps=6))
    monkeypatch.chdir(tmp_path)
    repeated = read_settings(first.folder / "config.yaml")
    assert "output" not in repeated  # a repetition makes a new folder
    again = train(make_config(repeated | {"output": "again"}))
    assert bits(again.folder / "encoder") == bits(first.folder / "encoder")
    other = train(settings(text, tiny, tmp_path / "other", max_steps=6, seed=7))
    assert bits(other.folder / "encoder") != bits(first.folder / "encoder")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_micro_batches_give_the_gradients_of_the_undivided_loss(tiny: Path, pooling: str, objective: str) -> None:
    encoder = load_encoder(tiny, pooling=pooling).train()
    encoder.head = projection_head(encoder.hidden_size, seed=0)
    rows = encoder.tokenizer.tokenize(
        ["a man", "the cat runs in the park", "a dog", "the cat runs in the park", "a woman sings on the hill"], 16
    )
    batch = two_views(rows, np.arange(len(rows)))
    config = make_config({"data": "x", "seed": 3, "micro_batch_size": 2, "objective": objective, "temperature": 0.2})
    chosen, known = make_objective(config), known_rows(5, texts=batch.texts, hidden=32, dtype=torch.float32)
    noise = partial(seeded, 3, 7)
    loss = forward_backward(encoder, chosen, batch.parts(2), known, noise, nullcontext, lambda loss: loss)
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}

    encoder.zero_grad()
    parts = []
    for part, numbers in enumerate([[0, 1], [2, 3], [4]]):  # one pass, with the noise of each micro batch
        half = two_views([rows[i] for i in numbers], np.array(numbers))
        with seeded(3, 7, part):
            parts.append(encoder(half.tokens, half.lengths))
    expected_loss = chosen.loss(torch.cat(parts), known)
    expected_loss.backward()
    expected = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], atol=1e-6, rtol=1e-4), name


def test_a_batch_that_fits_in_one_micro_batch_trains_to_the_bits_of_an_undivided_one(
    text: Path, tiny: Path, tmp_path: Path
) -> None:
    runs = [
        train(settings(text, tiny, tmp_path / str(size), max_steps=3, micro_batch_size=size)) for size in (None, 8, 3)
    ]
    whole, fitting, divided = (bits(run.folder / "encoder") for run in runs)
    assert fitting == whole
    assert divided != whole


def test_a_resumed_run_in_micro_batches_ends_with_the_same_bits(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(settings(text, tiny, tmp_path / "whole", max_steps=9, micro_batch_size=3))
    with monkeypatch.context() as patch:
        interrupted_at(patch, 6)
        with pytest.raises(Stopped):
            train(settings(text, tiny, tmp_path / "stopped", max_steps=9, micro_batch_size=3))
    with pytest.raises(InputError, match="--micro-batch-size 4 differs from the run's own 3"):
        resume(tmp_path / "stopped", {"micro_batch_size": 4})
    assert bits(resume(tmp_path / "stopped", {}).folder / "encoder") == bits(whole.folder / "encoder")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_resumed_run_ends_with_the_same_bits(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, precision: str, pooling: str
) -> None:
    if precision == "bf16" and not is_bf16_available(True):
        pytest.skip("no bfloat16 here")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        common = {"epochs": 2, "precision": precision, "pooling": pooling, "warmup_ratio": 0.1, "weight_decay": 0.1}
        common["log_every"] = 4  # a stop after 9 steps lies between two lines
        whole = train(settings(text, tiny, tmp_path / "whole", **common))
        for stop in (1, 9, 14, 20):  # in the first step, mid-epoch, at the end of an epoch, in the second
            with monkeypatch.context() as patch:
                interrupted_at(patch, stop)
                with pytest.raises(Stopped, match="--resume"):
                    train(settings(text, tiny, tmp_path / f"stopped{stop}", **common))
            saved = checkpoints(tmp_path / f"stopped{stop}")
            assert saved[-1].name == f"step-{stop:08d}"
            again = resume(tmp_path / f"stopped{stop}", {})
            assert bits(again.folder / "encoder") == bits(whole.folder / "encoder")
            logged = [
                [{name: value for name, value in line.items() if name != "sentences_per_second"} for line in lines]
                for lines in (metrics(again.folder), metrics(whole.folder))
            ]
            assert logged[0] == logged[1]
    finally:
        torch.set_num_threads(before)


def test_the_best_checkpoint_is_kept_and_exported(text: Path, tiny: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(
        "a man plays\tthe man plays\t5\na cat\tthe hill\t1\na dog runs\tdog in park\t3\nred\tblue big\t0\n"
    )
    run = train(
        settings(text, tiny, tmp_path / "run", epochs=2, eval=str(pairs), eval_every=2, keep=1, learning_rate=0.02)
    )
    scored = {line["step"]: line["score"] for line in metrics(run.folder) if line.get("score") is not None}
    best = max(scored, key=lambda step: (scored[step], -step))
    kept = [int(p.name.removeprefix("step-")) for p in checkpoints(run.folder)]
    assert sorted({best, 28} - {0}) == kept
    assert run.after["score"] == scored[best]
    best_encoder = checkpoint_path(run.folder, best) / "encoder" if best else tiny  # step 0 is the start
    assert bits(run.folder / "encoder") == bits(best_encoder)


def test_steps_may_be_raised_and_nothing_else_that_decides_the_run(text: Path, tiny: Path, tmp_path: Path) -> None:
    train(settings(text, tiny, tmp_path / "run", max_steps=4))
    assert metrics(resume(tmp_path / "run", {"max_steps": 6}).folder)[-1]["step"] == 6
    for changes, message in (
        ({"temperature": 0.1}, "--temperature 0.1 differs from the run's own 0.05"),
        ({"max_steps": 5}, "--max-steps can only be raised"),
    ):
        with pytest.raises(InputError, match=message):
            resume(tmp_path / "run", changes)


def test_a_changed_text_is_refused_and_a_moved_one_accepted(text: Path, tiny: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(text, tmp_path / "own.txt"))
    train(settings(own, tiny, tmp_path / "run", max_steps=4))
    moved = own.rename(tmp_path / "moved.txt")
    assert resume(tmp_path / "run", {"max_steps": 6, "data": [str(moved)]}).folder == tmp_path / "run"
    moved.write_text(moved.read_text() + "One line more.\n")
    with pytest.raises(InputError, match="its content has changed"):
        resume(tmp_path / "run", {"max_steps": 8})


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_sentences(
    text: Path, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"Step 2: the loss is nan.*The batch begins with '"):
        train(settings(text, tiny, tmp_path / "run", learning_rate=1e30))
    assert not checkpoints(tmp_path / "run")


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "albert"])
def test_every_family_trains_exports_and_resumes(family: str, text: Path, tmp_path: Path) -> None:
    model = make_family(family, tmp_path)
    run = train(settings(text, model, tmp_path / "run", max_steps=3))
    assert bits(run.folder / "encoder") != bits(model)
    assert resume(run.folder, {"max_steps": 5}).after["uniformity"] < 0


def test_an_encoder_without_dropout_is_refused_and_dropout_mends_it(text: Path, tmp_path: Path) -> None:
    model = make_bert(tmp_path / "still", dropout=0.0)
    with pytest.raises(InputError, match="no dropout.*--dropout 0.1"):
        train(settings(text, model, tmp_path / "run"))
    with pytest.raises(InputError, match="--dropout 0 takes the dropout .* away.*Leave it out"):
        train(settings(text, model, tmp_path / "run", dropout=0, view="repetition"))
    assert not (tmp_path / "run").exists()
    assert isinstance(train(settings(text, model, tmp_path / "run", dropout=0.1, max_steps=2)), Run)


def test_two_runs_of_different_precision_fit_in_one_process(text: Path, tiny: Path, tmp_path: Path) -> None:
    if not is_bf16_available(True):
        pytest.skip("no bfloat16 here")
    runs = [train(settings(text, tiny, tmp_path / p, max_steps=3, precision=p)) for p in ("fp32", "bf16")]
    rows = [run.encoder.encode(["a man plays the guitar"])[0] for run in runs]
    assert not np.array_equal(rows[0], rows[1])
    assert rows[0] @ rows[1] > 0.99


def test_the_users_random_state_is_left_alone(text: Path, tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(settings(text, tiny, tmp_path / "run", max_steps=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_rate_warms_up_linearly_and_falls_linearly_to_zero() -> None:
    config = make_config({"data": "x", "learning_rate": 1.0, "warmup_ratio": 0.2})
    assert [round(learning_rate_at(s, 10, config), 6) for s in range(11)] == [
        0.5,
        1,
        1,
        0.875,
        0.75,
        0.625,
        0.5,
        0.375,
        0.25,
        0.125,
        0,
    ]
    begun = make_config({"data": "x", "learning_rate": 1.0, "warmup_ratio": 0.1})  # half a step counts as one
    assert [learning_rate_at(s, 5, begun) for s in range(6)] == [1, 1, 0.75, 0.5, 0.25, 0]
    flat = make_config({"data": "x", "learning_rate": 1.0})
    assert [learning_rate_at(s, 4, flat) for s in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_weight_decay_spares_biases_and_layer_norms(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    decayed, spared = parameter_groups(encoder, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    names = {id(p): name for name, p in encoder.named_parameters()}
    assert all("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in spared["params"])
    assert not any("bias" in names[id(p)] or "LayerNorm" in names[id(p)] for p in decayed["params"])


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequests() as stop:
        stop.begun = True
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` starts a program
    try:
        with StopRequests() as stop:
            stop.begun = True
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal_number is None
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal_number == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

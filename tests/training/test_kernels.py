"""Runs whose encoder is computed by compiled kernels."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_bf16_available

from simcse_train.encoders import acceptance
from simcse_train.encoders.compiled.build import CannotCompile
from simcse_train.encoders.compiled.library import _library, library
from simcse_train.errors import InputError, Stopped, TrainingError
from simcse_train.manifest import write_manifest
from simcse_train.objectives.registry import OBJECTIVES
from simcse_train.runs.checkpoint import State, load_state
from simcse_train.runs.folder import checkpoints
from simcse_train.training.compiled_optimizer import CompiledAdamW
from simcse_train.training.start import resume, train
from tests.training.test_loop import bits, interrupted_at, metrics, settings


@pytest.fixture(autouse=True)
def compiler(own_cache: None) -> None:
    try:
        library()
    except CannotCompile as error:
        pytest.skip(f"no kernels here: {error}")


def last_state(run: Path) -> State:
    return load_state(checkpoints(run)[-1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_resumed_run_ends_with_the_same_bits_and_another_path_with_others(
    text: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, pooling: str
) -> None:
    if precision == "bf16" and not is_bf16_available(True):
        pytest.skip("no bfloat16 here")
    common = {"max_steps": 7, "precision": precision, "pooling": pooling, "weight_decay": 0.1, "micro_batch_size": 5}
    whole = train(settings(text, small, tmp_path / "whole", **common)).folder
    assert last_state(whole).versions["kernels"] == f"{library().name} on {torch.get_num_threads()} threads"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(Stopped):
            train(settings(text, small, tmp_path / "stopped", **common))
    assert bits(resume(tmp_path / "stopped").folder / "encoder") == bits(whole / "encoder")
    off = train(settings(text, small, tmp_path / "off", **common, kernels="off")).folder
    assert last_state(off).versions["kernels"] == "off"
    assert bits(off / "encoder") != bits(whole / "encoder")
    losses = [[line["loss"] for line in metrics(run) if "loss" in line] for run in (whole, off)]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains(objective: str, text: Path, small: Path, tmp_path: Path) -> None:
    run = train(settings(text, small, tmp_path / "run", max_steps=2, objective=objective)).folder
    assert last_state(run).versions["kernels"] != "off"


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "relational", "micro_batch_size": 3},
        {"objective": "queue"},
        {"view": "repetition", "weight_decay": 0.1},
        {"pairs": True, "projection": "on"},
    ],
)
def test_the_optimiser_is_told_of_every_word_that_has_a_gradient(
    changes: dict[str, object], text: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = CompiledAdamW.clip
    words: list[torch.Tensor] = []

    def clip_and_compare(self: CompiledAdamW, max_norm: float, tokens: torch.Tensor | None = None) -> torch.Tensor:
        (weight,) = self._embeddings
        assert tokens is not None and weight.grad is not None
        assert set(weight.grad.any(dim=1).nonzero()[:, 0].tolist()) <= set(tokens.tolist())
        words.append(weight)
        return clip(self, max_norm, tokens)

    monkeypatch.setattr(CompiledAdamW, "clip", clip_and_compare)
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("anchor\tpositive\n" + "a man sings.\ta man is singing.\nthe dog runs.\ta dog is running.\n" * 8)
    changes = changes | ({"pairs": str(pairs)} if "pairs" in changes else {})
    steps = 8 if "pairs" in changes else 3  # step 8 is the first with pairs
    train(settings(text, small, tmp_path / "run", max_steps=steps, **changes))
    assert len(words) == steps


def test_a_loss_that_is_not_finite_is_found(text: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        train(settings(text, small, tmp_path / "run", max_steps=4, learning_rate=1e20))


def test_a_run_goes_on_with_the_path_it_was_started_with_or_says_that_it_cannot(
    text: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    common = {"max_steps": 4, "save_every": 2, "keep": 3}
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    _library.cache_clear()
    without = train(settings(text, small, tmp_path / "without", **common)).folder
    assert caplog.text.count("Training without compiled kernels: there is no C++ compiler") == 1
    assert last_state(without).versions["kernels"] == "off"
    monkeypatch.undo()
    _library.cache_clear()
    caplog.clear()
    resume(checkpoints(without)[0])  # now there is a compiler
    assert last_state(without).versions["kernels"] == "off"
    assert "last bits" not in caplog.text

    with_kernels = train(settings(text, small, tmp_path / "with", **common)).folder
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    _library.cache_clear()
    resume(checkpoints(with_kernels)[0])
    assert "kernels" in caplog.text and "now off: the result may differ in its last bits" in caplog.text
    monkeypatch.undo()
    _library.cache_clear()


def test_a_checkpoint_of_a_version_without_kernels_resumes_without_them(
    text: Path, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(settings(text, small, tmp_path / "run", max_steps=2, kernels="off")).folder
    state = json.loads((checkpoints(run)[-1] / "state.json").read_text())
    del state["settings"]["kernels"], state["versions"]["kernels"]
    assert State(**state).config().kernels == "off"


def test_a_resumed_run_keeps_its_kernels_where_its_weights_now_fail_the_probe(
    text: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(settings(text, small, tmp_path / "whole", max_steps=7)).folder
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(Stopped):
            train(settings(text, small, tmp_path / "stopped", max_steps=7))
    monkeypatch.setattr(acceptance, "AS_FAR", 0.0)
    monkeypatch.setattr(acceptance, "TOLERANCE", dict.fromkeys(acceptance.TOLERANCE, 0.0))
    refused = train(settings(text, small, tmp_path / "refused", max_steps=1)).folder
    assert last_state(refused).versions["kernels"] == "off"
    assert bits(resume(tmp_path / "stopped").folder / "encoder") == bits(whole / "encoder")


def test_a_run_whose_layers_torch_compile_did_not_fit_is_resumed_by_the_command_that_began_it(
    text: Path, tiny: Path, tmp_path: Path
) -> None:
    run = train(settings(text, tiny, tmp_path / "run", max_steps=1, kernels="off")).folder
    newest = checkpoints(run)[-1]
    state = (newest / "state.json").read_text()  # as on a GPU, where `computation` says that nothing was compiled
    (newest / "state.json").write_text(state.replace('"kernels": "off"', '"kernels": "compile"', 1))
    write_manifest(newest)
    resume(run, {"kernels": "compile", "max_steps": 2})
    assert load_state(checkpoints(run)[-1]).step == 2
    with pytest.raises(InputError, match="--kernels compile differs from the run's own off"):
        resume(train(settings(text, tiny, tmp_path / "off", max_steps=1, kernels="off")).folder, {"kernels": "compile"})

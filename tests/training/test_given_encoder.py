"""An encoder that was loaded before can be trained in place of the one that the settings name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simcse_train import load_encoder, resume, train
from simcse_train.config import make_config
from simcse_train.config_file import read_settings
from simcse_train.encoders import probing
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.head import projection_head
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import InputError, Stopped, TrainingError
from simcse_train.evaluation.diagnosis import TUNED
from simcse_train.export.folder import export
from simcse_train.manifest import write_manifest
from simcse_train.report.summary import summarise
from simcse_train.runs.checkpoint import load_state
from simcse_train.runs.folder import CONFIG, LOCK, checkpoints
from simcse_train.runs.metrics import read_metrics
from simcse_train.runs.start import keep_start, load_start
from simcse_train.training import prepare
from simcse_train.training.texts import open_texts
from tests.training.test_loop import bits, interrupted_at, settings


def test_a_run_trains_the_encoder_that_it_is_given(
    tiny: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load_encoder(tiny, packed=False)
    assert not encoder.packed and load_encoder(tiny).packed
    embeddings = encoder.model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    with torch.no_grad():
        embeddings.weight.mul_(3)
    given = embeddings.weight.detach().clone()
    given_settings = {
        "data": str(text),
        "model": str(tiny),
        "output": str(tmp_path / "run"),
        "max_steps": 1,
        "device": "cpu",
    }
    with caplog.at_level("INFO"):
        run = train(make_config({**given_settings, "learning_rate": 1e-9, "precision": "fp32"}), encoder)
    assert "padded batches" in caplog.text
    trained = run.encoder.model.get_input_embeddings()
    assert isinstance(trained, torch.nn.Embedding)
    assert torch.allclose(trained.weight, given, atol=1e-6)
    # What is measured and exported as the start is the encoder that was given, not the one of config.model.
    start = load_start(run.folder, make_config(read_settings(run.folder / "config.yaml"))).model.get_input_embeddings()
    assert isinstance(start, torch.nn.Embedding)
    assert torch.equal(start.weight, given)


def test_of_a_training_before_a_given_encoder_keeps_neither_head_nor_gradients(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    used = load_encoder(tiny, pooling="cls")
    used.head = projection_head(used.hidden_size, seed=0, initializer_range=0.02)
    for parameter in used.parameters():
        parameter.grad = torch.ones_like(parameter)
    found = train(settings(text, tiny, tmp_path / "used", max_steps=2, projection="off", pooling="cls"), used)
    fresh = train(settings(text, tiny, tmp_path / "fresh", max_steps=2, projection="off", pooling="cls"))
    assert bits(found.folder / "encoder") == bits(fresh.folder / "encoder")
    assert not list(found.folder.glob("checkpoints/*/head.safetensors"))


def test_a_given_encoder_is_trained_again_after_a_kill_before_the_first_checkpoint(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    """A copy of it is in the run folder before the settings are, so that no resumed run begins with another encoder."""
    given = load_encoder(tiny)
    embeddings = given.model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    with torch.no_grad():
        embeddings.weight.mul_(3)
    save_encoder(given, tmp_path / "changed")
    changed, killed = str(tmp_path / "changed"), tmp_path / "killed"
    code = f"""
import os
from simcse_train import load_encoder, train
from simcse_train.config import make_config
from simcse_train.training import prepare
prepare.open_texts = lambda *_: os._exit(9)
train(make_config({settings(text, tiny, killed, max_steps=2).model_dump()!r}), load_encoder({changed!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    resumed = resume(killed).folder
    whole = train(settings(text, tiny, tmp_path / "whole", max_steps=2), load_encoder(tmp_path / "changed")).folder
    assert bits(resumed / "encoder") == bits(whole / "encoder")
    # The copy that a run leaves when it is killed before its settings are written is not the start of another run.
    keep_start(tmp_path / "again", given)
    (tmp_path / "again" / LOCK).touch()
    again, new = (train(settings(text, tiny, tmp_path / name, max_steps=2)).folder for name in ("again", "new"))
    assert bits(again / "encoder") == bits(new / "encoder")


def test_padded_training_is_resumed_padded_or_the_difference_is_named(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(settings(text, tiny, tmp_path / "whole", max_steps=7), load_encoder(tiny, packed=False)).folder
    packed = train(settings(text, tiny, tmp_path / "packed", max_steps=7)).folder
    assert bits(packed / "encoder") != bits(whole / "encoder")
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(Stopped):
            train(settings(text, tiny, tmp_path / "stopped", max_steps=7), load_encoder(tiny, packed=False))
    assert bits(resume(tmp_path / "stopped").folder / "encoder") == bits(whole / "encoder")
    assert "was saved by" not in caplog.text
    # Weights that can't be packed any more: the run goes on padded, and says so.
    monkeypatch.setattr(probing, "_try_packed", lambda *_: False)
    resume(packed, {"max_steps": 8})
    assert "The checkpoint was saved by batches packed, [CLS] alone in the last layer, now padded" in caplog.text


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_what_was_frozen_of_a_given_encoder_stays_so_when_the_run_is_resumed(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    def frozen() -> Encoder:
        encoder = load_encoder(tiny)
        encoder.model.get_input_embeddings().requires_grad_(False)
        return encoder

    whole = train(settings(text, tiny, tmp_path / "whole", max_steps=5, kernels=kernels), frozen()).folder
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(Stopped):
            train(settings(text, tiny, tmp_path / "stopped", max_steps=5, kernels=kernels), frozen())
    resumed = resume(tmp_path / "stopped")
    as_trained = bits(whole / "encoder")
    assert bits(resumed.folder / "encoder") == as_trained
    before, after = (next(load_encoder(folder).model.parameters()) for folder in (tiny, whole))  # those of the words
    assert torch.equal(before, after)
    # The same where the copy of the start is gone.
    shutil.rmtree(resumed.folder / "start")
    longer = resume(resumed.folder, {"max_steps": 7}).folder
    assert torch.equal(before, next(load_encoder(longer).model.parameters()))
    assert bits(longer / "encoder") != bits(whole / "encoder")
    # The same where it was killed before its first checkpoint.
    for name in ("checkpoints", "encoder"):
        shutil.rmtree(whole / name)
    assert bits(resume(whole).folder / "encoder") == as_trained


@pytest.mark.parametrize("has_files", [False, True])
def test_whether_an_encoder_is_for_sentences_is_said_by_its_own_files_and_not_by_a_copy(
    tiny: Path, text: Path, tmp_path: Path, has_files: bool
) -> None:
    save_encoder(load_encoder(tiny), tmp_path / "own")
    model = tmp_path / "own" if has_files else tiny
    changes = {"max_steps": 2, "objective": "auto", "eval_every": 1}
    given = train(settings(text, tiny, tmp_path / "given", **changes), load_encoder(model)).folder
    named = train(settings(text, model, tmp_path / "named", **changes)).folder
    for run in (given, named):
        assert read_settings(run / CONFIG)["objective"] == ("relational" if has_files else "ntxent")
        assert read_metrics(run)[0]["tuned"] is has_files
        assert read_metrics(run)[0]["uniformity"] > TUNED
    shutil.rmtree(given / "checkpoints")
    shutil.rmtree(given / "encoder")
    assert read_metrics(resume(given).folder)[0]["tuned"] is has_files


def test_the_settings_of_a_run_name_the_encoder_that_it_was_given(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.chdir(tmp_path / "tiny")
    given = load_encoder(".")
    with torch.no_grad():
        next(given.model.parameters()).mul_(3)  # the embeddings of the words
    run = train(make_config({"data": str(text), "output": str(tmp_path / "run"), "max_steps": 2}), given).folder
    assert read_settings(run / CONFIG)["model"] == str(run / "start")
    again = train(make_config(read_settings(run / CONFIG) | {"output": str(tmp_path / "again")})).folder
    assert bits(again / "encoder") == bits(run / "encoder")
    card = (run / "encoder" / "README.md").read_text()
    assert "`tiny`" in card
    assert "starter" not in card
    assert "license: mit" in card
    resumed = resume(run, {"max_steps": 3})
    assert "`tiny`" in (run / "encoder" / "README.md").read_text()
    second = make_config({"data": str(text), "output": str(tmp_path / "second"), "max_steps": 1})
    card = (train(second, resumed.encoder).folder / "encoder" / "README.md").read_text()
    assert "base model | `run`" in card
    (run / "start" / "trained_as.json").write_text("")
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "encoder")
    with pytest.raises(InputError, match=r"start, the encoder that the run started from, cannot be used: .*trained_as"):
        resume(run)


def test_a_given_padded_encoder_is_padded_again_after_a_kill_before_the_first_checkpoint(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    run = train(settings(text, tiny, tmp_path / "run", max_steps=2), load_encoder(tiny, packed=False)).folder
    whole = bits(run / "encoder")
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "encoder")
    assert bits(resume(run).folder / "encoder") == whole


@pytest.mark.parametrize("setting", [{"dropout": 0.3}, {"pooling": "mean"}])
def test_settings_that_a_given_encoder_does_not_have_are_refused(
    tiny: Path, text: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(
        InputError, match=f"--{name} {value} is not that of the encoder that is given.*{name}={value!r}"
    ):
        train(settings(text, tiny, tmp_path / "run", max_steps=1, **setting), load_encoder(tiny))
    assert not (tmp_path / "run").exists()
    train(settings(text, tiny, tmp_path / "run", max_steps=1, **setting), load_encoder(tiny, **setting))


def test_an_encoder_that_is_frozen_as_a_whole_is_refused_and_its_head_alone_is_not(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    given = load_encoder(tiny)
    given.head = projection_head(given.hidden_size, seed=0, initializer_range=0.02)
    with pytest.raises(InputError, match="All weights of the encoder that is given are frozen"):
        train(settings(text, tiny, tmp_path / "run", max_steps=1), given.requires_grad_(False))
    given.requires_grad_(True)
    given.head.requires_grad_(False)
    run = train(settings(text, tiny, tmp_path / "run", max_steps=1), given).folder
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "encoder")
    assert (resume(run).folder / "encoder").is_dir()


def test_a_start_whose_files_have_changed_is_not_taken_for_the_start(
    tiny: Path, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a man\tthe man\t5\na cat\tguitar\t0\na dog\tthe dog runs\t3\n")
    ruin = {"learning_rate": 0.5, "max_steps": 2, "eval": str(pairs), "eval_every": 1, "objective": "ntxent"}
    run = train(settings(text, model, tmp_path / "run", **ruin)).folder
    state = load_state(checkpoints(run)[-1])
    newest = checkpoints(run)[-1] / "state.json"
    newest.write_text(newest.read_text().replace(f'"best_step": {state.best_step}', '"best_step": 0'))
    write_manifest(checkpoints(run)[-1])
    assert export(run, tmp_path / "same") == 0
    changed = load_encoder(model)
    with torch.no_grad():
        next(changed.model.parameters()).mul_(1.5)
    shutil.rmtree(model)
    model.mkdir()
    save_encoder(changed, model)
    with pytest.raises(InputError, match=f"{model} is no longer the encoder that the run started from"):
        export(run, tmp_path / "other")
    assert "is no longer the encoder" in (summarise(run).missing or "")
    with pytest.raises(TrainingError, match="its encoder can't be exported.*is no longer the encoder"):
        resume(run, {"max_steps": 3})
    assert "is no longer the encoder that the run started from" in caplog.text
    assert "the neighbours kept are not measured from here on" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_given_encoder_is_trained_and_resumed_in_float32(
    dtype: torch.dtype, tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = load_encoder(tiny).to(dtype)
    before = {name: value.float() for name, value in given.state_dict().items()}
    whole = train(settings(text, tiny, tmp_path / "whole", max_steps=5), given).folder
    moved = [not torch.equal(value, before[name]) for name, value in given.state_dict().items()]
    assert sum(moved) > len(moved) / 2
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(Stopped):
            train(settings(text, tiny, tmp_path / "stopped", max_steps=5), load_encoder(tiny).to(dtype))
    assert bits(resume(tmp_path / "stopped").folder / "encoder") == bits(whole / "encoder")


def test_a_given_encoder_encodes_after_its_training_what_the_run_exports(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    given = load_encoder(tiny)
    run = train(settings(text, tiny, tmp_path / "run", max_steps=3), given)
    assert not given.training
    assert given.head is None
    assert np.array_equal(given.encode(["a man", "the cat"]), run.encoder.encode(["a man", "the cat"]))
    load_encoder(tiny).load_state_dict(given.state_dict())


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_a_given_encoder_can_be_trained_by_other_programs_afterwards(
    kernels: str, tiny: Path, text: Path, tmp_path: Path
) -> None:
    given = load_encoder(tiny)
    train(settings(text, tiny, tmp_path / "run", max_steps=2, kernels=kernels), given)
    assert given.stack is None
    assert all(parameter.grad is None for parameter in given.parameters())
    optimizer = torch.optim.AdamW(given.parameters())
    before = {name: value.clone() for name, value in given.named_parameters()}
    for _ in range(2):
        given.embed(torch.tensor([2, 5, 3]), torch.tensor([3])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not any(torch.equal(value, before[name]) for name, value in given.named_parameters() if "query" in name)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_what_the_caller_has_set_for_torch_does_not_reach_a_training(
    precision: str, tiny: Path, text: Path, tmp_path: Path
) -> None:
    changes = {"max_steps": 2, "precision": precision}
    whole = train(settings(text, tiny, tmp_path / "whole", **changes)).folder
    with torch.no_grad():
        unrecorded = train(settings(text, tiny, tmp_path / "unrecorded", **changes)).folder
    with torch.inference_mode():
        inferred = train(settings(text, tiny, tmp_path / "inferred", **changes)).folder
    torch.set_default_dtype(torch.float64)
    try:
        double = train(settings(text, tiny, tmp_path / "double", **changes)).folder
    finally:
        torch.set_default_dtype(torch.float32)
    for run in (unrecorded, inferred, double):
        assert bits(run / "encoder") == bits(whole / "encoder")


def test_a_second_training_in_the_same_process_is_refused(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def training_too(*_: Any) -> Any:
        with ThreadPoolExecutor(1) as other, pytest.raises(InputError, match="Another training is under way"):
            other.submit(train, settings(text, tiny, tmp_path / "other", max_steps=1)).result()
        return open_texts(*_)

    monkeypatch.setattr(prepare, "open_texts", training_too)
    train(settings(text, tiny, tmp_path / "run", max_steps=1))
    assert not (tmp_path / "other").exists()
    monkeypatch.setattr(prepare, "open_texts", open_texts)
    train(settings(text, tiny, tmp_path / "other", max_steps=1))


def test_settings_that_are_no_settings_are_refused(text: Path) -> None:
    for config in ({"data": [str(text)]}, str(text)):
        with pytest.raises(InputError, match=r"takes its settings as TrainConfig\(data=\[...\], ...\), not as"):
            train(config)  # type: ignore[arg-type]

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from scripts.torture import processes
from simcse_train.config import make_config
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError, SaveError
from simcse_train.export.folder import load_saved_encoder, load_trained
from simcse_train.manifest import damage
from simcse_train.runs import checkpoint as module
from simcse_train.runs.atomic import remove_leftovers, write_folder
from simcse_train.runs.checkpoint import find_checkpoint, prune, run_to_resume
from simcse_train.runs.folder import LOCK, checkpoints, only_writer
from simcse_train.training.start import resume, train

DAMAGES = int(os.environ.get("SIMCSE_TRAIN_DAMAGES", "25"))


@pytest.fixture(scope="module")
def run(text: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = {"data": str(text), "model": str(tiny), "output": str(folder), "batch_size": 8, "max_length": 16}
    train(make_config({**config, "max_steps": 6, "save_every": 2, "keep": 3}))
    return folder


def test_a_checkpoint_holds_no_pickle_and_is_verified_by_its_manifest(run: Path) -> None:
    newest = checkpoints(run)[-1]
    names = {p.relative_to(newest).as_posix() for p in newest.rglob("*") if p.is_file()}
    assert {
        "manifest.json",
        "state.json",
        "optimizer.safetensors",
        "head.safetensors",
        "encoder/model.safetensors",
    } <= names
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    assert set(json.loads((newest / "manifest.json").read_text())["files"]) == names - {"manifest.json"}


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)


def truncate(path: Path, place: int, bit: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: place % len(content)])


def remove(path: Path, place: int, bit: int) -> None:
    path.unlink()


@settings(max_examples=DAMAGES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), harm=st.sampled_from([flip, truncate, remove]), alone=st.booleans())
def test_any_damage_is_noticed_and_an_older_checkpoint_taken_to_the_same_end(
    run: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    seed: int,
    harm: Callable[[Path, int, int], None],
    alone: bool,
) -> None:
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "encoder")
    *older, newest = checkpoints(copy)
    if alone:
        for path in older:
            shutil.rmtree(path)
    rng = random.Random(seed)
    victim = rng.choice(sorted(p for p in newest.rglob("*") if p.is_file()))
    harm(victim, rng.randrange(10**9), rng.randrange(8))
    with pytest.raises(InputError, match="can't be used"):
        resume(newest, {})
    if alone:
        with pytest.raises(InputError, match=f"no intact checkpoint. Skipped {newest}"):
            resume(copy, {})
        assert not (copy / "encoder").exists()
        return
    caplog.clear()
    caplog.set_level("INFO", logger="simcse_train")
    resume(copy, {})
    assert f"Skipped {newest}: " in caplog.text
    assert f"Continuing from {older[-1]}, step 4 of 6" in caplog.text
    for name in (
        "encoder/model.safetensors",
        *(f"checkpoints/step-00000006/{n}.safetensors" for n in ("head", "optimizer")),
    ):
        assert (copy / name).read_bytes() == (run / name).read_bytes()


def test_every_byte_of_the_manifest_counts(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoints(run)[-1], tmp_path / "copy"))
    written = (copy / "manifest.json").read_bytes()
    assert damage(copy) is None
    for harmed in (
        written[:-1],
        written + b"\n",
        written.replace(b"\n", b" "),
        b"[" * 100_000,
        b"{}",
        b'{"files": []}',
    ):
        (copy / "manifest.json").write_bytes(harmed)
        assert "manifest" in (damage(copy) or "")


def test_with_no_intact_checkpoint_the_run_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    for path in checkpoints(copy):
        flip(path / "encoder" / "model.safetensors", 1000, 3)
    with pytest.raises(InputError, match="no intact checkpoint"):
        resume(copy, {"max_steps": 8})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such folder"),
        (lambda p: p.mkdir(), "not a run"),
        (lambda p: (p.mkdir(), (p / "config.yaml").touch()), "stopped before its first checkpoint"),
        (
            lambda p: ((p / "encoder").mkdir(parents=True), (p / "config.yaml").touch()),
            "finished and its checkpoints were removed",
        ),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(InputError, match=message):
        find_checkpoint(tmp_path / "x")
    if "first checkpoint" not in message:  # that one is started again
        with pytest.raises(InputError, match=message):
            resume(tmp_path / "x", {})


def test_a_save_that_fails_leaves_the_old_folder_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "folder"

    def old(folder: Path) -> None:
        (folder / "x").write_text("old")

    write_folder(target, old)

    def fail(folder: Path) -> None:
        (folder / "x").write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match="No space left.*intact"):
        write_folder(target, fail)
    assert (target / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_pruning_spares_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    prune(tmp_path, 2, 6, best_step=3)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000003", "step-00000005", "step-00000006"]


def test_leftovers_of_a_killed_process_are_swept(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "checkpoints" / ".step-00000008.partial" / "encoder").mkdir(parents=True)
    remove_leftovers(copy)
    remove_leftovers(copy / "checkpoints")
    assert not list(copy.rglob(".*.partial"))


def test_a_run_has_one_writer_and_a_dead_one_is_not_in_the_way(tmp_path: Path) -> None:
    code = f"import time\nfrom pathlib import Path\nfrom simcse_train.runs.folder import only_writer\n\
with only_writer(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="Another process"), only_writer(tmp_path):
            pass
        other.kill()
    with only_writer(tmp_path):
        pass


def test_the_optimiser_comes_back_as_it_was(run: Path) -> None:
    state = module.load_state(checkpoints(run)[-1])
    config = state.config()
    encoder = module.load_checkpoint_encoder(checkpoints(run)[-1], config)
    optimizer = torch.optim.AdamW(encoder.parameters(), fused=True)
    module.load_optimizer(checkpoints(run)[-1], encoder, optimizer)
    saved = load_file(checkpoints(run)[-1] / "optimizer.safetensors")
    again = module.optimizer_tensors(encoder, optimizer)
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[key], again[key]) for key in saved)
    assert any(key.startswith("head.") for key in saved)


def read_checkpoint(checkpoint: str, peak: Any) -> None:
    """Read a checkpoint as a resumed run does; note by how much the peak of memory rose."""
    memory = Path("/proc/self/status")
    before, folder = memory.read_text(), Path(checkpoint)
    assert damage(folder) is None
    encoder = module.load_checkpoint_encoder(folder, module.load_state(folder).config())
    optimizer = torch.optim.AdamW(encoder.parameters(), fused=True)
    module.load_optimizer(folder, encoder, optimizer)
    for values in optimizer.state.values():
        for value in values.values():
            value.add_(1)  # in the memory of this process, not of the file
    kilobytes = [
        int(re.findall(f"{key}:\\s+(\\d+) kB", text)[0])
        for key, text in (("VmRSS", before), ("VmHWM", memory.read_text()))
    ]
    peak.value = 1024 * (kilobytes[1] - kilobytes[0])


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process's memory there"
)
def test_reading_a_checkpoint_takes_its_own_size_in_memory_and_the_model(
    tiny: Path, text: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 512}
    BertModel(BertConfig(vocab_size=50_000, max_position_embeddings=64, **sizes)).save_pretrained(model)
    config = {"data": str(text), "model": str(model), "output": str(tmp_path / "run"), "batch_size": 2, "max_length": 8}
    train(make_config({**config, "max_steps": 1}))
    (checkpoint,) = checkpoints(tmp_path / "run")
    weights = (checkpoint / "encoder" / "model.safetensors").stat().st_size
    whole = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert weights > 100_000_000
    assert whole > 3 * weights
    peak = processes.RawValue("q")
    process = processes.Process(target=read_checkpoint, args=(str(checkpoint), peak))
    process.start()
    process.join()
    assert process.exitcode == 0
    # Half a model below what may be taken: a second copy of the moments would go well beyond.
    assert weights < peak.value < whole + weights / 2, (
        f"{peak.value:,} bytes to read {whole:,} with a model of {weights:,}"
    )


def test_a_step_of_an_abandoned_run_is_saved_again_by_the_run_that_reaches_it(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    newest = checkpoints(copy)[-1]
    assert module.load_state(newest).steps == 6
    # The rate of each step from the fourth on is higher in a longer run, and so the weights are others.
    resume(checkpoints(copy)[0], {"max_steps": 8, "save_every": 6})
    assert module.load_state(newest).steps == 8
    old, new = (load_file(path / "optimizer.safetensors") for path in (checkpoints(run)[-1], newest))
    assert any(not old[name].equal(new[name]) for name in old)


def test_a_checkpoint_that_does_not_read_back_ends_the_run(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_badly(target: Path, write: Callable[[Path], None]) -> None:
        write_folder(target, write)
        flip(target / "optimizer.safetensors", 1000, 3)

    monkeypatch.setattr(module, "write_folder", write_badly)
    config = {"data": str(text), "model": str(tiny), "output": str(tmp_path / "run"), "batch_size": 8, "max_steps": 1}
    with pytest.raises(SaveError, match=r"written but does not read back: optimizer.safetensors is damaged. Check the"):
        train(make_config(config))


def test_a_run_that_was_killed_before_it_began_is_said_to_be_started_again(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        run_to_resume(tmp_path)
    (tmp_path / LOCK).touch()
    with pytest.raises(InputError, match="was stopped before the run began, and nothing is lost. Give the command"):
        run_to_resume(tmp_path)


def test_a_damaged_checkpoint_is_refused_wherever_it_is_named(run: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(checkpoints(run)[-1], tmp_path / "run" / "checkpoints" / "step-00000009")
    weights = checkpoint / "encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    uses: list[Callable[[Path], object]] = [load_encoder, lambda path: load_saved_encoder(str(path))]
    uses.append(lambda path: load_trained(path, None))
    for use in uses:
        with pytest.raises(InputError, match=r"step-00000009 can't be used: encoder/model.safetensors is damaged"):
            use(checkpoint)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(InputError, match="can't be used: its manifest can't be read"):
        load_encoder(checkpoint)

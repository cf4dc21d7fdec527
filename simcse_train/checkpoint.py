"""A training state on disk: written whole or not at all, verified when read.

`checkpoints/step-00000500/` holds the encoder as transformers saves it, the head, the optimiser's moments, `state.json`, and a
manifest with the size and SHA-256 of every file. A reader sees all of it or none (see `writing`).
Nothing is pickled: a checkpoint from a stranger can't run code.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from simcse_train.config import InputError, TrainConfig, make_config
from simcse_train.encoder import Encoder, projection_head, save_encoder
from simcse_train.loading import load_encoder
from simcse_train.writing import PARTIAL, SaveError, write_whole

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class State:
    """What, beside the weights and the optimiser's moments, decides how a run goes on.

    The order of the data, the learning rate and the dropout noise of a step are functions of the settings and the step alone, so
    there is no generator to save.
    """

    step: int
    epoch: int
    position: int  # batches of the epoch that are done
    best_step: int | None
    best_score: float | None
    corpus: str  # fingerprint of the text
    sentences: int  # learned from
    steps: int  # in the whole run
    settings: dict[str, Any]
    base_model: str
    scaler: dict[str, Any] | None  # of the gradients, with fp16
    versions: dict[str, str]
    pairs: str | None = None  # fingerprint of the labelled pairs

    def config(self) -> TrainConfig:
        """Return the settings of the run; raises `InputError` if this version of the program does not know one of them."""
        return make_config(self.settings, source="The checkpoint's settings")


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(run: Path, state: State, encoder: Encoder, optimizer: Optimizer) -> Path:
    """Write the checkpoint of a step and verify it; raises `SaveError` if that fails, with nothing half-written left."""

    def write(folder: Path) -> None:
        save_encoder(encoder, folder / "encoder")
        if encoder.head is not None:
            save_file(_contiguous(encoder.head.state_dict()), folder / "head.safetensors")
        save_file(optimizer_tensors(encoder, optimizer), folder / "optimizer.safetensors")
        (folder / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        (folder / MANIFEST).write_text(_manifest_text(manifest(folder)), encoding="utf-8")

    if not run.is_dir():
        raise SaveError(f"The run folder {run} is gone, and the run with it. Start again: simcse-train --data TEXT --output {run}.")
    path = checkpoint_path(run, state.step)
    if damage(path) is None and _holds(path, state):
        return path  # a resumed run came by here before
    write_whole(path, write)
    if reason := damage(path):
        raise SaveError(f"The checkpoint {path} was written but does not read back: {reason}. Check the disk.")
    return path


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file in a folder, by its path there."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files}


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every byte is as it was written."""
    try:
        written = (checkpoint / MANIFEST).read_bytes()
        expected = json.loads(written)["files"]
        found = manifest(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"its manifest can't be read ({type(error).__name__})"
    # Written out again it is the same to the byte: white space counts too.
    if not isinstance(expected, dict) or "state.json" not in expected or written != _manifest_text(expected).encode():
        return "its manifest is damaged"
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if expected[name] != found[name]:
            return f"{name} is damaged"
    return None


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first, damaged or not."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.is_dir())


def find_checkpoint(path: Path) -> tuple[Path, list[str]]:
    """Return the newest intact checkpoint of a run, or the checkpoint given, with a line for each that was skipped.

    Raises `InputError` if there is none.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such folder. Give the folder of a run, such as runs/NAME, or one of its checkpoints.")
    if is_checkpoint(path):
        if reason := damage(path):
            raise InputError(f"The checkpoint {path} can't be used: {reason}. Give the run's folder to use an older one.")
        return path, []
    candidates = checkpoints(path)
    skipped: list[str] = []
    for candidate in reversed(candidates):
        reason = damage(candidate)
        if reason is None:
            return candidate, skipped
        skipped.append(f"Skipped {candidate}: {reason}.")
    if skipped:
        raise InputError(f"{path} has no intact checkpoint. {' '.join(skipped)} Start the run again in another folder.")
    if (path / "encoder").exists():
        raise InputError(f"{path} is finished and its checkpoints are gone. Start a new run from its encoder: --model {path}/encoder.")
    if (path / "config.yaml").exists():
        raise InputError(f"{path} was stopped before its first checkpoint. Start it again: simcse-train --resume {path}")
    raise InputError(f"{path} is not a run: it has no checkpoints folder. Give the folder that simcse-train wrote, such as runs/NAME.")


def never_saved(run: Path) -> bool:
    """Say whether a run was stopped before its first checkpoint, so that nothing is lost by starting it again."""
    return (run / "config.yaml").exists() and not checkpoints(run) and not (run / "encoder").exists()


def is_checkpoint(path: Path) -> bool:
    """Say whether a folder is meant as one checkpoint, not as a run."""
    return (path / MANIFEST).exists() or path.name.startswith("step-")


def run_of(checkpoint: Path) -> Path:
    """Return the run folder that a checkpoint stands in."""
    return (checkpoint if len(checkpoint.parts) > 2 else checkpoint.absolute()).parent.parent


def run_to_resume(path: Path) -> Path:
    """Return the run folder that is meant by its own path or by that of one of its checkpoints; raises `InputError` if there is none."""
    if not path.exists() or not (is_checkpoint(path) or (path / "config.yaml").exists()):
        find_checkpoint(path)  # says what is wrong, unless only config.yaml was lost
    if not is_checkpoint(path):
        return path
    if path.absolute().parent.name != "checkpoints":
        raise InputError(f"{path} stands in no run: its folder should be RUN/checkpoints. Put it back there, or export it.")
    return run_of(path)


def load_state(checkpoint: Path) -> State:
    """Read `state.json`; raises `InputError` if it is of another version of this program."""
    try:
        return TypeAdapter(State).validate_json((checkpoint / "state.json").read_bytes())
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{checkpoint}/state.json is not of this version of simcse-train ({reason}).") from None


def load_checkpoint_encoder(checkpoint: Path, config: TrainConfig) -> Encoder:
    """Return the encoder of a checkpoint with its head, as it was trained."""
    encoder = load_encoder(checkpoint / "encoder", pooling=config.pooling, dropout=config.dropout)
    head_file = checkpoint / "head.safetensors"
    if head_file.exists():
        encoder.head = projection_head(encoder.hidden_size, seed=config.seed)
        try:
            encoder.head.load_state_dict(load_file(head_file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{head_file} is not the head of this encoder ({' '.join(str(error).split())[:300]}).") from None
    return encoder


def optimizer_tensors(encoder: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as tensors named after the parameters."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in encoder.named_parameters()}
    return _contiguous(
        {
            f"{names[parameter]}/{key}": torch.as_tensor(value)
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }
    )


def load_optimizer(checkpoint: Path, encoder: nn.Module, optimizer: Optimizer) -> None:
    """Put the saved state back into a new optimiser over the encoder's parameters; raises `InputError` if they don't match."""
    try:
        saved = load_file(checkpoint / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{checkpoint}/optimizer.safetensors can't be read ({error}).") from None
    parameters = dict(encoder.named_parameters())
    for key, value in saved.items():
        name, field = key.rsplit("/", 1)
        if name not in parameters:
            raise InputError(f"{checkpoint}/optimizer.safetensors holds {name!r}, which the encoder lacks.")
        parameter = parameters[name]
        if value.shape not in (parameter.shape, torch.Size([])):
            raise InputError(f"{checkpoint}/optimizer.safetensors: {key!r} has the shape {list(value.shape)}, not that of the encoder's.")
        optimizer.state[parameter][field] = value.to(parameter.device)  # the fused optimiser wants its count of steps there too


def prune(run: Path, keep: int, step: int, best_step: int | None) -> None:
    """Remove what is no longer kept once the checkpoint of `step` is saved: the oldest beyond `keep`, and all of later steps.

    Later ones are of a future that the run left when it went on from an older checkpoint. The one just saved and the best stay.
    Raises `SaveError` if one can't be removed.
    """
    newest = checkpoint_path(run, step)
    spared = {newest} if best_step is None else {newest, checkpoint_path(run, best_step)}
    later = [path for path in checkpoints(run) if path.name > newest.name]
    earlier = [path for path in checkpoints(run) if path.name <= newest.name]
    for path in [*reversed(later), *earlier[:-keep]]:
        if path in spared:
            continue
        # Renamed first: a deletion that is cut short must not leave what looks like a damaged checkpoint.
        doomed = path.with_name(f".{path.name}{PARTIAL}")
        shutil.rmtree(doomed, ignore_errors=True)
        try:
            path.rename(doomed)
        except OSError as error:
            raise SaveError(f"The old checkpoint {path} can't be removed: {error.strerror}. {newest} is saved and intact.") from None
        shutil.rmtree(doomed, ignore_errors=True)


def _holds(checkpoint: Path, state: State) -> bool:
    """Say whether an intact checkpoint was saved in the given state; one of another version of the program was not."""
    try:
        return load_state(checkpoint) == state
    except InputError:
        return False


def _manifest_text(files: dict[str, dict[str, Any]]) -> str:
    return json.dumps({"files": files}, indent=2) + "\n"


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

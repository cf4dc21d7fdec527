"""Checkpoints: the state of a training run on disk.

`checkpoints/step-00000500/` holds the encoder as transformers saves it, the head, the optimiser's moments, the
objective's own state, `state.json`, and a manifest with the size and SHA-256 of every file. It is written atomically
(see `atomic`). Nothing is pickled, so a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from simcse_train.config import TrainConfig, make_config
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.head import projection_head
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import InputError, SaveError, one_line
from simcse_train.launcher import resuming
from simcse_train.manifest import MANIFEST, STATE, damage, write_manifest
from simcse_train.runs.atomic import PARTIAL, write_folder
from simcse_train.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    ENCODER,
    LOCK,
    checkpoint_path,
    checkpoints,
    in_its_run,
    run_of,
    with_name,
)

HEAD, OPTIMIZER, OBJECTIVE = "head.safetensors", "optimizer.safetensors", "objective.safetensors"


@dataclass(frozen=True)
class State:
    """What, besides the weights and the optimiser's moments, decides how a run continues.

    The order of the data, the learning rate and the dropout noise of a step are functions of the settings and the step
    alone, so there is no generator to save.
    """

    step: int
    best_step: int | None
    best_score: float | None
    corpus: str | None  # fingerprint of the text
    sentences: int  # of the text, trained on
    steps: int  # of the whole run
    settings: dict[str, Any]
    base_model: str
    scaler: dict[str, Any] | None  # of the gradients, with fp16
    versions: dict[str, str]
    pairs: str | None = None  # fingerprint of the labelled pairs
    without_improvement: int = 0  # evaluations in a row
    training_pairs: str | None = None  # fingerprint of the pairs that are trained on
    counts: dict[str, int] | None = None  # of the lines of the text
    processes: int = 1  # that trained together
    order: int = 1  # how the order of an epoch is made; 1 for checkpoints that do not say
    start: str | None = None  # fingerprint of the weights that the run started from
    source: str | None = None  # where that encoder came from, as it was given
    for_sentences: bool = False  # whether it had sentence-transformers files, as every checkpoint has
    frozen: tuple[str, ...] = ()  # weights that are not trained
    unlogged: tuple[tuple[float, float], ...] = ()  # loss and norm of the gradient of each step since the last log line

    @property
    def chosen_step(self) -> int | None:
        """The best step, 0 where training only harmed; None where nothing was measured after training began."""
        return None if self.best_step == 0 and not self.without_improvement else self.best_step

    @property
    def is_last(self) -> bool:
        """Whether no step follows: all were taken, or the patience is used up."""
        patience = self.settings.get("patience")
        return self.step >= self.steps or (patience is not None and self.without_improvement >= patience)

    def config(self) -> TrainConfig:
        """Return the settings of the run; raises `InputError` if this version does not know one of them."""
        # What was trained without kernels goes on without them, also if they would fit now: the bits stay the same.
        without = {"kernels": "off"} if self.versions.get("kernels", "off") == "off" else {}
        return make_config(self.settings | without, source="The checkpoint's settings")


def save_checkpoint(
    run: Path, state: State, encoder: Encoder, optimizer: Optimizer, objective: dict[str, Tensor]
) -> Path:
    """Write the checkpoint of a step and verify it; `objective` holds the objective's own tensors.

    Raises `SaveError` if that fails, with nothing half-written left.
    """

    def write(folder: Path) -> None:
        save_encoder(encoder, folder / ENCODER)
        if encoder.head is not None:
            save_file(_contiguous(encoder.head.state_dict()), folder / HEAD)
        save_file(optimizer_tensors(encoder, optimizer), folder / OPTIMIZER)
        if objective:
            save_file(_contiguous(objective), folder / OBJECTIVE)
        (folder / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        write_manifest(folder)

    if not run.is_dir():
        raise SaveError(f"The run folder {run} no longer exists. Start again: simcse-train --data TEXT --output {run}.")
    path = checkpoint_path(run, state.step)
    if damage(path) is None and _is_of(path, state):
        return path  # a run that was resumed from an older checkpoint has reached this step before
    write_folder(path, write)
    if reason := damage(path):
        raise SaveError(f"The checkpoint {path} was written but does not read back: {reason}. Check the disk.")
    return path


def _is_of(checkpoint: Path, state: State) -> bool:
    """Return whether an intact checkpoint was saved in the given state."""
    try:
        return load_state(checkpoint) == state
    except InputError:  # saved by another version of the program
        return False


def find_checkpoint(path: Path) -> tuple[Path, list[str]]:
    """Return the newest intact checkpoint of a run, or the checkpoint given, with a line for each that was skipped.

    Raises `InputError` if there is none.
    """
    if not path.exists():
        raise InputError(
            f"{path}: there is no such folder. Give the folder of a run, such as runs/NAME, or one of its checkpoints."
        )
    if is_checkpoint(path):
        if reason := damage(path):
            raise InputError(f"The checkpoint {path} can't be used: {reason}. Give the run folder to use an older one.")
        return path, []
    skipped: list[str] = []
    deleted = False  # by a run that is still training
    for candidate in reversed(checkpoints(path)):
        reason = damage(candidate)
        if reason is None:
            return candidate, [f"{line} Using {candidate}." for line in skipped]
        if candidate.exists():
            skipped.append(f"Skipped {candidate}: {reason}.")
        else:
            deleted = True
    if deleted and checkpoints(path):  # they were deleted because newer ones were saved
        return find_checkpoint(path)
    if skipped:
        raise InputError(f"{path} has no intact checkpoint. {' '.join(skipped)} Start the run again in another folder.")
    if (path / ENCODER).exists():
        raise InputError(
            f"{path} is finished and its checkpoints were removed. Start a new run from its encoder: --model "
            f"{path / ENCODER}."
        )
    if (path / CONFIG).exists():
        raise InputError(f"{path} was stopped before its first checkpoint. Start it again: {resuming(path)}")
    if (path / LOCK).exists():
        raise InputError(
            f"{path} was stopped before the run began, and nothing is lost. Give the command that started it again."
        )
    raise InputError(
        f"{path} is not a run: it has no checkpoints folder. Give the folder that simcse-train wrote, such as "
        "runs/NAME."
    )


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is meant as one checkpoint, not as a run."""
    return (path / MANIFEST).exists() or path.name.startswith("step-")


def run_to_resume(path: Path) -> Path:
    """Return the run folder of a path to it or to one of its checkpoints; raises `InputError` if there is none."""
    if not path.exists() or not (is_checkpoint(path) or (path / CONFIG).exists()):
        find_checkpoint(path)  # raises, unless only config.yaml is missing
    if not is_checkpoint(path):
        return with_name(path)
    if in_its_run(path).parent.name != CHECKPOINTS:
        raise InputError(
            f"{path} is not inside a run: its folder should be RUN/{CHECKPOINTS}. Move it back, or export it."
        )
    return run_of(path)


def load_state(checkpoint: Path) -> State:
    """Read `state.json`; raises `InputError` if this version of the program cannot use it."""
    try:
        return TypeAdapter(State).validate_json((checkpoint / STATE).read_bytes())
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise InputError(f"{checkpoint / STATE} was not written by this version of simcse-train ({reason}).") from None


def newest_state(run: Path) -> State | None:
    """Return the state of a run's newest checkpoint that can be read; None without any."""
    for newest in reversed(checkpoints(run)):
        with contextlib.suppress(InputError):  # damaged, or removed by the run a moment ago
            return load_state(newest)
    return None


def load_checkpoint_encoder(checkpoint: Path, config: TrainConfig, *, packed: bool = True) -> Encoder:
    """Return the encoder of a checkpoint with its head, as it was trained; `packed` is that of `load_encoder`."""
    encoder = load_encoder(checkpoint / ENCODER, pooling=config.pooling, dropout=config.dropout, packed=packed)
    head_file = checkpoint / HEAD
    if head_file.exists():
        encoder.head = projection_head(encoder.hidden_size, seed=config.seed)
        try:
            encoder.head.load_state_dict(load_file(head_file))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = one_line(error)
            raise InputError(f"{head_file} is not the head of this encoder ({reason}).") from None
    return encoder


def load_objective_state(checkpoint: Path) -> dict[str, Tensor]:
    """Return the tensors that the objective saved, empty where it has no state."""
    return _load_tensors(checkpoint / OBJECTIVE) if (checkpoint / OBJECTIVE).exists() else {}


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
    """Restore the saved state of a new optimiser over the encoder's parameters; raises `InputError` if they differ."""
    path = checkpoint / OPTIMIZER
    parameters = dict(encoder.named_parameters())
    for key, value in _load_tensors(path).items():
        name, field = key.rsplit("/", 1)
        if name not in parameters:
            raise InputError(f"{path} holds {name!r}, which the encoder does not have.")
        parameter = parameters[name]
        if value.shape not in (parameter.shape, torch.Size([])):
            raise InputError(f"{path}: {key!r} has the shape {list(value.shape)}, not that of the encoder's parameter.")
        # The fused optimiser needs its count of steps on the parameter's device too.
        optimizer.state[parameter][field] = value.to(parameter.device)


def prune(run: Path, keep: int, step: int, best_step: int | None, abandoned: Sequence[Path] = ()) -> None:
    """Delete what is no longer kept after the checkpoint of `step` was saved; the best checkpoint always stays.

    Of the checkpoints up to `step`, the newest `keep` stay. Later ones, and those that are `abandoned` since the run
    was resumed before them, are deleted. Raises `SaveError` if one cannot be deleted.
    """
    newest = checkpoint_path(run, step)
    spared = {newest} if best_step is None else {newest, checkpoint_path(run, best_step)}
    later = [path for path in checkpoints(run) if path.name > newest.name or (path in abandoned and path != newest)]
    earlier = [path for path in checkpoints(run) if path not in later]
    for path in [*reversed(later), *earlier[:-keep]]:
        if path in spared:
            continue
        # Renamed first: a deletion that is interrupted must not leave what looks like a damaged checkpoint.
        removed = path.with_name(f".{path.name}{PARTIAL}")
        shutil.rmtree(removed, ignore_errors=True)
        try:
            path.rename(removed)
        except OSError as error:
            raise SaveError(
                f"The old checkpoint {path} can't be removed: {error.strerror}. {newest} is saved and intact."
            ) from None
        shutil.rmtree(removed, ignore_errors=True)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} can't be read ({error}).") from None


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}

"""Export: a trained encoder as a folder that other libraries load.

The folder is a sentence-transformers model with the encoder's files at its root, so `SentenceTransformer(path)` and
`AutoModel.from_pretrained(path)` both load it. It names its pooling and has no head, so nobody can evaluate it wrongly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import ENCODER, save_encoder
from simcse_train.errors import InputError, SaveError
from simcse_train.export.model_card import model_card
from simcse_train.manifest import damage
from simcse_train.runs.atomic import write_folder
from simcse_train.runs.checkpoint import (
    State,
    find_checkpoint,
    is_checkpoint,
    load_checkpoint_encoder,
    load_state,
    newest_state,
)
from simcse_train.runs.folder import checkpoint_path, checkpoints, run_of
from simcse_train.runs.start import load_beginning

PROBES = (
    "A man is playing a guitar.",
    "The market closed higher on Friday.",
    "Why?",
    "一只猫坐在垫子上。",
    "",
    "The two towns built a bridge of stone, which stood for ninety years. " * 20,
)
ATTEMPTS = 5  # a run that is still training may delete the checkpoint that was just chosen

T = TypeVar("T")

logger = logging.getLogger(__name__)


def export(source: Path, target: Path, which: str | None = None) -> int:
    """Write the encoder of a run or checkpoint to the new folder `target` and return the step it comes from.

    `which` is best or last; without it, best: the step with the best score, or without labelled pairs the last step at
    which the encoder was not harmed; last where nothing was measured. Step 0 is the encoder before training. Raises
    `InputError` if the source is no run or the target is in use, `SaveError` if the folder cannot be written or gives
    other embeddings when it is loaded again.
    """
    require_new_folder(target)
    state, encoder, run = load_trained(source, which)
    write_export(encoder, state, run, target, replaces=False)
    return state.step


def require_new_folder(target: Path) -> None:
    """Raise `InputError` if an export cannot become the folder `target`: it is in use, or below what is no folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already. Choose a new folder for the export, or remove it first.")
    if target.resolve() == Path.cwd():
        raise InputError(f"{target} is the folder that you are in, which an export can't replace. Name a new one.")
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"{target} can't be made: {above} is no folder. Choose another place for the export.")


def load_saved_encoder(name_or_path: str, *, pooling: str = "auto") -> Encoder:
    """Load what a user calls an encoder: an export, a model, a finished run, or a run that was stopped or still trains.

    Of a run without an export the newest intact checkpoint is loaded. A run that was made longer since its export may
    not be at its end: the export is loaded, and a warning says so. Raises `InputError` as `load_encoder` does.
    """
    path = Path(name_or_path)
    if not checkpoints(path) or (path / ENCODER).exists():
        state = newest_state(path)
        if state is not None and not state.is_last:
            logger.warning(
                f"{path} was made longer after it had finished, and is at step {state.step} of {state.steps}: its "
                f"export of before is used. To export what it is now: simcse-train export {path} OUT"
            )
        return load_encoder(name_or_path, pooling=pooling)
    return use_newest(path, lambda newest: load_encoder(newest / ENCODER, pooling=pooling))  # found intact before


def load_chosen(run: Path, newest: Path, which: str | None) -> tuple[State, Encoder]:
    """Return the state and the encoder of the best step where there is one and `which` is not last, else of the newest.

    Where training only harmed, the best step is 0 and the encoder is the one that the run started from. Raises
    `InputError` if no step was taken, if the best was asked for and there is none, or if it is damaged.
    """
    state = load_state(newest)
    if not state.step:
        raise InputError(f"{run} was stopped before its first step: there is nothing to export yet. Continue it first.")
    if state.chosen_step == 0 and which != "last":
        return replace(state, step=0), load_beginning(run, state.config(), state.start).eval()
    checkpoint = choose_checkpoint(run, newest, which)
    state = load_state(checkpoint)
    return state, load_checkpoint_encoder(checkpoint, state.config())


def choose_checkpoint(run: Path, newest: Path, which: str | None) -> Path:
    """Return the checkpoint that `which` names; raises `InputError` as `load_chosen` does."""
    best_step = load_state(newest).chosen_step
    if which == "last" or (which is None and best_step is None):
        return newest
    if best_step is None:
        raise InputError(f"{run} has no best checkpoint, since nothing was measured yet. Use --checkpoint last.")
    best = checkpoint_path(run, best_step)
    if reason := damage(best):
        raise InputError(f"The best checkpoint {best} can't be used: {reason}. Use --checkpoint last.")
    return best


def write_export(encoder: Encoder, state: State, run: Path, target: Path, *, replaces: bool = True) -> None:
    """Write an encoder as a folder of its own, load it again, and compare the embeddings.

    Raises `SaveError` if they differ or the folder cannot be written, and `InputError` if another process is writing
    it, or has written it meanwhile where it `replaces` none.
    """
    expected = encoder.encode(PROBES)
    card = model_card(encoder, state, run, run.name if target.parent == run else target.name)

    def write(folder: Path) -> None:
        save_encoder(encoder, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if not np.array_equal(load_encoder(folder).encode(PROBES), expected):
            raise SaveError("the exported encoder gives other embeddings than the trained one; please report this")

    write_folder(target, write, replaces=replaces)


def load_trained(source: Path, which: str | None) -> tuple[State, Encoder, Path]:
    """Return the state and the encoder of a run, as `load_chosen` does, or of a checkpoint, and the run's folder."""
    if which is not None and is_checkpoint(source):
        raise InputError(f"{source} is one checkpoint; --checkpoint {which} needs the folder of the whole run.")

    def load(newest: Path) -> tuple[State, Encoder, Path]:
        if not is_checkpoint(source):
            return *load_chosen(source, newest, which), source
        state = load_state(newest)
        return state, load_checkpoint_encoder(newest, state.config()), run_of(newest)

    return use_newest(source, load)


def use_newest(source: Path, use: Callable[[Path], T]) -> T:
    """Return what `use` returns for the newest intact checkpoint, and warn of those that are skipped.

    A run that is still training may delete a checkpoint while it is read; then the newest is chosen again.
    """
    for _ in range(ATTEMPTS):
        before = checkpoints(source)
        newest, skipped = find_checkpoint(source)
        for line in skipped:
            logger.warning(line)
        try:
            return use(newest)
        except (InputError, OSError):
            if checkpoints(source) == before:
                raise
    raise InputError(f"{source} deletes its checkpoints faster than they can be read. Try again when it is finished.")

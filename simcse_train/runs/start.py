"""The encoder that a run started from."""

from __future__ import annotations

from pathlib import Path

from simcse_train.config import TrainConfig
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import InputError
from simcse_train.runs.atomic import write_folder
from simcse_train.runs.folder import START
from simcse_train.runs.manifest import damage, write_manifest


def keep_start(run: Path, encoder: Encoder) -> None:
    """Copy the encoder into the run folder, so that a resumed run has it even if the model's own files change."""

    def write(folder: Path) -> None:
        save_encoder(encoder, folder)
        write_manifest(folder)

    write_folder(run / START, write)


def load_start(run: Path, config: TrainConfig) -> Encoder:
    """Return the encoder that a run started from, frozen: its copy in the run folder, else the model itself.

    It has the run's dropout, so that its views compare with those of the trained encoder.
    Raises `InputError` if the copy is damaged, or if there is none and the model cannot be loaded.
    """
    encoder = load_encoder(source_of_start(run, config), pooling=config.pooling, dropout=config.dropout)
    return encoder.eval().requires_grad_(False)


def source_of_start(run: Path, config: TrainConfig) -> str:
    """Return where the encoder is that a run starts from: its copy in the run folder, else the model's own name.

    Raises `InputError` if the copy is damaged.
    """
    if not (run / START).exists():
        return config.model
    if reason := damage(run / START, "config.json"):
        raise InputError(
            f"{run / START}, the encoder that the run started from, cannot be used: {reason}. Restore that folder, or "
            "start a new run."
        )
    return str(run / START)

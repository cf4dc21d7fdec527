"""The encoder that a run started from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from simcse_train.config import TrainConfig
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.errors import InputError
from simcse_train.manifest import damage, write_manifest
from simcse_train.runs.atomic import write_folder
from simcse_train.runs.folder import START

TRAINED_AS = "trained_as.json"  # in the copy: what of an encoder from Python its own files do not say


def keep_start(run: Path, encoder: Encoder) -> None:
    """Copy the encoder into the run folder, so that a resumed run has it even if the model's own files change.

    The copy says too where it came from, whether it was given packed batches, which of its weights were frozen, and
    whether it was trained for sentences.
    """
    trained_as = {
        "source": encoder.source,
        "packed": encoder.packed,
        "frozen": frozen_weights(encoder),
        "for_sentences": encoder.folder.for_sentences,
    }

    def write(folder: Path) -> None:
        save_encoder(encoder, folder)  # with sentence-transformers files, whether or not there were any
        (folder / TRAINED_AS).write_text(json.dumps(trained_as), encoding="utf-8")
        write_manifest(folder)

    write_folder(run / START, write)


def load_beginning(run: Path, config: TrainConfig, fingerprint: str | None = None) -> Encoder:
    """Return the encoder that a run begins with, to be trained: its copy in the run folder, else the model itself.

    It has the run's dropout. Raises `InputError` if the copy is damaged, if there is none and the model cannot be
    loaded, or if the `fingerprint` of its weights is another.
    """
    source = _source_of_start(run, config)  # found intact before anything of it is read
    known = _trained_as(run)
    packed = bool(known.get("packed", True))
    encoder = load_encoder(source, pooling=config.pooling, dropout=config.dropout, packed=packed)
    encoder.source = known.get("source", config.model)
    encoder.folder.for_sentences = bool(known.get("for_sentences", encoder.folder.for_sentences))
    if fingerprint not in (None, weights_fingerprint(encoder)):
        raise InputError(
            f"{config.model} is no longer the encoder that the run started from: its weights have changed since. "
            "Restore it to compare with it, or to have it exported where training did not help."
        )
    return freeze_again(encoder, known.get("frozen", ()))


def frozen_weights(encoder: Encoder) -> tuple[str, ...]:
    """Return the names of the weights that are not trained; those of a head always are."""
    named = encoder.named_parameters()
    return tuple(name for name, each in named if not (each.requires_grad or name.startswith("head.")))


def freeze_again(encoder: Encoder, frozen: Iterable[str]) -> Encoder:
    """Freeze the weights with these names, and return the encoder."""
    for name in frozen:
        encoder.get_parameter(name).requires_grad_(False)
    return encoder


def load_start(run: Path, config: TrainConfig, fingerprint: str | None = None) -> Encoder:
    """Return the encoder that a run started from, frozen, whose views compare with those of the trained encoder.

    Raises `InputError` as `load_beginning` does.
    """
    return load_beginning(run, config, fingerprint).eval().requires_grad_(False)


def weights_fingerprint(encoder: Encoder) -> str:
    """Return a SHA-256 of an encoder's weights without its head, whatever a version of transformers names them."""
    head = set(encoder.head.parameters()) if encoder.head is not None else set()
    weights = [parameter.detach().cpu().flatten() for parameter in encoder.parameters() if parameter not in head]
    each = sorted(hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest() for values in weights)
    return hashlib.sha256(" ".join(each).encode()).hexdigest()


def _trained_as(run: Path) -> dict[str, Any]:
    """Return what the copy of the start says of how it was trained; nothing without one."""
    path = run / START / TRAINED_AS
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _source_of_start(run: Path, config: TrainConfig) -> str:
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

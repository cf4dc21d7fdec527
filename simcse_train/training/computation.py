"""By what a run is computed: compiled kernels, flash attention, torch.compile or PyTorch alone; and their versions."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers

from simcse_train.config import TrainConfig
from simcse_train.encoders import flash, fusion
from simcse_train.encoders.acceptance import obstacle, use_flash, use_fused_layers, use_kernels
from simcse_train.encoders.compiled.library import compile_meanwhile, library
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError
from simcse_train.training.optimizer import release_embedding_gradient
from simcse_train.version import __version__

logger = logging.getLogger(__name__)

_training = threading.Lock()


@contextmanager
def one_training() -> Iterator[None]:
    """Compute gradients in float32, whatever the caller has set torch to, for as long as the block lasts.

    Raises `InputError` if another training is under way in this process: the noise is that of the process, so that each
    would draw from the other's.
    """
    if not _training.acquire(blocking=False):
        raise InputError(
            "Another training is under way in this process, and the two would draw from each other's noise. Train one "
            "after the other, or in a process of its own."
        )
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(usual)
        _training.release()


def prepare_kernels(encoder: Encoder, config: TrainConfig) -> None:
    """Let the kernels compile while the text is tokenised, where the run may be computed by them."""
    if config.kernels == "auto" and not obstacle(encoder, config.precision):
        compile_meanwhile()


def choose_kernels(encoder: Encoder, config: TrainConfig, before: str = "") -> str:
    """Let kernels compute the encoder if the settings allow it and they fit; return what decides the last bits.

    `before` is what this function returned when the run began, if it is resumed. One line says where they do not fit.
    """
    _compute_as_loaded(encoder)  # an encoder that was given may compute in another way
    if encoder.device.type == "cuda":
        return _choose_for_gpu(encoder, config, before)
    accepted = before.partition(" ")[0]
    reason = use_kernels(encoder, config.precision, accepted) if config.kernels == "auto" else "off"
    if not reason:
        return f"{library().name} on {torch.get_num_threads()} threads"
    if config.kernels == "auto" and config.device == "cpu":
        logger.info(f"Training without compiled kernels: {reason}.")
    return "off"


def _choose_for_gpu(encoder: Encoder, config: TrainConfig, before: str) -> str:
    """Let flash-attention compute the attention and torch.compile the layers, where they may; return their names."""
    chosen = []
    reason = use_flash(encoder, config.precision, before.partition(" + ")[0]) if config.kernels != "off" else "off"
    found = flash.installed()
    if not reason and not isinstance(found, str):
        chosen.append(found[0])
    elif config.kernels != "off":
        logger.info(f"Training without flash attention: {reason}.")
    if config.kernels == "compile":
        reason = use_fused_layers(encoder, config.precision, accepted=fusion.NAME in before)
        if reason:
            logger.warning(f"Training without {fusion.NAME}: {reason}.")
        else:
            chosen.append(fusion.NAME)
    return " + ".join(chosen) or "off"


def release(encoder: Encoder) -> None:
    """Undo what a training has set on an encoder, so that it can be used, and trained by other programs."""
    encoder.eval()
    encoder.head = None
    _compute_as_loaded(encoder)
    release_embedding_gradient(encoder.model)


def _compute_as_loaded(encoder: Encoder) -> None:
    encoder.stack = encoder.flash = None
    fusion.separate_layers(encoder.model)


def versions() -> dict[str, str]:
    """Return the versions on which the last bits of a run depend."""
    return {
        "simcse-train": __version__,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "python": sys.version.split()[0],
    }


def computation(encoder: Encoder, kernels: str) -> dict[str, str]:
    """Return what decides, besides the saved state, whether a run ends with the same bits.

    How an encoder computes is found by trying it when it is loaded, on the weights that it has then. `kernels` is what
    `choose_kernels` returned.
    """
    return {**versions(), "batches": encoder.batches, "kernels": kernels}

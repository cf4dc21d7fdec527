"""By what a run is computed: compiled kernels, flash attention or PyTorch alone, and the versions of all that."""

from __future__ import annotations

import logging
import sys

import torch
import transformers

from simcse_train.config import TrainConfig
from simcse_train.encoders import flash
from simcse_train.encoders.acceptance import obstacle, use_flash, use_kernels
from simcse_train.encoders.compiled.library import compile_meanwhile, library
from simcse_train.encoders.encoder import Encoder
from simcse_train.version import __version__

logger = logging.getLogger(__name__)


def prepare_kernels(encoder: Encoder, config: TrainConfig) -> None:
    """Let the kernels compile while the text is tokenised, where the run may be computed by them."""
    if config.kernels == "auto" and not obstacle(encoder, config.precision):
        compile_meanwhile()


def choose_kernels(encoder: Encoder, config: TrainConfig, before: str = "") -> str:
    """Let kernels compute the encoder if the settings allow it and they fit; return what decides the last bits.

    `before` is what this function returned when the run began, if it is resumed. One line says where they do not fit.
    """
    if encoder.device.type == "cuda":
        return _choose_flash(encoder, config, before)
    accepted = before.partition(" ")[0]
    reason = use_kernels(encoder, config.precision, accepted) if config.kernels == "auto" else "off"
    if not reason:
        return f"{library().name} on {torch.get_num_threads()} threads"
    encoder.stack = None
    if config.kernels == "auto" and config.device == "cpu":
        logger.info(f"Training without compiled kernels: {reason}.")
    return "off"


def _choose_flash(encoder: Encoder, config: TrainConfig, before: str) -> str:
    """Let flash-attention compute the attention on a GPU if it may and fits; return its name, or off."""
    reason = use_flash(encoder, config.precision, before) if config.kernels == "auto" else "off"
    found = flash.installed()
    if not reason and not isinstance(found, str):
        return found[0]
    encoder.flash = None
    if config.kernels == "auto":
        logger.info(f"Training without flash attention: {reason}.")
    return "off"


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

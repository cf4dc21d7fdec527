"""Unsupervised SimCSE (Gao, Yao & Chen, EMNLP 2021): a text file in, a sentence encoder out.

>>> from simcse_train import TrainConfig, train, load_encoder
>>> run = train(TrainConfig(data=["corpus.txt"], output="runs/x"))
>>> load_encoder("runs/x").encode(["A sentence.", "Another one."]).shape
(2, 256)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simcse_train.config import InputError, TrainConfig
    from simcse_train.loading import load_encoder
    from simcse_train.training import Run, train

__version__ = "0.1.0"
__all__ = ["InputError", "Run", "TrainConfig", "load_encoder", "train"]

_ROOMS = {
    "InputError": "config",
    "TrainConfig": "config",
    "load_encoder": "loading",
    "Run": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    # `simcse-train --help` must not wait for torch, so a room is opened when its name is first used.
    if name in _ROOMS:
        return getattr(import_module(f"simcse_train.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'simcse_train' has no attribute {name!r}")

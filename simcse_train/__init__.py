"""Unsupervised SimCSE (Gao, Yao & Chen, EMNLP 2021): a text file in, a sentence encoder out.

>>> from simcse_train import TrainConfig, train, load_encoder
>>> run = train(TrainConfig(data=["corpus.txt"], output="runs/x"))
>>> load_encoder("runs/x").encode(["A sentence.", "Another one."]).shape
(2, 256)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from simcse_train.version import __version__

if TYPE_CHECKING:
    from simcse_train.config import TrainConfig
    from simcse_train.encoders.loading import load_encoder
    from simcse_train.errors import InputError
    from simcse_train.training.finish import Run
    from simcse_train.training.start import resume, train

__all__ = ["InputError", "Run", "TrainConfig", "__version__", "load_encoder", "resume", "train"]

_MODULES = {
    "InputError": "errors",
    "TrainConfig": "config",
    "load_encoder": "encoders.loading",
    "Run": "training.finish",
    "resume": "training.start",
    "train": "training.start",
}


def __getattr__(name: str) -> Any:
    # `simcse-train --help` must not wait for `import torch`, so a module is imported when a name of it is first used.
    if name in _MODULES:
        return getattr(import_module(f"simcse_train.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'simcse_train' has no attribute {name!r}")

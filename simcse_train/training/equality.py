"""Several processes must be given the same settings, text and encoder; a difference is an error before step 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simcse_train import distributed
from simcse_train.config import TrainConfig, option
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError
from simcse_train.search.embeddings import encoder_fingerprint
from simcse_train.training.computation import versions
from simcse_train.training.texts import Texts

# Their content is compared, since they may have different places on different machines.
PATHS = {"data", "pairs", "eval", "output", "model"}


def require_equal_settings(config: TrainConfig) -> None:
    """Raise `InputError` if the processes were given different settings, or run different versions."""
    settings = {option(name): value for name, value in config.model_dump().items() if name not in PATHS}
    _require_equal({**settings, "--data -": "-" in config.data, **versions()})


def require_equal_data(config: TrainConfig, encoder: Encoder, texts: Texts) -> None:
    """Raise `InputError` if the processes have read different texts or pairs, or loaded different encoders."""
    if distributed.world_size() == 1:
        return
    names = ("the content of --data", "the content of --pairs", "the content of --eval")
    _require_equal(
        {
            **dict(zip(names, texts.fingerprints, strict=True)),
            "the weights of the encoder": encoder_fingerprint(encoder),
            "its tokenizer": encoder.tokenizer.fingerprint(),
            "its batches": encoder.batches,
            "--device": config.device,
            "--precision": config.precision,
        }
    )


def require_equal_kernels(kernels: str) -> None:
    """Raise `InputError` if only some processes compute with compiled kernels, or with others; see `choose_kernels`."""
    _require_equal({"--kernels": kernels})


def _require_equal(facts: Mapping[str, Any]) -> None:
    first, *others = distributed.collect(dict(facts))
    for number, other in enumerate(others, start=1):
        names = [*first, *(name for name in other if name not in first)]  # another version may have other settings
        differ = [
            f"{name} {_shown(other.get(name))}, not {_shown(first.get(name))}"
            for name in names
            if other.get(name) != first.get(name)
        ]
        if differ:
            raise InputError(
                f"Process {number} was not given the same as process 0: {'; '.join(differ)}. Start all processes with "
                "the same command, text, encoder and versions."
            )


def _shown(value: object) -> str:
    return f"{str(value)[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)

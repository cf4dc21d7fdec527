"""The weights of an encoder: read from its files, and refused where some are missing, left over or not finite."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from simcse_train.encoders.encoder import Encoder, input_embeddings
from simcse_train.encoders.sources import Source
from simcse_train.errors import InputError
from simcse_train.randomness import seeded

# Encoder-decoders whose encoder has a class of its own.
ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
# What older releases of transformers saved and the present one computes: positions, and masks of causal attention.
COMPUTED = ("position_ids", "token_type_ids", "inv_freq", "attn.bias", "attn.attention.bias", "masked_bias")
COPY = "embeddings._weight"  # in the files of DeBERTa v3, beside the `weight` that is used


def model_class(config: PretrainedConfig) -> Any:
    """Return the class of transformers by which the encoder of a configuration is loaded."""
    return getattr(transformers, ENCODERS[config.model_type]) if config.model_type in ENCODERS else AutoModel


def load_model(source: Source, config: PretrainedConfig) -> PreTrainedModel:
    """Return the model in float32; raises `InputError` if its files lack weights, or hold some that it does not use."""
    auto = model_class(config)
    with _without_load_report(), seeded(0):  # transformers draws weights before it reads them
        model, report = auto.from_pretrained(
            source.place,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **{
                key: value for key, value in source.arguments.items() if auto is AutoModel or key != "trust_remote_code"
            },
        )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    mismatched = sorted(str(key[0]) for key in report.get("mismatched_keys", []))
    if missing or mismatched:
        raise InputError(
            f"The encoder {source.name} lacks weights of a {config.model_type} encoder, {(missing + mismatched)[0]!r} "
            f"the first of {len(missing + mismatched)}. The files are those of another kind of model, or damaged: "
            "download or export it again."
        )
    if unused := _unused(model, report["unexpected_keys"]):
        raise InputError(
            f"The encoder {source.name} has weights that a {config.model_type} encoder with its config.json does not "
            f"use in transformers {transformers.__version__}, {unused[0]!r} the first of {len(unused)}: without them "
            "it would give other embeddings than the model that was saved. Restore the config.json that belongs to "
            "these weights, or choose another --model. To leave them out on purpose, load the model by AutoModel and "
            "save it again."
        )
    if report["missing_keys"] and getattr(model, "pooler", None) is not None:
        model.pooler = None  # nobody trained it, and an export must not carry random weights
    return model.eval()  # type: ignore[no-any-return]


def _unused(model: PreTrainedModel, surplus: Iterable[str]) -> list[str]:
    """Return the surplus weights that lie inside a part of the model, such as those of a layer too many.

    Surplus parts beside the model, such as the head of a language model, are no part of an encoder.
    """
    parts = {name for name, _ in model.named_modules() if name}
    buffers = {name for name, _ in model.named_buffers()}
    found = {key.removeprefix(f"{model.base_model_prefix}.") for key in surplus}
    return sorted(
        key
        for key in found
        if key.split(".", 1)[0] in parts
        and key not in buffers
        and not key.endswith((*COMPUTED, COPY))
        and "pooler" not in key
    )


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers' table of missing and surplus weights from being logged: they are judged here.

    Its verbosity is the caller's, and stays as it is.
    """
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def require_finite_weights(encoder: Encoder, name: str) -> None:
    """Raise `InputError` if a weight through which embeddings pass is not finite, in the row of a rare word too."""
    table = input_embeddings(encoder.model)
    for path, weight in encoder.named_parameters():
        if "pooler" in path or not weight.numel():
            continue
        # Rows after those of all tokens fill the table up to a round size; some models leave them as memory was.
        used = weight[: encoder.tokenizer.largest_id + 1] if table is not None and weight is table.weight else weight
        if not torch.stack(used.aminmax()).isfinite().all():
            raise InputError(
                f"The encoder {name}: its weight {path!r} holds values that are not finite numbers. The file is "
                "damaged, or was saved by a training that failed: download or export it again, or choose another "
                "--model."
            )

"""An encoder as a folder that transformers and sentence-transformers load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.modules import MODULES, PROMPTS, SETTINGS, WEIGHTS, Dense, LayerNorm
from simcse_train.encoders.pooling import MODES

ENCODER = "encoder"  # the folder inside a run or a checkpoint that holds its encoder


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write model, tokenizer, pooling and what else a sentence passes through, without the head, into `folder`."""
    encoder.model.save_pretrained(folder)
    if encoder.tokenizer.pretrained.is_fast:  # its last call's truncation and padding are no part of it
        encoder.tokenizer.pretrained.backend_tokenizer.no_truncation()
        encoder.tokenizer.pretrained.backend_tokenizer.no_padding()
    encoder.tokenizer.pretrained.save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *(type(module).__name__ for module in encoder.modules_after)]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i > 0)]
    contents: dict[str, Any] = {
        MODULES: [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
        SETTINGS[0]: {"max_seq_length": encoder.max_length, "do_lower_case": encoder.folder.lower_case},
        f"{paths[1]}/config.json": _pooling(encoder),
    }
    if encoder.folder.prompts:
        contents[PROMPTS] = encoder.folder.prompts
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    for path, module in zip(paths[2:], encoder.modules_after, strict=True):
        if isinstance(module, Dense | LayerNorm):
            contents[f"{path}/config.json"] = module.settings
            tensors = {name: value.detach().contiguous().cpu() for name, value in module.state_dict().items()}
            save_file(tensors, folder / path / WEIGHTS)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _pooling(encoder: Encoder) -> dict[str, Any]:
    """Return the settings of the Pooling module, as flags, which old and new releases read, wherever they suffice."""
    modes = encoder.pooling.split("+")
    settings: dict[str, Any] = {"word_embedding_dimension": encoder.token_size}
    if not encoder.folder.include_prompt:
        settings["include_prompt"] = False
    if [mode for mode in MODES if mode in modes] == modes:
        return settings | {flag: mode in modes for mode, (_, flag) in MODES.items()}
    return settings | {"pooling_mode": [MODES[mode][0] for mode in modes]}  # in an order that flags can't say

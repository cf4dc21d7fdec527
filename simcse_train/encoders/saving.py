"""An encoder as a folder that transformers and sentence-transformers load."""

from __future__ import annotations

import json
from pathlib import Path

from simcse_train.encoders.encoder import Encoder

ENCODER = "encoder"  # the folder inside a run or a checkpoint that holds its encoder


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write model, tokenizer and pooling, without the head, into `folder`."""
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.pretrained.save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {
        "word_embedding_dimension": encoder.hidden_size,
        "pooling_mode_cls_token": encoder.pooling == "cls",
        "pooling_mode_mean_tokens": encoder.pooling == "mean",
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": encoder.max_length, "do_lower_case": False},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

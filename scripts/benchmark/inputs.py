"""What all contenders start from: the same sentences and the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from simcse_train.errors import InputError

SHAPES: dict[str, dict[str, int]] = {
    "starter": {},  # the bundled encoder with its weights; the other shapes are new BERTs with random weights
    "mini": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}


def read_sentences(path: Path, count: int) -> list[str]:
    """Return the first distinct sentences of a text; raises `InputError` if it has fewer."""
    from simcse_train.data.files import find_files, open_file
    from simcse_train.data.source import named
    from simcse_train.data.texts import read_texts

    sentences: dict[str, None] = {}
    for file in find_files([str(path)]):
        with open_file(file) as raw:
            for text in read_texts(raw, named(file)):
                if len(sentences) == count:
                    return list(sentences)
                if sentence := " ".join(text.split()):
                    sentences[sentence] = None
    if len(sentences) < count:
        raise InputError(
            f"--data {path} holds {len(sentences):,} distinct sentences, not {count:,}: lower --steps or --batch-size."
        )
    return list(sentences)


def make_model(
    shape: str, pooling: str, max_length: int, folder: Path, sentences: Sequence[str]
) -> tuple[dict[str, int], list[int]]:
    """Save the common weights as a folder; return the sizes of the layers and the length of each sentence in tokens.

    Every shape uses the starter's tokenizer: the time of a step depends on the number of tokens, not on which they are.
    """
    from transformers import AutoModel, AutoTokenizer, BertConfig

    from simcse_train.cli.app import import_quietly
    from simcse_train.encoders.encoder import Encoder
    from simcse_train.encoders.loading import STARTER_FOLDER
    from simcse_train.encoders.saving import save_encoder
    from simcse_train.encoders.tokenizer import SentenceTokenizer

    import_quietly()
    torch.manual_seed(0)
    sizes = SHAPES[shape]
    config = BertConfig(vocab_size=30522)
    config.update(sizes)
    model = AutoModel.from_config(config) if sizes else AutoModel.from_pretrained(STARTER_FOLDER)
    tokenizer = SentenceTokenizer(AutoTokenizer.from_pretrained(STARTER_FOLDER))
    save_encoder(Encoder(model, tokenizer, pooling, max_length), folder)
    found = model.config
    layers = {"layers": found.num_hidden_layers, "hidden": found.hidden_size, "inner": found.intermediate_size}
    return layers, [len(row) for row in tokenizer.tokenize(sentences, max_length)]

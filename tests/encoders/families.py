"""A small random encoder of each family, with that family's own tokenizer class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (  # type: ignore[attr-defined]
    AlbertConfig,
    AlbertModel,
    AlbertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    DistilBertTokenizer,
    ElectraConfig,
    ElectraModel,
    ElectraTokenizer,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from tests.conftest import EXAMPLES, make_bert, write_vocabulary

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "albert")


def pieces() -> list[tuple[str, float]]:
    """Return a unigram vocabulary of the example text's letters and commonest words."""
    words = (EXAMPLES / "sentences.txt").read_text(encoding="utf-8").split()[:2000]
    letters = sorted({letter for word in words for letter in word})
    return [("▁", -4.0), *((x, -5.0) for x in letters), *((f"▁{w}", -3.0) for w in sorted(set(words)))]


def byte_pairs(folder: Path) -> tuple[str, str]:
    """Write RoBERTa's two vocabulary files: bytes, and a few merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = ["t h", "th e", "a n", "i n", "Ġ the", "o n"]
    vocabulary = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *bytes_to_unicode().values(),
        *(m.replace(" ", "") for m in merges),
        "<mask>",
    ]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return str(folder / "vocab.json"), str(folder / "merges.txt")


def mpnet_vocabulary(folder: Path) -> str:
    """Write MPNet's vocabulary: RoBERTa's special tokens around BERT's word pieces."""
    bert = write_vocabulary(folder).read_text(encoding="utf-8").split("\n")[5:-1]
    path = folder / "vocab.txt"
    path.write_text("\n".join(["<s>", "<pad>", "</s>", "<unk>", *bert, "[UNK]", "<mask>"]) + "\n", encoding="utf-8")
    return str(path)


def make_family(name: str, folder: Path) -> Path:
    """Save a random two-layer encoder of a family with its tokenizer."""
    if name == "bert":
        return make_bert(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    tokenizer: Any
    if name == "roberta":
        tokenizer = RobertaTokenizer(*byte_pairs(folder), model_max_length=62)
        model: Any = RobertaModel(RobertaConfig(vocab_size=len(tokenizer), **sizes, pad_token_id=1))
    elif name == "xlm-roberta":
        special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        tokenizer = XLMRobertaTokenizer(vocab=[*special, *pieces(), ("<mask>", 0.0)], model_max_length=62)
        model = XLMRobertaModel(XLMRobertaConfig(vocab_size=len(tokenizer), **sizes, pad_token_id=1))
    elif name == "distilbert":
        tokenizer = DistilBertTokenizer(str(write_vocabulary(folder)), model_max_length=64)
        model = DistilBertModel(
            DistilBertConfig(
                vocab_size=len(tokenizer),
                dim=32,
                n_layers=2,
                n_heads=4,
                hidden_dim=64,
                max_position_embeddings=64,
                initializer_range=0.3,
            )
        )
    elif name == "electra":
        tokenizer = ElectraTokenizer(str(write_vocabulary(folder)), model_max_length=64)
        model = ElectraModel(ElectraConfig(vocab_size=len(tokenizer), embedding_size=16, **sizes))
    elif name == "mpnet":
        tokenizer = MPNetTokenizer(mpnet_vocabulary(folder), model_max_length=62)
        model = MPNetModel(MPNetConfig(vocab_size=len(tokenizer), **sizes))
    elif name == "albert":
        special = [("<pad>", 0.0), ("<unk>", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0)]
        tokenizer = AlbertTokenizer(vocab=[*special, *pieces(), ("[MASK]", 0.0)], model_max_length=64)
        dropout: dict[str, Any] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        model = AlbertModel(AlbertConfig(vocab_size=len(tokenizer), embedding_size=16, **sizes, **dropout))
    else:
        raise ValueError(name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

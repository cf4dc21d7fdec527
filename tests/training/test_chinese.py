"""A whole run on Chinese text with an encoder whose tokens are single characters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from simcse_train.config import make_config
from simcse_train.data.pairs import Pair, read_pairs
from simcse_train.encoders.loading import load_encoder
from simcse_train.evaluation.sts import evaluate
from simcse_train.runs.folder import checkpoints
from simcse_train.training.start import resume, train

# ruff: noqa: RUF001 (text as people write it)
WHO = ["一个女人", "一个男孩", "两只狗", "老师", "那位画家"]
WHERE = ["在公园里", "在河边", "在旧房子前", "在山上"]
WHAT = ["弹吉他。", "看书。", "等朋友。", "跑步，很快。"]
SENTENCES = [who + where + what for who in WHO for where in WHERE for what in WHAT]


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a token for each character."""
    folder = tmp_path_factory.mktemp("models") / "chinese"
    folder.mkdir()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(SENTENCES)))]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=64)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    config = BertConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=64, initializer_range=0.3)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_each_character_is_a_token(chinese: Path) -> None:
    encoder = load_encoder(chinese)
    assert [len(row) for row in encoder.tokenizer.tokenize(SENTENCES, 64)] == [len(s) + 2 for s in SENTENCES]


def test_a_run_on_chinese_text_is_trained_scored_resumed_and_exported(chinese: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    (tmp_path / "zh.txt").write_bytes("".join(f"{s}\n" for s in SENTENCES).encode("gb18030"))
    # The format of the published Chinese STS-B: id||sentence||sentence||score.
    pairs = [Pair(SENTENCES[i], SENTENCES[i + 1], i % 6) for i in range(0, 40, 3)]
    lines = (f"2012test-{i:04}||{pair.first}||{pair.second}||{pair.score}\n" for i, pair in enumerate(pairs))
    (tmp_path / "sts.txt").write_text("".join(lines), encoding="utf-8")
    assert read_pairs(tmp_path / "sts.txt") == pairs
    settings: dict[str, Any] = {
        "data": str(tmp_path / "zh.txt"),
        "eval": str(tmp_path / "sts.txt"),
        "model": str(chinese),
    }
    settings |= {"objective": "ntxent", "batch_size": 16, "max_steps": 6, "save_every": 3, "eval_every": 3}
    run = train(make_config({**settings, "learning_rate": 1e-3, "output": str(tmp_path / "run")}))
    assert {"score", "alignment"} <= run.before.keys()
    assert run.before["score"] != run.after["score"]
    [row] = evaluate(run.encoder, tmp_path / "sts.txt")
    assert row.score is not None
    assert row.pairs == len(pairs)

    again = tmp_path / "again"
    shutil.copytree(run.folder, again)
    shutil.rmtree(again / "encoder")
    shutil.rmtree(checkpoints(again)[-1])
    weights = [(folder / "encoder" / "model.safetensors").read_bytes() for folder in (run.folder, resume(again).folder)]
    assert weights[0] == weights[1]

    theirs = sentence_transformers.SentenceTransformer(str(run.folder / "encoder"), device="cpu")
    ours = load_encoder(run.folder).encode(SENTENCES)
    assert np.allclose(theirs.encode(SENTENCES, normalize_embeddings=True), ours, atol=1e-5)

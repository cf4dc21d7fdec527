from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from simcse_train.cache import cache_folder
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.modules import Dense
from simcse_train.search import bank as bank_module
from simcse_train.search.bank import Bank
from simcse_train.search.embeddings import cached_embeddings, embed_rows, encoder_fingerprint, known_embeddings

SENTENCES = ["a man plays", "the dog runs in the park", "a cat", "red", "the woman sings on a hill", "blue guitar"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


class Text:
    """Counts how many sentences are read."""

    def __init__(self, encoder: Encoder) -> None:
        self.rows, self.read = encoder.tokenizer.tokenize(SENTENCES, 12), 0

    def tokens(self, numbers: NDArray[np.int64]) -> list[list[int]]:
        self.read += len(numbers)
        return [self.rows[number] for number in numbers.tolist()]


def test_embeddings_are_those_of_encode_and_are_computed_once(tiny: Path, cache: Path) -> None:
    encoder = load_encoder(tiny, pooling="mean").train()
    text, numbers = Text(encoder), np.array([4, 0, 2])
    found = cached_embeddings(encoder, text.tokens, numbers, "t")
    assert encoder.training
    assert np.allclose(found, encoder.encode([SENTENCES[i] for i in numbers]), atol=1e-3)
    assert text.read == 3
    assert np.array_equal(cached_embeddings(encoder, text.tokens, numbers, "t"), found)
    assert text.read == 3
    for other in ({"numbers": np.array([4, 0, 1])}, {"text": "u"}, {"precision": "bf16"}):
        cached_embeddings(encoder, text.tokens, **({"numbers": numbers, "text": "t"} | other))  # type: ignore[arg-type]
    assert text.read == 12
    assert not list(cache.glob("*.partial"))


def test_the_fingerprint_is_that_of_weights_and_pooling_and_not_of_dropout(tiny: Path) -> None:
    plain = encoder_fingerprint(load_encoder(tiny, pooling="mean"))
    assert encoder_fingerprint(load_encoder(tiny, pooling="mean", dropout=0.4)) == plain
    assert encoder_fingerprint(load_encoder(tiny, pooling="cls")) != plain
    changed = load_encoder(tiny, pooling="mean")
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1e-6
    assert encoder_fingerprint(changed) != plain


def test_the_fingerprint_is_also_that_of_the_modules_after_the_pooling(tiny: Path) -> None:
    def fingerprint(activation: torch.nn.Module | None, seed: int = 0) -> str:
        torch.manual_seed(seed)
        settings = {"in_features": 32, "out_features": 32, "activation_function": str(activation)}
        encoder = load_encoder(tiny, pooling="mean")
        if activation is not None:
            encoder.modules_after = torch.nn.Sequential(Dense(settings, activation))
        return encoder_fingerprint(encoder)

    found = [
        fingerprint(None),
        fingerprint(torch.nn.Tanh()),
        fingerprint(torch.nn.Tanh(), 1),
        fingerprint(torch.nn.GELU()),
    ]
    assert len(set(found)) == 4
    assert fingerprint(torch.nn.Tanh()) == found[1]


def test_embeddings_of_an_earlier_run_are_those_that_would_be_computed(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(tiny, pooling="mean").train()
    rows = encoder.tokenizer.tokenize(SENTENCES, 12)
    computed: list[int] = []
    embed = encoder.embed

    def counted(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        computed.append(len(lengths))
        return embed(tokens, lengths)

    monkeypatch.setattr(encoder, "embed", counted)
    first, second = known_embeddings(encoder, rows), known_embeddings(encoder, rows)
    assert computed == [len(rows)]
    assert torch.equal(first, embed_rows(encoder, rows))
    assert torch.equal(second, first)
    computed.clear()
    known_embeddings(encoder, rows[1:])
    monkeypatch.setattr(encoder, "pooling", "cls")
    known_embeddings(encoder, rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        known_embeddings(encoder, rows)
    finally:
        torch.set_num_threads(threads)
    assert computed == [len(rows) - 1, len(rows), len(rows)]


@pytest.mark.parametrize("size", [3, 6])
def test_sentences_in_the_bank_and_outside_it_have_the_embeddings_of_the_start(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(bank_module, "BANK", size)
    encoder = load_encoder(tiny, pooling="mean")
    text = Text(encoder)
    held = np.arange(6)
    bank = Bank(encoder, text.tokens, held, "t", asked=6, precision="fp32", autocast=torch.no_grad)
    assert len(bank.numbers) == size
    assert text.read == size
    asked = np.array([5, 1, 1, -1, 0])
    found = bank.start(asked).numpy()
    expected = encoder.encode(SENTENCES)
    assert np.allclose(found[[0, 1, 2, 4]], expected[[5, 1, 1, 0]], atol=1e-3)
    assert not found[3].any()
    # Moved towards the two nearest in the bank, itself left out.
    near = bank.smoothed(np.array([1]), 2).numpy()[0]
    others = expected[[number for number in bank.numbers.tolist() if number != 1]]
    best = sorted(others, key=lambda row: -float(row @ expected[1]))[:2]
    moved = expected[1] + sum(max(0, float(row @ expected[1])) ** 3 * row for row in best)
    assert np.allclose(near, moved / np.linalg.norm(moved), atol=2e-3)


def test_a_quantile_divides_the_cosines_of_different_sentences(tiny: Path, cache: Path) -> None:
    encoder = load_encoder(tiny, pooling="mean")
    bank = Bank(encoder, Text(encoder).tokens, np.arange(6), "t", asked=6, precision="fp32", autocast=torch.no_grad)
    rows = encoder.encode(SENTENCES)
    between = (rows @ rows.T)[np.triu_indices(6, 1)]
    assert (between > bank.quantile(0.8)).mean() == pytest.approx(0.2, abs=0.01)

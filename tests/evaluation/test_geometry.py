from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from simcse_train import distributed
from simcse_train.encoders.loading import load_encoder
from simcse_train.evaluation.geometry import alignment, embed_views, uniformity
from simcse_train.search.embeddings import embed_rows, embed_rows_together, encode_together, known_embeddings
from tests.launch import run

SENTENCES = ["a man", "the cat runs", "a dog", "the big red dog runs in the park on the blue hill"]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_uniformity_is_measured_on_normalised_embeddings_without_dropout(tiny: Path, pooling: str) -> None:
    encoder = load_encoder(tiny, pooling=pooling)
    rows = encoder.tokenizer.tokenize(SENTENCES, 16)
    units = encoder.encode(SENTENCES).astype(np.float64)
    squared = [((a - b) ** 2).sum() for i, a in enumerate(units) for b in units[i + 1 :]]
    expected = np.log(np.mean(np.exp(-2 * np.array(squared))))
    for training in (False, True):
        encoder.train(training)
        aligned = alignment(*embed_views(encoder, rows))
        uniform = uniformity(embed_rows(encoder, rows))
        assert uniform == pytest.approx(expected, abs=1e-5)
        assert encoder.training is training
        assert 0 < aligned < 4  # squared distances of vectors of length 1


def test_alignment_does_not_depend_on_the_length_of_the_embeddings(tiny: Path) -> None:
    encoder = load_encoder(tiny, pooling="mean")
    rows = encoder.tokenizer.tokenize(SENTENCES, 16)
    expected = alignment(*embed_views(encoder, rows)), uniformity(embed_rows(encoder, rows))
    model: Any = encoder.model
    final = model.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        final.weight.mul_(8)
        final.bias.mul_(8)
    found = alignment(*embed_views(encoder, rows)), uniformity(embed_rows(encoder, rows))
    assert found == pytest.approx(expected, rel=1e-5)


def embed_a_share(tiny: Path, target: Path) -> None:
    """Save what a process gets of three functions that share their work, and how many sentences it embedded itself."""
    encoder = load_encoder(tiny)
    embed = encoder.embed
    embedded: list[int] = []

    def counted(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        embedded.append(len(lengths))
        return embed(tokens, lengths)

    encoder.embed = counted  # type: ignore[method-assign]
    sentences = [f"a man plays {number}" for number in range(200)]
    rows = encoder.tokenizer.tokenize(sentences, 16)
    with distributed.connected(str):
        first, second = embed_views(encoder, rows)
        plain = embed_rows_together(encoder, rows)
        encoded = torch.from_numpy(encode_together(encoder, sentences))
        own = torch.tensor([sum(embedded)])
        new = known_embeddings(encoder, rows)
        embedded.clear()
        known = known_embeddings(encoder, rows)
        found = {"first": first, "second": second, "plain": plain, "encoded": encoded, "own": own}
        found |= {"new": new, "known": known, "again": torch.tensor(sum(embedded))}
        save_file(found, target.with_suffix(f".{distributed.rank()}"))


def test_processes_share_what_is_measured_and_get_what_one_would(tiny: Path, tmp_path: Path) -> None:
    assert run(1, embed_a_share, tiny, tmp_path / "alone") == [0]
    assert run(3, embed_a_share, tiny, tmp_path / "together") == [0, 0, 0]
    alone = load_file(tmp_path / "alone.0")
    shares = [load_file(tmp_path / f"together.{rank}") for rank in range(3)]
    assert alone["own"] == 4 * 200  # two views, and twice the sentences
    for share in shares:
        assert torch.equal(share["known"], share["new"])
        assert share["again"] == 0
        for name in ("first", "second", "plain", "encoded", "new"):
            torch.testing.assert_close(share[name], alone[name], rtol=0, atol=1e-6)
    # Of four batches of views the first two processes take one each, of the rest each a third.
    assert [int(share["own"]) for share in shares] == [2 * 64 + 66 + 66, 2 * 64 + 67 + 67, 2 * 72 + 67 + 67]


def test_a_measurement_that_fails_leaves_the_encoder_as_it_was(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    for training, measure in ((False, embed_views), (True, embed_rows)):
        encoder.train(training)
        with pytest.raises(IndexError):
            measure(encoder, [[10**6]])
        assert encoder.training is training

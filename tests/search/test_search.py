from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.saving import save_encoder
from simcse_train.search.search import open_text, search
from tests.cli.test_commands import run


def test_a_sentence_of_the_text_finds_itself_first_and_the_rest_in_order(tiny: Path, text: Path) -> None:
    encoder = load_encoder(tiny)
    searched = open_text(encoder, [str(text)])
    sentences = searched.corpus.texts(np.arange(len(searched.corpus)))
    chosen = [sentences[3], sentences[77]]
    found = search(encoder, searched, chosen, 7)
    cosines = encoder.encode(chosen) @ encoder.encode(sentences).T
    for hits, query, row in zip(found, chosen, cosines, strict=True):
        assert hits[0].sentence == query
        assert hits[0].cosine == pytest.approx(1, abs=2e-3)  # the text's embeddings are float16
        assert [hit.cosine for hit in hits] == pytest.approx(sorted(row, reverse=True)[:7], abs=2e-3)
    assert len(search(encoder, searched, ["a man"], 10_000)[0]) == len(sentences)


def test_a_second_start_embeds_nothing_and_another_encoder_does(
    tiny: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(tiny)
    before = open_text(encoder, [str(text)]).embeddings
    monkeypatch.setattr(encoder, "embed", lambda *_: 1 / 0)
    assert (open_text(encoder, [str(text)]).embeddings == before).all()
    encoder.pooling = "mean"
    with pytest.raises(ZeroDivisionError):
        open_text(encoder, [str(text)])


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 8, "do_lower_case": False}),
        ("config_sentence_transformers.json", {"prompts": {"q": "the red dog: "}, "default_prompt_name": "q"}),
    ],
)
def test_a_copy_that_reads_a_sentence_in_another_way_has_embeddings_of_its_own(
    file: str, settings: dict[str, object], tiny: Path, text: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(tiny)
    save_encoder(encoder, tmp_path)
    (tmp_path / file).write_text(json.dumps(settings))
    other = load_encoder(tmp_path)
    for each in (encoder, other):
        found = open_text(each, [str(text)])
        assert np.allclose(found.embeddings, each.encode(found.corpus.texts(np.arange(len(found.corpus)))), atol=2e-3)


def test_the_command_takes_a_query_or_reads_them(
    capsys: pytest.CaptureFixture[str], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.txt").write_text("a man runs\na cat plays\x1b[31m\nthe dog sings\n")
    assert run("search", tiny, "a man runs", "--data", tmp_path / "x.txt", "--count", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("  a man runs")
    monkeypatch.setattr("sys.stdin", iter(["a cat plays\n", "\n", "the dog sings\n"]))
    assert run("search", tiny, "--data", tmp_path / "x.txt", "--count", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(">")] == ["> a cat plays", "> the dog sings"]
    assert len(lines) == 2 + 6
    assert sum(line.endswith("  a cat plays␛[31m") for line in lines) == 2  # a sentence does not act on the terminal

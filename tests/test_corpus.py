from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simcse_train.config import InputError
from simcse_train.corpus import cache_folder, open_corpus
from simcse_train.loading import load_encoder


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8", newline="")
    return str(path)


def test_lines_are_trimmed_and_empty_and_equal_ones_dropped_and_counted(tiny: Path, tmp_path: Path) -> None:
    lines = ["  a man  ", "", "the cat", "\t", "a man", "a cat runs in the park on the hill", "the cat", "\u200b\x01"]
    corpus = open_corpus([write(tmp_path / "x.txt", "\n".join(lines))], None, load_encoder(tiny), 6)
    counts = corpus.counts
    assert (counts.lines, counts.empty, counts.duplicates, counts.cut, counts.sentences) == (8, 3, 2, 1, 3)
    assert corpus.texts(np.arange(3)) == ["a man", "the cat", "a cat runs in the park on the hill"]
    assert [len(row) for row in corpus.tokens(np.arange(3))] == [4, 4, 6]
    assert corpus.tokens(np.array([2]))[0][-1] == load_encoder(tiny).tokenizer.sep_token_id


def test_several_files_are_one_text_and_equal_lines_across_them_count_once(tiny: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / "a.txt", "one\ntwo\n"), write(tmp_path / "b.csv", "t\ntwo\nthree\n")]
    corpus = open_corpus(files, None, load_encoder(tiny), 16)
    assert corpus.texts(np.arange(len(corpus))) == ["one", "two", "three"]


def test_the_next_run_on_the_same_text_opens_the_cache_wherever_the_file_lies(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny)
    first = open_corpus([write(tmp_path / "first.txt", "alpha\nbeta\n")], None, encoder, 16)
    before = {p.name: p.stat().st_mtime_ns for p in cache_folder().iterdir()}
    moved = open_corpus([write(tmp_path / "moved.txt", "alpha\nbeta\n")], None, encoder, 16)
    assert moved.fingerprint == first.fingerprint
    assert {p.name: p.stat().st_mtime_ns for p in cache_folder().iterdir()} == before
    assert open_corpus([write(tmp_path / "other.txt", "alpha\nbeta!\n")], None, encoder, 16).fingerprint != first.fingerprint
    assert len(open_corpus([str(tmp_path / "first.txt")], None, encoder, 3).tokens(np.array([0]))[0]) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no sentence.*0 lines"),
        ("\n \n", "no sentence"),
        ("one\n", "a single sentence"),
        ("one\n" * 5, "a single sentence.*4 duplicates"),
    ],
)
def test_fewer_than_two_sentences_are_refused(tiny: Path, tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_corpus([write(tmp_path / "x.txt", content)], None, load_encoder(tiny), 16)


def test_a_failed_reading_leaves_nothing_in_the_cache(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"fine\n" * 10_000 + b"\xff\n")
    before = sorted(cache_folder().iterdir()) if cache_folder().exists() else []
    with pytest.raises(InputError, match="line 10001"):
        open_corpus([str(tmp_path / "x.txt")], None, load_encoder(tiny), 16)
    assert sorted(cache_folder().iterdir()) == before


def test_long_lines_and_millions_of_empty_ones_are_read(tiny: Path, tmp_path: Path) -> None:
    with (tmp_path / "x.txt").open("wb") as stream:
        stream.write(b"the cat runs " * 1_000_000 + b"\n")
        stream.write(b"\n" * 2_000_000)
        stream.write(b"a dog\n")
    corpus = open_corpus([str(tmp_path / "x.txt")], None, load_encoder(tiny), 16)
    assert (corpus.counts.lines, corpus.counts.empty, corpus.counts.cut) == (2_000_002, 2_000_000, 1)

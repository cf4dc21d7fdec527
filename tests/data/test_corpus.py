from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from simcse_train.cache import cache_folder
from simcse_train.data.batches import two_views
from simcse_train.data.cache import CHUNK_SENTENCES
from simcse_train.data.corpus import open_corpus
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.tokenizer import MAX_CHARACTERS, SentenceTokenizer
from simcse_train.errors import InputError
from tests.conftest import write_vocabulary


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8", newline="")
    return str(path)


def test_lines_are_trimmed_and_empty_and_equal_ones_dropped_and_counted(tiny: Path, tmp_path: Path) -> None:
    lines = ["  a man  ", "", "the cat", "\t", "a man", "a cat runs in the park on the hill", "the cat", "\u200b\x01"]
    corpus = open_corpus([write(tmp_path / "x.txt", "\n".join(lines))], None, load_encoder(tiny).tokenizer, 6)
    counts = corpus.counts
    assert (counts.lines, counts.empty, counts.duplicates, counts.cut, counts.sentences) == (8, 3, 2, 1, 3)
    assert corpus.texts(np.arange(3)) == ["a man", "the cat", "a cat runs in the park on the hill"]
    assert [len(row) for row in corpus.tokens(np.arange(3))] == [4, 4, 6]
    assert corpus.tokens(np.array([2]))[0][-1] == load_encoder(tiny).tokenizer.pretrained.sep_token_id


def test_several_files_are_one_text_and_equal_lines_across_them_count_once(tiny: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / "a.txt", "one\ntwo\n"), write(tmp_path / "b.csv", "t\ntwo\nthree\n")]
    corpus = open_corpus(files, None, load_encoder(tiny).tokenizer, 16)
    assert corpus.texts(np.arange(len(corpus))) == ["one", "two", "three"]


def test_the_next_run_on_the_same_text_opens_the_cache_wherever_the_file_lies(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny)
    first = open_corpus([write(tmp_path / "first.txt", "alpha\nbeta\n")], None, encoder.tokenizer, 16)
    before = {p.name: p.stat().st_mtime_ns for p in cache_folder().iterdir()}
    moved = open_corpus([write(tmp_path / "moved.txt", "alpha\nbeta\n")], None, encoder.tokenizer, 16)
    assert moved.fingerprint == first.fingerprint
    assert {p.name: p.stat().st_mtime_ns for p in cache_folder().iterdir()} == before
    assert (
        open_corpus([write(tmp_path / "other.txt", "alpha\nbeta!\n")], None, encoder.tokenizer, 16).fingerprint
        != first.fingerprint
    )
    assert len(open_corpus([str(tmp_path / "first.txt")], None, encoder.tokenizer, 3).tokens(np.array([0]))[0]) == 3


def test_one_file_read_in_another_way_is_another_text(tiny: Path, tmp_path: Path) -> None:
    tokenizer = load_encoder(tiny).tokenizer

    def read(file: str, column: str | None = None, encoding: str | None = None) -> list[str]:
        corpus = open_corpus([file], column, tokenizer, 16, encoding=encoding)
        return corpus.texts(np.arange(len(corpus)))

    table = write(tmp_path / "x.csv", "title,body\na man,a cat runs\nthe dog,a woman sings\n")
    assert read(table, "title") == ["a man", "the dog"]
    assert read(table, "body") == ["a cat runs", "a woman sings"]
    (tmp_path / "old.txt").write_bytes(b"caf\xe9\nna\xefve\n")
    assert read(str(tmp_path / "old.txt"), encoding="cp1252") == ["café", "naïve"]
    assert read(str(tmp_path / "old.txt"), encoding="cp1251") == ["cafй", "naпve"]
    lines = Path(write(tmp_path / "y.txt", "title\na man\nthe dog\n"))
    assert read(str(lines)) == ["title", "a man", "the dog"]
    assert read(str(lines.rename(tmp_path / "y.csv"))) == ["a man", "the dog"]


def test_another_tokenizer_does_not_get_the_tokens_of_the_first_from_the_cache(tiny: Path, tmp_path: Path) -> None:
    text = write(tmp_path / "x.txt", "a man\nthe cat\n")
    vocabulary = write_vocabulary(tmp_path)
    vocabulary.write_text(vocabulary.read_text().replace("\nman\n", "\nlion\n"))
    tokenizers = [load_encoder(tiny).tokenizer, SentenceTokenizer(BertTokenizer(str(vocabulary)))]
    found = [open_corpus([text], None, tokenizer, 16).tokens(np.arange(2)) for tokenizer in tokenizers]
    assert found == [tokenizer.tokenize(["a man", "the cat"], 16) for tokenizer in tokenizers]
    assert found[0] != found[1]


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
        open_corpus([write(tmp_path / "x.txt", content)], None, load_encoder(tiny).tokenizer, 16)


def test_a_failed_reading_leaves_nothing_in_the_cache(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"fine\n" * 10_000 + b"\xff\n")
    before = sorted(cache_folder().iterdir()) if cache_folder().exists() else []
    with pytest.raises(InputError, match="line 10001"):
        open_corpus([str(tmp_path / "x.txt")], None, load_encoder(tiny).tokenizer, 16)
    assert sorted(cache_folder().iterdir()) == before


@pytest.mark.parametrize("damage", [[0, 0, 1], [-1, 0, 1], [0, 2, 1], [0, 1, 3]])
def test_a_cache_that_names_other_rows_is_refused(damage: list[int], tiny: Path, tmp_path: Path) -> None:
    tokenizer, text = load_encoder(tiny).tokenizer, [write(tmp_path / "x.txt", "a man\na cat\na dog\n")]
    before = set(cache_folder().glob("*/rows.npy"))
    open_corpus(text, None, tokenizer, 11)
    (rows,) = set(cache_folder().glob("*/rows.npy")) - before
    assert np.load(rows).tolist() == [0, 1, 2]
    np.save(rows, damage)
    with pytest.raises(InputError, match="The tokenised text in .* can't be read .*Delete that folder and run again"):
        open_corpus(text, None, tokenizer, 11)
    shutil.rmtree(rows.parent)


@pytest.mark.parametrize(
    ("length", "empty"),
    [(1_000_000, 100_000), pytest.param(100_000_000, 10_000_000, marks=pytest.mark.slow, id="100 MB and ten million")],
)
def test_long_lines_and_millions_of_empty_ones_are_read(length: int, empty: int, tiny: Path, tmp_path: Path) -> None:
    with (tmp_path / "x.txt").open("wb") as stream:
        stream.write(b"the cat runs " * (length // 13 + 1) + b"\n")
        stream.write(b"\n" * empty)
        stream.write(b"a dog\n")
    corpus = open_corpus([str(tmp_path / "x.txt")], None, load_encoder(tiny).tokenizer, 16)
    assert (corpus.counts.lines, corpus.counts.empty, corpus.counts.cut) == (empty + 2, empty, 1)
    assert [len(row) for row in corpus.tokens(np.arange(2))] == [16, 4]
    assert [len(text) for text in corpus.texts(np.arange(2))] == [MAX_CHARACTERS, 5]  # enough for an error message


def test_sentences_of_several_record_batches_are_read_in_any_order(tiny: Path, tmp_path: Path) -> None:
    lines = [f"a man plays {number}" for number in range(2 * CHUNK_SENTENCES + 1)]
    tokenizer = load_encoder(tiny).tokenizer
    corpus = open_corpus([write(tmp_path / "x.txt", "\n".join(["", lines[0], *lines]))], None, tokenizer, 16)
    chosen = np.array([2 * CHUNK_SENTENCES, CHUNK_SENTENCES - 1, CHUNK_SENTENCES - 2, CHUNK_SENTENCES, 0, 1, 0])
    assert corpus.texts(chosen) == [lines[number] for number in chosen]
    everyone = np.arange(len(lines))
    assert corpus.texts(everyone) == lines
    assert corpus.tokens(everyone) == tokenizer.tokenize(lines, 16)


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        ("\ufeffone\r\ntwo\nthree\r\n\ufefffour", ["one", "two", "three", "\ufefffour"]),  # marks and mixed line ends
        ("one\rstill one\ntwo\u2028still two", ["one\rstill one", "two\u2028still two"]),
        ("😀 👩‍👩‍👧\n🇩🇪 😀", ["😀 👩‍👩‍👧", "🇩🇪 😀"]),
        ("مرحبا بالعالم\nصباح الخير", ["مرحبا بالعالم", "صباح الخير"]),  # noqa: RUF001
        ("今天天气很好我们去公园散步\n一只猫坐在垫子上", ["今天天气很好我们去公园散步", "一只猫坐在垫子上"]),
        ("[SEP]\n[CLS] [SEP] [PAD]\n[MASK]", ["[SEP]", "[CLS] [SEP] [PAD]", "[MASK]"]),  # text like any other
    ],
)
def test_hostile_lines_are_sentences_as_they_stand(
    content: str, sentences: list[str], tiny: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(tiny)
    corpus = open_corpus([write(tmp_path / "x.txt", content)], None, encoder.tokenizer, 32)
    everyone = np.arange(len(corpus))
    assert corpus.texts(everyone) == sentences
    special = {
        encoder.tokenizer.pretrained.cls_token_id,
        encoder.tokenizer.pretrained.sep_token_id,
        encoder.tokenizer.pretrained.pad_token_id,
    }
    for row in corpus.tokens(everyone):
        assert [row[0], row[-1]] == [
            encoder.tokenizer.pretrained.cls_token_id,
            encoder.tokenizer.pretrained.sep_token_id,
        ]
        assert len(row) > 2
        assert not special & set(row[1:-1])


def test_sentences_of_unknown_words_are_kept_and_never_pushed_apart(tiny: Path, tmp_path: Path) -> None:
    encoder = load_encoder(tiny)
    corpus = open_corpus([write(tmp_path / "x.txt", "猫\n狗\na cat\n")], None, encoder.tokenizer, 16)
    rows = corpus.tokens(np.arange(3))
    assert (
        rows[0]
        == rows[1]
        == [
            encoder.tokenizer.pretrained.cls_token_id,
            encoder.tokenizer.pretrained.unk_token_id,
            encoder.tokenizer.pretrained.sep_token_id,
        ]
    )
    texts = two_views(rows, np.arange(3)).texts
    assert (texts[:, None] == texts)[0].tolist() == [True] * 4 + [False] * 2  # one text to the loss


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\nso \0 what\n", "line 2 holds a NUL byte"),
        (b"fine\nlone \xed\xa0\x80\n", "line 2 is not valid UTF-8"),
        (b"same\n" * 100_000, "a single sentence .100000 lines, 0 empty, 99999 duplicates."),
        (b"\n" * 100_000, "no sentence .100000 lines, 100000 empty"),
    ],
)
def test_hostile_text_is_refused_with_the_reason(content: bytes, message: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_corpus([str(tmp_path / "x.txt")], None, load_encoder(tiny).tokenizer, 16)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell")
def test_reading_all_of_a_long_text_keeps_little_of_it_in_memory(tiny: Path, tmp_path: Path) -> None:
    text = write(
        tmp_path / "x.txt", "".join(f"{i} {'the cat runs in the park on the hill ' * 20}\n" for i in range(20_000))
    )
    corpus = open_corpus([text], None, load_encoder(tiny).tokenizer, 32)

    def mapped() -> int:
        return int(Path("/proc/self/status").read_text().split("RssFile:")[1].split()[0]) // 1024  # MiB

    before = mapped()
    for start in range(0, len(corpus), 1000):
        assert corpus.texts(np.arange(start, start + 1000))[0].startswith(f"{start} ")
    assert mapped() - before < 5  # the file has 20


def test_a_pipe_is_refused_before_it_is_read(tiny: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"--data .*/pipe is a pipe .* Save its content in a file first; .* --data -"):
        open_corpus([str(tmp_path / "pipe")], None, load_encoder(tiny).tokenizer, 16)

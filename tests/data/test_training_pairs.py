from __future__ import annotations

from pathlib import Path

import pytest

from simcse_train.data.source import named
from simcse_train.data.training_pairs import open_training_pairs, read_training_pairs
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError

PAIRS = [("a man", "the man"), ("a dog, red", "the dog", "a cat")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'anchor,positive,negative\na man,the man,\n"a dog, red",the dog,a cat\n'),
        ("p.csv", 'negative,note,anchor,positive\n,x,a man,the man\na cat,y,"a dog, red",the dog\n'),
        ("p.csv", 'sent0,sent1,hard_neg\na man,the man,\n"a dog, red",the dog,a cat\n'),
        ("p.csv", 'a man,the man,\n"a dog, red",the dog,a cat\n'),
        ("p.tsv", "a man\tthe man\na dog, red\tthe dog\ta cat\n"),
        ("p.tsv", "query\tpositive\tnegative\na man\tthe man\t\na dog, red\tthe dog\ta cat\n"),
        (
            "p.jsonl",
            '{"anchor": "a man", "positive": "the man", "score": 3}\n'
            '{"positive": "the dog", "anchor": "a dog, red", "negative": "a cat"}\n',
        ),
        ("p.jsonl", '["a man", "the man"]\n["a dog, red", "the dog", "a cat"]\n'),
    ],
)
def test_pairs_are_read_by_the_names_of_the_columns_or_by_their_order(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert list(read_training_pairs(named(path, "--pairs"))) == PAIRS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "anchor,positive\na man,\n", "line 2 does not hold an anchor and a positive"),
        ("p.csv", "anchor,positive\na man\n", "line 2 has too few fields"),
        ("p.csv", "a man\na dog\n", "line 1 has too few fields.*anchor and positive"),
        ("p.jsonl", '{"anchor": "a", "positive": "b"}\n3\n', "line 2 is JSON but no object"),
        ("p.jsonl", '{"anchor": "a", "positive": 3}\n', "line 1: 'positive' is not text"),
        ("p.csv", "", "is empty.*anchor and positive"),
        ("p.csv", "anchor,positive\na man,a man\na man,a man\n", "holds the same sentence everywhere"),
    ],
)
def test_a_file_without_pairs_is_refused_with_the_line(
    tmp_path: Path, tiny: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=f"--pairs .*{name}.*{message}"):
        open_training_pairs(path, load_encoder(tiny).tokenizer, 16)


def test_sentences_are_numbered_once_and_a_missing_hard_negative_is_negative(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("anchor,positive,negative\na man,the man,\nthe man,a man,a cat\n")
    encoder = load_encoder(tiny)
    pairs = open_training_pairs(path, encoder.tokenizer, 4)
    assert pairs.rows.tolist() == [[0, 1, -1], [1, 0, 2]]
    assert pairs.sentences.sentences == ["a man", "the man", "a cat"]
    assert list(pairs.sentences.input_ids) == encoder.tokenizer.tokenize(["a man", "the man", "a cat"], 4)

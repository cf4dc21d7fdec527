"""Pairs of sentences in every format, with columns by name, by content and by position."""

from __future__ import annotations

import gzip
import io
import json
import logging
import zipfile
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simcse_train.data.pairs import Pair, read_columns, read_pairs
from simcse_train.data.source import named
from simcse_train.errors import InputError

PAIRS = [Pair("a man, old", "the man", 4.5), Pair("a cat", "guitar", 0.5)]
ROWS = [list(pair) for pair in PAIRS]


def parquet() -> bytes:
    stream = io.BytesIO()
    first, second, score = zip(*PAIRS, strict=True)
    pq.write_table(pa.table({"s1": first, "s2": second, "similarity": score, "id": [1, 2]}), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.tsv", b"text_a\ttext_b\tlabel\na man, old\tthe man\t4.5\na cat\tguitar\t0.5\n"),
        ("p.csv", b"sentence1;sentence2;score\na man, old;the man;4,5\na cat;guitar;0,5\n"),
        ("p.csv", b'premise,hypothesis,label\n"a man, old",the man,4.5\na cat,guitar,0.5\n'),
        ("p.csv", b',sentence_A,Sentence B,relatedness_score\n'
         + b'0,"a man, old",the man,4.5\n1,a cat,guitar,0.5\n'),
        ("p.csv", b'left part,right part,human\n"a man, old",the man,4.5\na cat,guitar,0.5\n'),
        ("p.csv", b'1,"a man, old",the man,4.5\n2,a cat,guitar,0.5\n'),
        ("p.tsv", b"4.5\ta man, old\tthe man\n0.5\ta cat\tguitar\n"),
        ("p.txt", b"x-1||a man, old||the man||4.5\nx-2||a cat||guitar||0.5\n"),
        ("p.txt", "sentence1\tsentence2\tscore\na man, old\tthe man\t4.5\na cat\tguitar\t0.5\n".encode("utf-16")),
        ("p.tsv.gz", gzip.compress(b"a man, old\tthe man\t4.5\na cat\tguitar\t0.5\n", mtime=0)),
        ("p.parquet", parquet()),
        ("p.json", json.dumps([dict(zip(["query", "positive", "label"], row, strict=True)) for row in ROWS]).encode()),
        ("p.jsonl", b'{"s1": "a man, old", "s2": "the man", "score": "4.5"}\n'
         b'{"s1": "a cat", "s2": "guitar", "score": 0.5}\n'),
    ],
)  # fmt: skip
def test_pairs_are_read_from_every_format(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_pairs(tmp_path / name) == PAIRS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "p.csv",
            b"sentence1,sentence2,score\na,b,-1\nc,d,-1\n",
            "all 2 pairs the same score, -1: they can't be ranked",
        ),
        (
            "p.jsonl",
            b'{"sentence1": "a", "sentence2": "b", "score": 1' + b"0" * 400 + b"}\n",
            "the score '10+' is not a number",
        ),
        ("p.csv", b"sentence1,sentence2,score\na,b,nan\nc,d,1\n", "line 2: the score 'nan' is not a number"),
        ("p.csv", b"premise,hypothesis,label\na,b,neutral\nc,d,entailment\n", "line 2: the score 'neutral'"),
        (
            "p.csv",
            b"sentence1,sentence2\na,b\nc,d\n",
            "columns are 'sentence1', 'sentence2'.*sentence1, sentence2 and score",
        ),
        ("p.csv", b"sentence1,sentence2,score\n,b,1\n,d,2\n", "no text in the first sentence of any"),
        ("p.csv", b"sentence1,sentence2,score\n1,b,1\n2,d,2\n", "only numbers, such as 1, in column 'sentence1'"),
        ("p.txt", b"only text\nand more\n", "line 1 has too few fields.*sentence1, sentence2 and score"),
        ("p.json", b'[{"s1": ["a"], "s2": "b", "score": 1}]', "line 1: 's1' is not text"),
        ("p.tsv", "a\tb\t1\nc\tcafé\t2\n".encode("latin-1"), "line 2 is not valid UTF-8.*--encoding"),
    ],
)
def test_pairs_that_can_not_be_scored_are_refused_with_the_reason(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"^--eval .*{name}.*{message}"):
        read_pairs(tmp_path / name, "--eval")


COUNTED = [(f"sentence {n}", f"other {n}") for n in range(20)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "id,sentence1,sentence2\n7,a,b\n3,c,d\n", "no columns for a pair that can be told"),
        ("p.csv", ",sentence1,sentence2\n0,a,b\n1,c,d\n", "no columns for a pair that can be told"),
        ("p.tsv", "".join(f"{n}\t{a}\t{b}\n" for n, (a, b) in enumerate(COUNTED, 1)), "'1'.* counts the records"),
        ("p.csv", "place,s1,s2\n" + "".join(f"{n},{a},{b}\n" for n, (a, b) in enumerate(COUNTED)), "'place'.* counts"),
        ("p.csv", "s1,s2,distance\na,b,0.5\nc,d,1.5\n", "'distance', which is the greater the less alike"),
    ],
)  # fmt: skip
def test_numbers_that_are_no_scores_are_not_taken_for_them(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / name)


def test_scores_are_found_beside_the_number_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("Pair ID,left part,right part,human\n7,a,b,4.5\n3,c,d,0.5\n")
    assert read_pairs(tmp_path / "p.csv") == [Pair("a", "b", 4.5), Pair("c", "d", 0.5)]
    rising = "".join(f"{a},{b},{n}\n" for n, (a, b) in enumerate(COUNTED))
    (tmp_path / "p.csv").write_text(f"sentence1,sentence2,score\n{rising}")  # a name says that they are scores
    assert len(read_pairs(tmp_path / "p.csv")) == 20


def test_pairs_in_an_encoding_that_the_user_names(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_bytes("a\tb\t1\nc\tcafé\t2\n".encode("latin-1"))
    assert read_pairs(tmp_path / "p.tsv", encoding="latin-1") == [Pair("a", "b", 1), Pair("c", "café", 2)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", "sent0,sent1,hard_neg\na,b,c\nd,e,f\n", [("a", "b", "c"), ("d", "e", "f")]),
        ("p.csv", "id,anchor,positive\n1,a,b\n2,d,e\n", [("a", "b", None), ("d", "e", None)]),
        ("p.jsonl", '{"query": "a", "positive": "b", "negative": "c"}\n', [("a", "b", "c")]),
        ("p.tsv", "How are you?\tHow do you do?\nBye now.\tSee you.\n", [
            ("How are you?", "How do you do?", None), ("Bye now.", "See you.", None),
        ]),
    ],
)  # fmt: skip
def test_columns_without_scores_are_found_for_training_pairs(
    name: str, content: str, expected: list[tuple[str, str, str | None]], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    rows = read_columns(named(tmp_path / name, "--pairs"), ("first", "second"), ("negative",))
    assert [(row["first"], row["second"], row["negative"]) for _, row in rows] == expected


def test_the_columns_that_were_taken_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "p.tsv").write_text("text_a\ttext_b\tlabel\na b\tc\t1\nd\te\t2\n")
    read_pairs(tmp_path / "p.tsv")
    assert "first from 'text_a', second from 'text_b', score from 'label', for example 'a b' / 'c' / '1'" in caplog.text


def test_the_published_sts_files_are_read(shared: Path) -> None:
    for name, count in (("STSBenchmark/sts-dev.csv", 1500), ("STSBenchmark/sts-test.csv", 1379),
                        ("STS-B-zh/cnsd-sts-dev.txt", 1458), ("STS-B-zh/cnsd-sts-test.txt", 1361)):  # fmt: skip
        pairs = read_pairs(shared / "sts" / name)
        assert len(pairs) == count
        assert all(pair.first and pair.second and 0 <= pair.score <= 5 for pair in pairs)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "question1,question2,is_duplicate\na,b,1\nc,d,0\n"),
        ("p.tsv", "premise\thypothesis\tlabel\na\tb\tentailment\nc\td\tcontradiction\n"),
        ("p.jsonl", '{"s1": "a", "s2": "b", "score": 5.0}\n{"s1": "c", "s2": "d", "score": 0.5}\n'),
        ("sorted.csv", "s1,s2,label\n" + "a,b,1\n" * 500 + "c,d,0\n" * 500),
    ],
)
def test_graded_pairs_are_not_learned_as_if_all_were_alike(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"scores or labels in column '.*', such as \S+ and \S+, .*remove the column"):
        list(read_columns(named(tmp_path / name, "--pairs"), ("first", "second"), ("negative",)))


def test_graded_pairs_are_noticed_where_an_archive_has_a_member_for_each_grade(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for grade in "10":
            archive.writestr(f"{grade}.csv", f"s1,s2,label\na{grade},b,{grade}\nc{grade},d,{grade}\n")
    with pytest.raises(InputError, match="in column 'label', such as 0 and 1, and all pairs would be learned as alike"):
        list(read_columns(named(tmp_path / "p.zip", "--pairs")))


def test_a_grade_that_says_nothing_or_is_beside_named_positives_is_left_out(tmp_path: Path) -> None:
    for content in ("s1,s2,label\na,b,1\nc,d,1\n", "query,positive,score\na,b,0.3\nc,d,0.9\n"):
        (tmp_path / "p.csv").write_text(content)
        rows = read_columns(named(tmp_path / "p.csv", "--pairs"), ("first", "second"), ("negative",))
        assert [tuple(row.values()) for _, row in rows] == [(None, "a", "b"), (None, "c", "d")]


def test_a_column_of_lists_or_dates_beside_the_scores_is_no_score(tmp_path: Path) -> None:
    first, second, score = zip(*PAIRS, strict=True)
    beside = {"one": first, "other": second, "words": [["a", "man"], ["a", "cat"]], "value": score}
    pq.write_table(pa.table({**beside, "day": [date(2020, 1, 1), date(2020, 1, 2)]}), tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet") == PAIRS
    rows = [dict(zip(beside, row, strict=True)) for row in zip(*beside.values(), strict=True)]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    assert read_pairs(tmp_path / "p.json") == PAIRS


def test_a_missing_score_of_parquet_leaves_its_pair_out(tmp_path: Path) -> None:
    first, second, score = zip(*PAIRS, ("e", "f", float("nan")), strict=True)
    pq.write_table(pa.table({"s1": first, "s2": second, "score": score}), tmp_path / "p.parquet")
    assert read_pairs(tmp_path / "p.parquet") == PAIRS


def test_a_missing_grade_is_no_other_grade(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("s1,s2,label\na,b,1\nc,d, \ne,f, 1\n")
    table = pa.table({"s1": ["a", "c", "e"], "s2": ["b", "d", "f"], "label": [1.0, float("nan"), 1.0]})
    pq.write_table(table, tmp_path / "p.parquet")
    for name in ("p.csv", "p.parquet"):
        rows = read_columns(named(tmp_path / name, "--pairs"))
        assert [tuple(row.values()) for _, row in rows] == [("a", "b"), ("c", "d"), ("e", "f")]


def test_pairs_of_the_same_sentence_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("a man\ta man\t1\na cat\ta cat\t2\nthe dog\tthe dog\t0\n")
    with pytest.raises(InputError, match="same sentence twice in each of its 3 pairs"):
        read_pairs(tmp_path / "p.tsv", "--eval")


def test_decimals_of_a_data_base_are_scores(tmp_path: Path) -> None:
    scores = [Decimal("1.50"), Decimal("4.25")]
    columns = {"sentence1": ["a", "c"], "sentence2": ["b", "d"], "score": pa.array(scores, pa.decimal128(5, 2))}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    assert [pair.score for pair in read_pairs(tmp_path / "p.parquet")] == [1.5, 4.25]

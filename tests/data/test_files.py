from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_train.data.files import find_files, read_texts
from simcse_train.errors import InputError

CASES = int(os.environ.get("SIMCSE_TRAIN_FUZZ_CASES", "100"))


def read(name: str, content: bytes, column: str | None = None) -> list[str]:
    return list(read_texts(io.BytesIO(content), Path(name), column))


def test_a_line_ends_at_a_line_feed_and_nowhere_else() -> None:
    odd = "one\u2028still one\x0bone\x0cone\x1cone\x85one\rone"
    assert read("x.txt", f"{odd}\ntwo\r\nthree\n\nfive".encode()) == [odd, "two", "three", "", "five"]


def test_a_byte_order_mark_is_no_text_at_the_start_and_text_elsewhere() -> None:
    assert read("x.txt", "\ufeffone\n\ufefftwo".encode()) == ["one", "\ufefftwo"]


@pytest.mark.parametrize(
    "text", ["emoji 👩‍👩‍👧 and 🇩🇪", "مرحبا بالعالم", "今天天气很好我们去公园散步", "[SEP] [CLS]", "a" * 100_000]
)
def test_scripts_of_all_kinds_are_read_as_they_are(text: str) -> None:
    assert read("x.txt", f"{text}\n{text} again\n".encode()) == [text, f"{text} again"]


@pytest.mark.parametrize(
    ("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files_are_read_and_damaged_ones_named(ending: str, compress: Callable[[bytes], bytes]) -> None:
    whole = compress(b"one\ntwo\n" * 1000)
    assert read("x.txt" + ending, whole) == ["one", "two"] * 1000
    assert read("x.csv" + ending, compress(b"t\na b\n")) == ["a b"]
    for damaged in (
        whole[:-5],
        b"no such format",
        whole[: len(whole) // 2] + b"\xff\xff" + whole[len(whole) // 2 + 2 :],
    ):
        with pytest.raises(InputError, match="x.txt" + ending):
            read("x.txt" + ending, damaged)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\n\xff\xfe broken\n", "line 2 is not valid UTF-8"),
        (b"fine\nfine\nlone \xed\xa0\x80\n", "line 3 is not valid UTF-8"),
        (b"fine\n\0\n", "line 2 holds a NUL byte"),
        ("text".encode("utf-16"), "UTF-16"),
    ],
)
def test_what_is_no_utf8_text_is_refused_with_the_line(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("x.txt", content)


def test_csv_keeps_quoted_commas_and_line_ends() -> None:
    content = b'id,text\n1,"a, b"\n2,"two\nlines ""quoted"""\n\n3,c\n'
    assert read("x.csv", content) == ["a, b", 'two\nlines "quoted"', "", "c"]


def test_a_quotation_mark_in_a_tsv_is_text() -> None:
    assert read("x.tsv", b'text\tn\n"open\t1\nclosed"\t2\n') == ['"open', 'closed"']


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.parquet"])
def test_the_only_text_column_is_taken_and_several_are_listed(name: str) -> None:
    def table(columns: dict[str, list[str]]) -> bytes:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if name.endswith("jsonl"):
            return "".join(json.dumps(r | {"n": 1}) + "\n" for r in rows).encode()
        if name.endswith("parquet"):
            buffer = io.BytesIO()
            pq.write_table(pa.table(columns | {"n": [1] * len(rows)}), buffer)
            return buffer.getvalue()
        mark = "," if name.endswith("csv") else "\t"
        lines = [[*columns, "n"], *([*row.values(), "1"] for row in rows)]
        return "".join(mark.join(line) + "\n" for line in lines).encode()

    one = table({"body": ["first one", "second one"]})
    two = table({"title": ["t1", "t2"], "body": ["first one", "second one"]})
    assert read(name, one) == ["first one", "second one"]
    assert read(name, two, "title") == ["t1", "t2"]
    with pytest.raises(InputError, match="2 columns of text.*'title', 'body', 'n'.*--text-column"):
        read(name, two)
    with pytest.raises(InputError, match="no column 'bdoy'.*'title', 'body', 'n'"):
        read(name, two, "bdoy")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b'a,b\nx,y\n"open,z\n', "not valid csv"),
        ("x.csv", b"a,b\n1,y\n2,y,z\n", "line 3 has 3 fields"),
        ("x.jsonl", b'{"t": "a"}\n{"t": \n', "line 2 is not valid JSON"),
        ("x.jsonl", b'["a"]\n', "line 1 is JSON but no object"),
        ("x.jsonl", b'{"t": "a"}\n{"t": 5}\n', "line 2: 't' is not text"),
        ("x.jsonl", b'{"t": "\\ud800"}\n', "line 1 holds half of a surrogate pair"),
        ("x.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
        ("x.parquet", b"PAR1 no", "not a readable parquet file"),
    ],
)
def test_a_damaged_table_is_refused_with_the_line(name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(name, content)


def test_null_and_missing_values_are_empty() -> None:
    assert read("x.jsonl", b'{"t": "a"}\n{"t": null}\n\n{}\n') == ["a", "", "", ""]


FORMATS = [".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".txt.gz", ".csv.bz2", ".tsv.gz", ".jsonl.xz"]
COMPRESS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    ".gz": (gzip.compress, gzip.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".xz": (lzma.compress, lzma.decompress),
}
# A carriage return within a csv or tsv field ends a line for some programs, so the reader may refuse it.
clean = st.text(alphabet=st.characters(exclude_characters="\n\r\t\0\ufeff", exclude_categories=["Cs"]), max_size=20)


def written(ending: str, sentences: list[str], end: str = "\n") -> bytes:
    """Return a file of the sentences, in a column `t` beside a number where the format has columns, by the format's usual writer."""
    inner, *compressed = [f".{part}" for part in ending.split(".")[1:]]
    buffer = io.StringIO(newline="")
    if inner == ".parquet":
        stream = io.BytesIO()
        pq.write_table(pa.table({"n": range(len(sentences)), "t": pa.array(sentences, pa.string())}), stream)
        return stream.getvalue()
    if inner == ".csv":
        csv.writer(buffer, lineterminator=end).writerows([["n", "t"], *enumerate(sentences)])
    elif inner == ".tsv":
        buffer.write("n\tt" + end + "".join(f"{n}\t{s}{end}" for n, s in enumerate(sentences)))
    elif inner == ".jsonl":
        buffer.write(
            "".join(json.dumps({"n": n, "t": s}, ensure_ascii=n % 2 == 0) + end for n, s in enumerate(sentences))
        )
    else:
        buffer.write("".join(s + end for s in sentences))
    content = buffer.getvalue().encode()
    return COMPRESS[compressed[0]][0](content) if compressed else content


def columns(ending: str, content: bytes) -> list[list[str]]:
    """Read a file the slow and plain way; return the texts of each column that its records could be read from."""
    inner, *compressed = [f".{part}" for part in ending.split(".")[1:]]
    if compressed:
        content = COMPRESS[compressed[0]][1](content)
    if inner == ".parquet":
        return [
            found
            for name in pq.read_schema(io.BytesIO(content)).names
            if (found := parquet_column(content, name)) is not None
        ]
    text = content.decode("utf-8")
    lines = text.split("\n")[: -1 if text.endswith("\n") or not text else None]
    lines = [line[:-1] if line.endswith("\r") else line for line in lines]
    lines[:1] = [line.removeprefix("\ufeff") for line in lines[:1]]
    if inner == ".jsonl":
        records = [json.loads(line) if line.strip() else {} for line in lines]
        names = {name for record in records for name in record}
        return [[record.get(name) or "" for record in records] for name in names] or [["" for _ in records]]
    if inner == ".txt":
        return [lines]
    table = (
        [line.split("\t") if line else [] for line in (x.rstrip("\r") for x in lines)]
        if inner == ".tsv"
        else csv_records(lines)
    )
    width = len(table[0]) if table else 0
    assert all(len(row) in (0, width) for row in table)
    return [[row[i] if row else "" for row in table[1:]] for i in range(width)] or [["" for _ in table[1:]]]


def parquet_column(content: bytes, name: str) -> list[str] | None:
    """Read one column of a parquet file by another function than the reader's; None where it is damaged."""
    try:
        return [value or "" for value in pq.read_table(io.BytesIO(content), columns=[name]).column(0).to_pylist()]
    except (OSError, pa.ArrowException, UnicodeDecodeError, IndexError):
        return None


def csv_records(lines: list[str]) -> list[list[str]]:
    """Read the lines of a csv letter by letter (RFC 4180): a quoted field may hold commas, line ends and doubled quotes."""
    records, row = [], [""]
    quoted = closed = returned = False
    started = False  # does the record hold anything yet
    for letter in "".join(line + "\n" for line in lines):
        assert letter in "\r\n" or not returned
        returned = letter == "\r" and not quoted
        if returned:
            continue  # carriage returns before a line end belong to it
        if quoted:
            quoted, closed = (False, True) if letter == '"' else (True, False)
            row[-1] += letter if quoted else ""
        elif letter == '"' and closed:
            row[-1] += letter
            quoted, closed = True, False
        elif letter == '"' and not row[-1]:
            quoted = started = True
        elif letter == "\n":
            records.append(row if started else [])
            row, closed, started = [""], False, False
        elif letter == ",":
            row.append("")
            closed, started = False, True
        else:
            assert not closed
            row[-1] += letter
            started = True
    assert not quoted
    return records


@pytest.mark.parametrize("ending", FORMATS)
@settings(max_examples=CASES, deadline=None)
@given(st.lists(clean, min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_no_sentence_is_glued_or_split(ending: str, sentences: list[str], end: str) -> None:
    column = None if ending.startswith(".txt") else "t"
    assert read("x" + ending, written(ending, sentences, end), column) == sentences


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@settings(max_examples=CASES, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_characters="\r\0\ufeff", exclude_categories=["Cs"]), max_size=20),
        min_size=1,
    )
)
def test_a_field_with_line_ends_is_one_sentence(ending: str, sentences: list[str]) -> None:
    assert read("x" + ending, written(ending, sentences), "t") == sentences


@st.composite
def harmed(draw: st.DrawFn, ending: str) -> bytes:
    """Arbitrary bytes, or a good file in which a few bytes were changed, left out or put in."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200) | st.text(alphabet='ab",\n\r\t{}:[]\\', max_size=40).map(str.encode))
    content = written(
        ending, draw(st.lists(clean | st.text(alphabet='ab", \r\n\t', max_size=6), min_size=1, max_size=5))
    )
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(content)))
        piece = draw(
            st.sampled_from([b"", b"\n", b"\r", b'"', b",", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"}"])
            | st.binary(max_size=2)
        )
        content = content[:place] + piece + content[place + draw(st.integers(0, 2)) :]
    return content


@pytest.mark.parametrize("ending", FORMATS)
@settings(max_examples=CASES, deadline=None)
@given(st.data())
def test_arbitrary_bytes_give_the_texts_of_a_plain_reading_or_the_documented_error(
    ending: str, data: st.DataObject
) -> None:
    content = data.draw(harmed(ending))
    column = data.draw(st.sampled_from([None, "t"]))
    try:
        texts = read("x" + ending, content, column)
    except InputError as error:
        assert "x" + ending in str(error)
    else:
        assert texts in columns(ending, content)
        for text in texts:
            text.encode("utf-8")


def test_folders_and_globs_give_their_text_files_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.csv", "c.txt.gz", "image.png", "sub/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [p.name for p in find_files([str(tmp_path)])] == ["a.csv", "b.txt", "c.txt.gz", "d.jsonl"]
    assert [p.name for p in find_files([str(tmp_path / "*.txt"), str(tmp_path / "b.txt")])] == ["b.txt"]
    for nothing in ("nowhere.txt", "*.parquet", "x\0y"):
        with pytest.raises(InputError, match="--data"):
            find_files([str(tmp_path / nothing)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no text file in that folder"):
        find_files([str(tmp_path / "empty")])

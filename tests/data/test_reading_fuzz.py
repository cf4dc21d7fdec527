"""Property tests of the reader: what writers write is read back, and damaged bytes are read plainly or refused."""

from __future__ import annotations

import csv
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simcse_train.data.records import is_number
from simcse_train.errors import InputError
from tests.data.plain_reading import COMPRESS, is_utf8, readings
from tests.data.reading import read

CASES = int(os.environ.get("SIMCSE_TRAIN_FUZZ_CASES", "100"))
FORMATS = [
    ".txt",
    ".csv",
    ".tsv",
    ".jsonl",
    ".parquet",
    ".txt.gz",
    ".csv.bz2",
    ".tsv.gz",
    ".jsonl.xz",
    ".json",
    ".json.zst",
    ".arrow",
]
# A carriage return within a csv or tsv field ends a line for some programs, so the reader may refuse it.
clean = st.text(alphabet=st.characters(exclude_characters="\n\r\t\0\ufeff", exclude_categories=["Cs"]), max_size=20)


def written(ending: str, sentences: list[str], end: str = "\n") -> bytes:
    """Return a file of sentences by its format's usual writer, in a column `t` beside a number if it has columns."""
    inner, *compressed = [f".{part}" for part in ending.split(".")[1:]]
    buffer = io.StringIO(newline="")
    if inner == ".parquet":
        stream = io.BytesIO()
        pq.write_table(pa.table({"n": range(len(sentences)), "t": pa.array(sentences, pa.string())}), stream)
        return stream.getvalue()
    if inner == ".arrow":
        stream = io.BytesIO()
        table = pa.table({"n": range(len(sentences)), "t": pa.array(sentences, pa.string())})
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        return stream.getvalue()
    if inner == ".csv":
        csv.writer(buffer, lineterminator=end).writerows([["n", "t"], *enumerate(sentences)])
    elif inner == ".tsv":
        buffer.write("n\tt" + end + "".join(f"{n}\t{s}{end}" for n, s in enumerate(sentences)))
    elif inner == ".json":
        buffer.write(json.dumps([{"n": n, "t": s} for n, s in enumerate(sentences)], indent=1))
    elif inner == ".jsonl":
        buffer.write(
            "".join(json.dumps({"n": n, "t": s}, ensure_ascii=n % 2 == 0) + end for n, s in enumerate(sentences))
        )
    else:
        buffer.write("".join(s + end for s in sentences))
    content = buffer.getvalue().encode()
    return COMPRESS[compressed[0]][0](content) if compressed else content


def is_ambiguous(ending: str, sentences: list[str]) -> bool:
    """Say whether a file of these sentences is rightly read otherwise.

    A column of numbers, JSON or markup, quoted fields.
    """
    filled = [s for s in sentences if s.strip()]
    if ending.startswith(".txt"):
        return (bool(filled) and filled[0].lstrip()[:1] in ("<", "{", "[", '"')) or any("|" in s for s in filled)
    if len(filled) > 1 and all(map(is_number, filled)):
        return True
    return ending.startswith(".tsv") and any(s.startswith('"') and s.endswith('"') and '""' in s for s in filled)


@pytest.mark.parametrize("ending", FORMATS)
@settings(max_examples=CASES, deadline=None)
@given(st.lists(clean, min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_no_sentence_is_glued_or_split(ending: str, sentences: list[str], end: str) -> None:
    column = None if ending.startswith(".txt") else "t"
    assume(not is_ambiguous(ending, sentences))
    assert read("x" + ending, written(ending, sentences, end), column) == sentences


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".parquet", ".arrow"])
@settings(max_examples=CASES, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_characters="\r\0\ufeff", exclude_categories=["Cs"]), max_size=20),
        min_size=1,
    )
)
def test_a_field_with_line_ends_is_one_sentence(ending: str, sentences: list[str]) -> None:
    assume(not is_ambiguous(ending, sentences))
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
        assert texts in readings(ending, content)
        for text in texts:
            text.encode("utf-8")


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[str]], str, int, str, str]:
    """Rows of texts, a separator, a quoting, an encoding and a compression."""
    letters = st.characters(exclude_characters="\r\0\ufeff", exclude_categories=["Cs", "Co", "Cn"])
    field = st.text(alphabet=letters | st.sampled_from(",;|\t\"'\\ "), max_size=12)
    width = draw(st.integers(2, 4))
    rows = draw(st.lists(st.lists(field, min_size=width, max_size=width), min_size=1, max_size=6))
    separator = draw(st.sampled_from(",;\t|"))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030"]))
    return rows, separator, quoting, encoding, draw(st.sampled_from(["", *COMPRESS]))


@settings(max_examples=4 * CASES, deadline=None)
@given(tables())
def test_a_table_is_read_back_whatever_its_separator_quoting_encoding_and_compression(
    drawn: tuple[list[list[str]], str, int, str, str],
) -> None:
    rows, separator, quoting, encoding, compression = drawn
    texts = [row[1] for row in rows]
    filled = [text for text in texts if text.strip()]
    assume(not (len(filled) > 1 and all(map(is_number, filled))))  # refused: no sentences
    # Nothing in the file tells whether these marks enclose or belong to the text, as they always do where a tab
    # follows.
    assume(
        separator != "\t" or quoting != csv.QUOTE_MINIMAL or not any("\n" in f or '"' in f for row in rows for f in row)
    )
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=separator, quoting=quoting, lineterminator="\n")  # type: ignore[arg-type]
    writer.writerows([["id", "text", "note", "label"][: len(rows[0])], *rows])
    content = buffer.getvalue().encode(encoding)
    assume(encoding != "gb18030" or not is_utf8(content) or content.isascii())
    name = "x.csv" + compression
    packed = COMPRESS[compression][0](content) if compression else content
    assert read(name, packed, "text", "gb18030" if encoding == "gb18030" else None) == texts

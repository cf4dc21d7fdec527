"""Which format a file is taken for, and what is made of it."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import logging
import lzma
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from simcse_train.data.compression import zstd
from simcse_train.data.files import find_files, open_file
from simcse_train.data.source import named
from simcse_train.data.texts import read_texts
from simcse_train.errors import InputError
from tests.conftest import EXAMPLES
from tests.data.reading import read

SENTENCES = ["The quiet painter slept.", "A narrow road, and long; very.", 'He said "no" twice.']
OBJECTS = [{"id": number, "body": sentence} for number, sentence in enumerate(SENTENCES)]


def zipped(members: dict[str, str | bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def arrow_file(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", json.dumps(OBJECTS)),
        ("x.json", json.dumps(OBJECTS, indent=2)),
        ("x.txt", json.dumps(OBJECTS)),
        ("notes", "\n".join(map(json.dumps, OBJECTS))),
        ("x.json", "\n".join(map(json.dumps, OBJECTS))),
        ("x.json", "\n".join(json.dumps(one, indent=1) for one in OBJECTS)),
        ("x.jsonl", json.dumps(OBJECTS, indent=1)),
        ("x.csv", "\n".join(map(json.dumps, OBJECTS))),
        ("x.json", json.dumps(SENTENCES)),
        ("x.json", json.dumps({"version": 1, "data": OBJECTS})),
        ("x.json", json.dumps({"data": [{"meta": {"body": sentence}} for sentence in SENTENCES]})),
        ("x.json", json.dumps({"id": [0, 1, 2], "body": SENTENCES})),
        ("x.json", json.dumps({"body": {str(i): s for i, s in enumerate(SENTENCES)}})),
        ("x.json", json.dumps({"a": OBJECTS[0], "b": OBJECTS[1], "c": OBJECTS[2]})),
        ("x.json", json.dumps({"n": {"4": 0, "7": 1, "9": 2}, "body": dict(zip("479", SENTENCES, strict=True))})),
        ("x.json", json.dumps({"4": OBJECTS[0], "7": OBJECTS[1], "9": OBJECTS[2]})),
        ("x.json", json.dumps({"columns": ["id", "body"], "data": [[1, sentence] for sentence in SENTENCES]})),
        ("x.json", json.dumps([[1, sentence] for sentence in SENTENCES])),
    ],
)
def test_json_of_every_layout_gives_its_texts(name: str, content: str) -> None:
    assert read(name, content.encode()) == SENTENCES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"t": "a"},\n{"t": "b"', "x.json, line 2 is not valid JSON"),
        (b'[{"t": "a"}]\n[', "line 2 goes on after the end of the JSON array"),
        (b'{"train": [{"t": "a"}], "test": [{"t": "b"}]}', "several arrays .'train', 'test'."),
        (b'[{"t": 1}, {"t": 2}]', "no column of text: it holds 't' .numbers."),
        (b'[\n"a",\n"b \\ud800"]', "line 3 holds half of a surrogate pair"),
        (b'["a", 5]', "no object, list or string"),
        (b'["a", "\xff"]', "not valid"),
        (b'["a", "b"]x', "line 1 goes on after the end of the JSON array"),
        ('["a", "b"]é'.encode(), "line 1 goes on after the end of the JSON array"),
        ("é".encode(), "line 1 is not valid JSON"),
        (b"[" * 100_000, "line 1 is not valid JSON"),
    ],
)
def test_json_that_is_damaged_or_holds_no_text_is_refused_with_the_reason(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("x.json", content)


def test_text_that_stands_under_another_name_further_on_is_not_left_out_in_silence() -> None:
    lines = [f'{{"text": "sentence {n}"}}' for n in range(150)]
    with pytest.raises(InputError, match="line 152 has no 'text' and text in 'content'.*--text-column"):
        read("x.jsonl", "\n".join([*lines, '{"text": null, "note": "x"}', '{"content": "other"}']).encode())
    with pytest.raises(InputError, match="line 1 has no 'text' and text in 'content'"):
        read("x.json", ("[" + ", ".join([*lines, '{"content": "other"}']) + "]").encode())
    assert read("x.jsonl", "\n".join([*lines, '{"content": "other"}']).encode(), "text")[-2:] == ["sentence 149", ""]
    assert read("x.jsonl", "\n".join([*lines, '{"number": 5}', "{}"]).encode())[-3:] == ["sentence 149", "", ""]


def test_a_long_json_array_is_read_value_by_value() -> None:
    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 <= size <= 1 << 18  # never all of it
            return super().read(size)

    texts = [f"sentence {number} " + "é" * (number % 50) for number in range(20_000)]
    stream = Counted(json.dumps([{"t": text} for text in texts], ensure_ascii=False).encode())
    assert list(read_texts(stream, named(Path("x.json")), say=False)) == texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "id;text\n1;Grüße, aus Köln\n2;b, c\n"),
        ("x.csv", "\ufeffid;text\r\n1;Grüße, aus Köln\r\n2;b, c\r\n"),
        ("x.csv", "sep=;\nid;text\n1;Grüße, aus Köln\n2;b, c\n"),
        ("x.csv", "1;Grüße, aus Köln\n2;b, c\n"),
        ("x.csv", "id|text\n1|Grüße, aus Köln\n2|b, c\n"),
        ("x.csv", "id\ttext\n1\tGrüße, aus Köln\n2\tb, c\n"),
        ("x.tsv", '"text"\t"n"\n"Grüße, aus Köln"\t"1"\n"b, c"\t"2"\n'),
        ("x.txt", "id\ttext\n1\tGrüße, aus Köln\n2\tb, c\n"),
        ("x.csv", 'id,text\n1,"Grüße, aus Köln"\n2,"b, c"\n'),
        ("x.csv", 'id, text\n1, "Grüße, aus Köln"\n2, "b, c"\n'),
        ("x.csv", ',text\n0,"Grüße, aus Köln"\n1,"b, c"\n'),
        ("x.csv", "text\nGrüße, aus Köln\nb, c\n"),
        ("x.csv", "id;text\r1;Grüße, aus Köln\r2;b, c\r"),
    ],
)
def test_separator_quoting_and_header_of_a_table_are_found(name: str, content: str) -> None:
    assert read(name, content.encode()) == ["Grüße, aus Köln", "b, c"]


def test_a_backslash_before_a_quotation_mark_is_understood() -> None:
    assert read("x.csv", b'id,text\n1,"say \\"hi\\", ok"\n2,"b"\n') == ['say "hi", ok', "b"]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("The first sentence.\nThe second one.\n", ["The first sentence.", "The second one."]),
        ("1,Hello there friend\n2,How are you today\n", ["Hello there friend", "How are you today"]),
        ("positive,I liked it\nnegative,I hated it\npositive,great fun\n", ["I liked it", "I hated it", "great fun"]),
        ("今天天气很好我们去公园散步\n一只猫坐在垫子上\n", ["今天天气很好我们去公园散步", "一只猫坐在垫子上"]),
        ("apple\nbanana\ncherry\n", ["apple", "banana", "cherry"]),
    ],
)
def test_a_table_without_a_header_keeps_its_first_line(content: str, texts: list[str]) -> None:
    column = "2" if content.startswith("positive") else None
    assert read("x.csv", content.encode(), column) == texts


def test_a_first_field_that_returns_below_it_is_no_name() -> None:
    assert read("x.csv", b"x,hi\nx,a longer one\nx,another one there\n", "2") == [
        "hi",
        "a longer one",
        "another one there",
    ]
    with pytest.raises(InputError, match="no header"):
        read("x.csv", b"x,hi\nx,a longer one\nx,another one there\n")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("文本\n今天天气很好我们去公园散步\n", ["今天天气很好我们去公园散步"]),
        ("Kommentar;Wert\nDas war gut;1\nDas nicht;2\n", ["Das war gut", "Das nicht"]),
        ("Was it good?;How old are you?\nYes it was;31\nNot at all;42\n", ["Yes it was", "Not at all"]),
    ],
)
def test_a_header_is_told_by_its_names_or_by_the_numbers_below(content: str, texts: list[str]) -> None:
    assert read("x.csv", content.encode()) == texts


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("x.csv", b"Report of May\nid,text\n1,a b\n2,c\n", None, "line 1 is a single field.*looks like a title"),
        ("x.csv", b"Hello, world\nThis is it\nFoo, bar, baz\n", None, "line 2 has 1 field where the first line has 2"),
        ("x.csv", b"id,n\n1,4\n2,5\n", None, "no column of text: it holds 'id' .numbers., 'n' .numbers."),
        ("x.csv", b"id,text\n1,a\n2,b\n", "id", "only numbers in column 'id'"),
        ("x.csv", b"a,b\n", "c", "no column 'c'"),
        ("x.csv", b"id,text\n", None, "no column of text: it holds 'id' .empty."),
        ("x.txt", b"one\ntwo\n", "text", "is read as lines of text and has no column for --text-column 'text'"),
        ("x.parquet", parquet(pa.table({"t": [["a"], ["b"]]})), "t", "no text in column 't' but list"),
        ("x.parquet", parquet(pa.table({"n": [1, 2]})), None, "no column of text"),
        (
            "x.parquet",
            parquet(pa.Table.from_arrays([pa.array(["a b"])] * 2, ["t", "t"])),
            "t",
            "columns with the name 't'",
        ),
        ("x.csv", b"id,text,note\n1,,\n2,,\n", None, "no text in its first records.*'text' .empty.*--text-column"),
        ("x.arrow", arrow_file(pa.table({"t": ["a", "b"]}))[:150], None, "not a readable arrow file"),
    ],
)
def test_a_table_that_can_not_be_understood_is_refused_with_the_reason(
    name: str, content: bytes, column: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=f"^--data {name}.*{message}"):
        read(name, content, column)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(SENTENCES),
        pa.array(SENTENCES, pa.large_string()),
        pa.array(SENTENCES).dictionary_encode(),
        pa.array([{"inner": sentence, "n": 1} for sentence in SENTENCES]),
        pa.array(SENTENCES, pa.string_view()),
    ],
)
def test_parquet_and_arrow_columns_of_every_kind_of_string_are_text(column: pa.Array) -> None:
    table = pa.table({"body": column, "n": [1, 2, 3]})
    if not pa.types.is_string_view(column.type):
        assert read("x.parquet", parquet(table)) == SENTENCES
        assert read("x.parquet.gz", gzip.compress(parquet(table))) == SENTENCES
        assert read("wrong.csv", parquet(table)) == SENTENCES
    assert read("x.arrow", arrow_file(table)) == SENTENCES


def test_archives_give_the_text_of_their_members_in_order() -> None:
    members: dict[str, str | bytes] = {
        "d/b.csv": "id,text\n1,second one\n",
        "d/a.txt": "first\n",
        "__MACOSX/._a": b"\0",
        "__MACOSX/._a.txt": "no text of the user's\n",
        "d/.b.txt": "nor this\n",
    }
    assert read("x.zip", zipped(members)) == ["first", "second one"]
    assert read("x.zip.gz", gzip.compress(zipped(members))) == ["first", "second one"]
    assert read("x.zip", zipped({**members, "logo.png": b"\x89PNG\r\n\x1a\n\0"})) == ["first", "second one"]
    assert read("x.txt", gzip.compress(b"first\n")) == ["first"]  # whatever its name


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_an_archive_with_any_byte_changed_is_read_or_refused(method: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("größe.txt", "first\nsecond one\n")
    content = stream.getvalue()
    for place in range(len(content)):
        for bits in (0x08, 0x41, 0x80, 0xFF):
            changed = bytearray(content)
            changed[place] ^= bits
            with contextlib.suppress(InputError):
                assert all(isinstance(text, str) for text in read("x.zip", bytes(changed)))


def test_a_column_whose_name_is_not_utf8_is_refused() -> None:
    stream = io.BytesIO()
    table = pa.table({"größe": ["a", "b"]})
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match="x.arrow is not a readable arrow file"):
        read("x.arrow", stream.getvalue().replace("größe".encode(), b"gr\xf6\xff\xfe\xfde"))


def test_damaged_offsets_of_an_arrow_file_are_found_before_they_are_followed(tmp_path: Path) -> None:
    content = arrow_file(pa.table({"t": ["first one", "second one", "third"]}))
    offsets = struct.pack("<4i", 0, 9, 19, 24)
    assert content.count(offsets) == 1
    (tmp_path / "x.arrow").write_bytes(content.replace(offsets, struct.pack("<4i", 0, 9, 1 << 30, 24)))
    code = (  # in a process of its own: to follow them would end it
        "import sys\nfrom pathlib import Path\nfrom tests.data.reading import read\n"
        "from simcse_train.errors import InputError\n"
        "try:\n    read('x.arrow', Path(sys.argv[1]).read_bytes())\n"
        "except InputError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.arrow")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert "x.arrow is not a readable arrow file" in done.stdout
    assert done.returncode == 0


def test_a_message_lists_the_first_of_many_columns_and_cuts_long_names() -> None:
    names = ["x" * 500, *map(str, range(30))]
    with pytest.raises(
        InputError, match=r"has no column 'no'. Its columns are 'x{60}\.\.\.', '0', .* and 19 more: name"
    ):
        read("x.jsonl", json.dumps(dict.fromkeys(names, "a b")).encode(), "no")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.7\n", "PDF"),
        (b"\x89PNG\r\n\x1a\n\0", "PNG"),
        (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(100), "old Word or Excel"),
        (zipped({"[Content_Types].xml": "", "word/document.xml": ""}), "Word document"),
        (zipped({"[Content_Types].xml": "", "xl/workbook.xml": ""}), "Excel workbook.*as .csv"),
        (zipped({"mimetype": "", "META-INF/manifest.xml": ""}), "OpenDocument"),
        (b"<!DOCTYPE html>\n<p>Hi", "HTML"),
        (b"\n <HTML lang=en>\n", "HTML"),
        (b"<p>One sentence.</p>\n<p>Another.</p>\n", "HTML"),
        (b'<?xml version="1.0"?>\n<a><b>x</b></a>', "XML"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (b"\0\0\0\x20ftypisom\0\0", "MP4"),
        (zipped({"[Content_Types].xml": "", "ppt/presentation.xml": ""}), "PowerPoint"),
        (zipped({"Index/Document.iwa": ""}), "Apple Pages"),
        (zipped({"META-INF/MANIFEST.MF": "", "a/B.class": ""}), "Java archive"),
        (b"\x7fELF\x02\x01\x01\0", "NUL byte"),
        (b"\x80\x04\x95\x0a\0\0", "pickle"),
        (b"1\r\n00:00:01,000 --> 00:00:02,000\r\nHello there.\r\n", "subtitles"),
        (b"WEBVTT\n\n00:01.000 --> 00:02.000\nHello there.\n", "subtitles"),
        (b"% a paper\n\\documentclass{article}\n\\begin{document}\n", "LaTeX"),
        (b"From a@b.org Mon Jan  1 00:00:00 2001\nSubject: x\n\nHello.\n", "e-mail"),
        (b"Subject: x\nReceived: from y\n\tby z\n\nHello.\n", "e-mail"),
        (b"| id | text |\n|---:|------|\n| 1 | Hello. |\n", "Markdown table"),
    ],
)
def test_what_is_no_text_is_refused_by_its_name(content: bytes, kind: str) -> None:
    with pytest.raises(InputError, match=f"^--data x.txt.*{kind}.*[.]$"):
        read("x.txt", content)


def test_text_with_tags_is_text() -> None:
    lines = ["<3 you", "<b>bold</b> move", "a < b", "plain", "more"]
    assert read("x.txt", "\n".join(lines).encode()) == lines
    brackets = ['["Hm"] he said', "[sic] no"]
    assert read("x.txt", "\n".join(brackets).encode()) == brackets
    dialogue = ["Anna: How are you?", "Ben: From here on, fine.", "", "1", "00:00 is midnight | or not"]
    assert read("x.txt", "\n".join(dialogue).encode()) == dialogue


@pytest.mark.parametrize(
    "line",
    [
        "PAR1 is a receptor.",
        "BZh is no word.",
        "The ftyp box comes first.",
        "ID3 tags are old.",
        "x" * 256 + "mustard",
    ],
)
def test_a_text_that_has_the_letters_of_another_format_in_the_same_place_is_text(line: str) -> None:
    assert read("x.txt", f"{line}\nanother\n".encode()) == [line, "another"]
    assert read("x.txt.gz", gzip.compress(line.encode())) == [line]


@pytest.mark.parametrize("folder", ["word", "xl", "ppt", "Index"])
def test_an_archive_of_texts_in_a_folder_that_a_document_has_too_is_read(folder: str) -> None:
    assert read("x.zip", zipped({f"{folder}/a.txt": "first\n", f"{folder}/b.txt": "second\n"})) == ["first", "second"]


def test_an_empty_compressed_file_has_no_text() -> None:
    for compress in (gzip.compress, bz2.compress, lzma.compress, zstd.compress):
        assert read("x.txt", compress(b"")) == []


def test_carriage_returns_end_lines_only_where_there_is_no_line_feed() -> None:
    assert read("x.txt", b"one\rtwo\rthree") == ["one", "two", "three"]
    assert read("x.txt", b"one\rstill one\ntwo") == ["one\rstill one", "two"]


def test_the_screen_says_how_a_table_was_understood(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    content = b"id;text\n1;a, b\n2;c\n"
    assert list(read_texts(io.BytesIO(content), named(Path("rows.csv")))) == ["a, b", "c"]
    assert caplog.messages == ["rows.csv: 2 columns separated by ';', text from 'text', for example 'a, b'."]
    caplog.clear()
    list(read_texts(io.BytesIO(b"1;a, b\n2;c\n"), named(Path("rows.csv"))))
    assert "2 columns separated by ';', no header, text from '2'" in caplog.text
    caplog.clear()
    assert list(read_texts(io.BytesIO(b"plain\n"), named(Path("x.txt")))) == ["plain"]
    assert not caplog.messages


def test_saved_data_sets_are_read_and_of_splits_the_train_split(tmp_path: Path) -> None:
    def texts(*entries: Path) -> list[str]:
        files = find_files(map(str, entries))
        found: list[str] = []
        for file in files:
            with open_file(file) as raw:
                found += read_texts(raw, named(file), say=False)
        return found

    train, test = (
        Dataset.from_dict({"body": [f"{name} one", f"{name} two"], "n": [1, 2]}) for name in ("train", "test")
    )
    train.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict({"test": test, "train": train}).save_to_disk(tmp_path / "splits")
    DatasetDict({"test": test, "dev": test}).save_to_disk(tmp_path / "no-train")
    assert texts(tmp_path / "one") == ["train one", "train two"]
    assert texts(tmp_path / "splits") == ["train one", "train two"]
    assert texts(tmp_path / "splits" / "test") == ["test one", "test two"]
    with pytest.raises(InputError, match="--data .*without a split named train.*no-train/test"):
        find_files([str(tmp_path / "no-train")])
    (tmp_path / "all" / "inner").mkdir(parents=True)
    (tmp_path / "all" / "a.txt").write_text("a line\n")
    train.save_to_disk(tmp_path / "all" / "inner" / "set")
    assert texts(tmp_path / "all") == ["a line", "train one", "train two"]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("state.json", '{"_data_files": [{}]}', "it has no 'filename'"),
        ("state.json", '{"_data_files": null}', "'_data_files' is no list"),
        ("state.json", "{}", "it has no '_data_files'"),
        ("dataset_dict.json", '{"splits": null}', "'splits' is no list"),
        ("dataset_dict.json", "[]", "list indices must be"),
        ("dataset_dict.json", '{"splits"', "Expecting"),
    ],
)
def test_a_damaged_description_of_a_saved_data_set_is_named(name: str, content: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"^--data .*/{name} can't be read \({what}.*\). Save the data set again.$"):
        find_files([str(tmp_path)])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"id,text\n1,a b\n2,c d\n", ["a b", "c d"]),
        (b"x,hi\nx,a longer one\nx,another one there\n", ["hi", "a longer one", "another one there"]),
    ],
)
def test_a_column_may_be_counted_and_names_in_the_first_line_are_no_text(content: bytes, expected: list[str]) -> None:
    assert read("x.csv", content, "2") == expected
    with pytest.raises(InputError, match="no column '3'"):
        read("x.csv", content, "3")


def test_a_field_of_a_table_may_be_long() -> None:
    csv.field_size_limit(131_072)  # as Python starts; the limit is one for the whole process
    long = "word " * 40_000 + "end"
    assert read("x.csv", f"id,text\n1,a short one\n2,{long}\n".encode()) == ["a short one", long]


def test_a_second_column_of_a_name_does_not_take_the_name_of_another() -> None:
    content = b"text,text,text (2)\nfirst one,second one,third one\nfirst two,second two,third two\n"
    for name, place in (("text", "first"), ("text (2)", "third"), ("text (2) (2)", "second")):
        assert read("x.csv", content, name) == [f"{place} one", f"{place} two"]

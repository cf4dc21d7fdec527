from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from simcse_train.data.compression import zstd
from simcse_train.data.files import find_files, say_left_out
from simcse_train.data.hub import select
from simcse_train.data.sample import sample_text
from simcse_train.errors import InputError
from tests.data.reading import read


def zstd_with_checksum(content: bytes) -> bytes:
    """Compress as the command line's zstd does; without the checksum some damage cannot be seen."""
    return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})


def test_a_line_ends_at_a_line_feed_and_nowhere_else() -> None:
    odd = "one\u2028still one\x0bone\x0cone\x1cone\x85one\rone"
    assert read("x.txt", f"{odd}\ntwo\r\nthree\n\nfive".encode()) == [odd, "two", "three", "", "five"]


def test_a_byte_order_mark_is_no_text_at_the_start_and_text_elsewhere() -> None:
    assert read("x.txt", "\ufeffone\n\ufefftwo".encode()) == ["one", "\ufefftwo"]
    assert read("x.txt", "\ufeff".encode()) == []
    assert read("x.txt", "\ufeff\n".encode()) == [""]


@pytest.mark.parametrize(
    "text", ["emoji 👩‍👩‍👧 and 🇩🇪", "مرحبا بالعالم", "今天天气很好我们去公园散步", "[SEP] [CLS]", "a" * 100_000]
)
def test_scripts_of_all_kinds_are_read_as_they_are(text: str) -> None:
    assert read("x.txt", f"{text}\n{text} again\n".encode()) == [text, f"{text} again"]


@pytest.mark.parametrize(
    ("ending", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd_with_checksum)],
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
        ("x.jsonl", b'"a"\n', "line 1 is JSON but no object"),
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


def test_a_folder_that_a_pattern_matches_stands_for_its_files(tmp_path: Path) -> None:
    for name in ("2020-01/a.txt", "2020-02/b.csv", "2020-02/notes.md", "2020-03.txt", "2020-model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "2020-model" / "model.safetensors").write_text("x")
    found = [str(path.relative_to(tmp_path)) for path in find_files([str(tmp_path / "2020-*")])]
    assert found == ["2020-01/a.txt", "2020-02/b.csv", "2020-03.txt"]


def test_a_folder_is_read_through_links_and_each_folder_once(tmp_path: Path) -> None:
    for name in ("text/a.txt", "elsewhere/b.txt", "elsewhere/deep/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "text" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "text" / "file.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "text")
    found = [str(path.relative_to(tmp_path / "text")) for path in find_files([str(tmp_path / "text")])]
    assert found == ["a.txt", "file.txt", "link/b.txt", "link/deep/c.txt"]


def test_files_of_a_folder_that_are_left_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("a.txt", ".hidden", "runs/config.yaml", "runs/checkpoints/x.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("A man.\nA woman.\n")
    say_left_out([str(tmp_path), str(tmp_path / "a.txt"), "hf://datasets/a/b"])
    assert not caplog.messages
    for name in ("b.text", "sub/c.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    sample_text([str(tmp_path)], None, 10)
    assert [f"2 files are left out, such as {tmp_path / 'b.text'}" in line for line in caplog.messages] == [True]


def test_what_is_left_out_of_a_folder_behind_a_pattern_is_said_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "2020-01").mkdir()
    for name in ("2020-01/a.txt", "2020-01/b.text", "2020-02.text"):
        (tmp_path / name).write_text("text\n")
    pattern = str(tmp_path / "2020-*")
    assert find_files([pattern]) == [tmp_path / "2020-01" / "a.txt", tmp_path / "2020-02.text"]
    with caplog.at_level(logging.INFO):
        say_left_out([pattern])
    assert [f"{tmp_path / '2020-01' / 'b.text'} is left out" in line for line in caplog.messages] == [True]


def table(mark: str) -> bytes:
    return "".join(f"{number}{mark}{text}\n" for number, text in (("id", "text"), (1, "a, b"), (2, "c d"))).encode()


def columns(write: Callable[[pa.Table, pa.BufferOutputStream], object]) -> bytes:
    stream = pa.BufferOutputStream()
    write(pa.table({"text": ["a, b", "c d"]}), stream)
    return bytes(stream.getvalue())


def arrow_file(rows: pa.Table, stream: pa.BufferOutputStream) -> None:
    with pa.ipc.new_file(stream, rows.schema) as writer:
        writer.write_table(rows)


ENDINGS = {
    "x.txt": b"a, b\nc d\n",
    "x.csv": table(";"),
    "x.psv": table("|"),
    "x.tsv": table("\t"),
    "x.tab": table("\t"),
    "x.json": b'[{"text": "a, b"}, {"text": "c d"}]',
    **dict.fromkeys(("x.jsonl", "x.ndjson", "x.jl", "x.JL"), b'{"text": "a, b"}\n{"text": "c d"}\n'),
    **dict.fromkeys(("x.parquet", "x.pq"), columns(pq.write_table)),
    **dict.fromkeys(("x.arrow", "x.ipc"), columns(arrow_file)),
    "x.feather": columns(feather.write_feather),
}


@pytest.mark.parametrize("name", [*ENDINGS, *(f"{name}.gz" for name in ENDINGS)])
def test_a_folder_a_data_set_and_an_archive_give_what_a_named_file_gives(name: str, tmp_path: Path) -> None:
    content = ENDINGS[name.removesuffix(".gz")]
    content = gzip.compress(content) if name.endswith(".gz") else content
    assert read(name, content) == ["a, b", "c d"]
    for other in ("README.md", "notes.log", "data.tar"):
        (tmp_path / other).write_text("no text")
    (tmp_path / name).write_bytes(content)
    assert find_files([str(tmp_path)]) == [tmp_path / name]
    assert select(["README.md", name], None) == [name]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("README.md", "no text")
        archive.writestr(name, content)
    assert read("x.zip", stream.getvalue()) == ["a, b", "c d"]


def test_a_folder_is_read_without_hidden_files_and_the_runs_and_encoders_in_it(tmp_path: Path) -> None:
    for name in (
        "a.txt",
        "more/b.txt",
        ".cache/x.txt",
        "more/.y.txt",
        "runs/x/config.yaml",
        "runs/x/metrics.jsonl",
        "runs/x/checkpoints/step-1/state.json",
        "runs/x/stdin.txt",
        "model/config.json",
        "model/model.safetensors",
        "model/1_Pooling/config.json",
        "begun/config.yaml",
        "begun/.lock",
        "begun/stdin.txt",
        "exported/config.json",
        "exported/tokenizer.json",
        "exported/onnx/model.onnx",
        "pickled/config.json",
        "pickled/vocab.txt",
        "pickled/pytorch_model.bin",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert find_files([str(tmp_path)]) == [tmp_path / "a.txt", tmp_path / "more" / "b.txt"]


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(InputError, match="--data is empty"):
        find_files([""])

"""Text in any file -> the text of each record, or an error that names the file and the line.

A file is lines of text (`.txt` and whatever has no known ending), a table (`.csv`, `.tsv`, `.jsonl`, `.parquet`), or one of these
but the last compressed (`.gz`, `.bz2`, `.xz`). A line ends at a line feed, with or without a carriage return before it, and nowhere
else: U+2028, form feed and the like are text.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from simcse_train.errors import InputError

COMPRESSION: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda raw: cast(BinaryIO, gzip.GzipFile(fileobj=raw)),
    ".bz2": lambda raw: cast(BinaryIO, bz2.BZ2File(raw)),
    ".xz": lambda raw: cast(BinaryIO, lzma.LZMAFile(raw)),
}
FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")

PEEK = 100  # records looked at to tell which columns hold text
PARQUET_ROWS = 4096


def find_files(data: Iterable[str]) -> list[Path]:
    """Return the files that the names, folders and globs stand for, in a fixed order; raises `InputError` if one stands for none."""
    found: list[Path] = []
    for entry in data:
        path = Path(entry).expanduser()
        try:
            if path.is_dir():
                files = sorted(p for p in path.rglob("*") if p.is_file() and text_format(p) != "other")
                hint = f"there is no text file in that folder (known endings: {' '.join(FORMATS)}, also .gz .bz2 .xz)"
            elif path.exists():
                files, hint = [path], ""
            else:
                files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())  # noqa: PTH207 (also absolute patterns)
                hint = "there is no such file"
        except (OSError, ValueError) as error:
            raise InputError(f"--data {entry}: {error}. Check the path.") from None
        if not files:
            raise InputError(f"--data {entry}: {hint}. Check the path.")
        found += files
    return list(dict.fromkeys(found))


def read_texts(raw: BinaryIO, path: Path, text_column: str | None) -> Iterator[str]:
    """Yield the text of each record of an open file, as it stands there; an empty record gives an empty text.

    A line ends at a line feed, with or without a carriage return before it, and nowhere else. Raises `InputError` naming the file
    and the line where the file is not what its name says.
    """
    kind = text_format(path)
    try:
        if kind == ".parquet":
            yield from _parquet(raw, path, text_column)
            return
        decompress = COMPRESSION.get(path.suffix.lower())
        opened = decompress(raw) if decompress else raw
        lines = read_lines(opened, path)
        if kind in (".csv", ".tsv"):
            yield from _table(lines, path, text_column, kind)
        elif kind == ".jsonl":
            yield from _json_lines(lines, path, text_column)
        else:
            yield from (line for _, line in lines)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is damaged or not the compressed file its name says ({error}). Fetch it again."
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} can't be read: {error.strerror or error}. Check the file and its permissions."
        ) from None


def read_lines(stream: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line; raises `InputError` at a line that is not UTF-8 text."""
    for number, raw in enumerate(stream, start=1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise InputError(f"{path} is UTF-16 text. Convert it: iconv -f UTF-16 -t UTF-8 {path} > NEW_FILE.")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in line:
            raise InputError(
                f"{path}, line {number} holds a NUL byte: this is a binary file, not text. Give a text file."
            )
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not valid UTF-8 (byte {error.start + 1} of the line). Convert the file, for example with "
                f"iconv -f LATIN1 -t UTF-8 {path} > NEW_FILE, or mend the line."
            ) from None


def _table(lines: Iterator[tuple[int, str]], path: Path, text_column: str | None, kind: str) -> Iterator[str]:
    """Yield the text column of a csv (RFC 4180 quoting) or tsv (no quoting: a quotation mark is text)."""
    csv.field_size_limit(2**31 - 1)
    source = (line + "\n" for _, line in lines)
    tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {}
    reader = csv.reader(source, strict=True, **tabs)
    try:
        header = next(reader, [])
        records = ((reader.line_num, record) for record in reader)
        peeked = list(itertools.islice(records, PEEK))
        textual = [
            name
            for i, name in enumerate(header)
            if any(len(r) > i and r[i].strip() and not _is_number(r[i]) for _, r in peeked)
        ]
        column = header.index(_choose(text_column, header, textual, path)) if header else 0
        for number, record in itertools.chain(peeked, records):
            if record and len(record) != len(header):
                raise InputError(
                    f"{path}, line {number} has {len(record)} fields where the first line names {len(header)}. Mend the line; in a csv, "
                    "fields with commas stand in double quotes."
                )
            yield record[column] if record else ""
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not valid csv ({error}). Mend the line.") from None


def _json_lines(lines: Iterator[tuple[int, str]], path: Path, text_column: str | None) -> Iterator[str]:
    def records() -> Iterator[tuple[int, dict[str, object]]]:
        for number, line in lines:
            if not line.strip():
                yield number, {}
                continue
            try:
                record = json.loads(line)
                line_text = json.dumps(record, ensure_ascii=False)
                line_text.encode("utf-8")
            except UnicodeEncodeError:
                raise InputError(
                    f"{path}, line {number} holds half of a surrogate pair, which is no character. Mend the line."
                ) from None
            except (ValueError, RecursionError):
                raise InputError(
                    f"{path}, line {number} is not valid JSON. A .jsonl file has one JSON object a line."
                ) from None
            if not isinstance(record, dict):
                raise InputError(
                    f"{path}, line {number} is JSON but no object. A .jsonl file has one JSON object a line."
                )
            yield number, record

    stream = records()
    peeked = list(itertools.islice(stream, PEEK))
    names = list(dict.fromkeys(name for _, record in peeked for name in record))
    textual = [name for name in names if any(isinstance(record.get(name), str) for _, record in peeked)]
    column = _choose(text_column, names, textual, path) if names else ""
    for number, record in itertools.chain(peeked, stream):
        value = record.get(column)
        if value is not None and not isinstance(value, str):
            raise InputError(
                f"{path}, line {number}: {column!r} is not text. Choose another column with --text-column, or mend the line."
            )
        yield value or ""


def _parquet(raw: BinaryIO, path: Path, text_column: str | None) -> Iterator[str]:
    try:
        file = pq.ParquetFile(raw)
        schema = file.schema_arrow
        textual = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        column = _choose(text_column, schema.names, textual, path)
        if column not in textual:
            raise InputError(
                f"{path}: column {column!r} is not text but {schema.field(column).type}. Text columns: {', '.join(textual)}."
            )
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[column]):
            for value in batch.column(0).to_pylist():
                yield value or ""
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a readable parquet file ({' '.join(str(error).split())[:200]}). Write it again."
        ) from None


def _choose(text_column: str | None, names: list[str], textual: list[str], path: Path) -> str:
    """Return the column to read, or raise `InputError` listing those there are."""
    if text_column is not None and text_column in names:
        return text_column
    listed = ", ".join(repr(name) for name in names)
    if text_column is not None:
        raise InputError(
            f"{path} has no column {text_column!r}. Its columns are {listed}: name one with --text-column."
        )
    candidates = names if len(names) == 1 else textual
    if len(candidates) != 1:
        found = "no column of text" if not candidates else f"{len(candidates)} columns of text"
        raise InputError(
            f"{path} has {found}. Its columns are {listed}: name the one to learn from with --text-column."
        )
    return candidates[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def text_format(path: Path) -> str:
    """Return the ending that says how a file is read; `other` where it says nothing (then it is read as lines of text)."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSION else path
    ending = inner.suffix.lower()
    return ending if ending in FORMATS else "other"


def open_file(path: Path, option: str = "--data") -> BinaryIO:
    """Open a file; raises `InputError` that names the option or argument the user gave if that is not possible."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{option} {path} can't be read: {error.strerror}. Check the path and its permissions."
        ) from None

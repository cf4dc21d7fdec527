"""All plain readings of a file: what a careful person could take its bytes for, made slowly and without the reader."""

from __future__ import annotations

import bz2
import contextlib
import csv
import encodings
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pkgutil import iter_modules

import pyarrow as pa
import pyarrow.parquet as pq

from simcse_train.data.compression import zstd


def _is_of_text(encoding: str) -> bool:
    try:
        "".encode(encoding)
    except (LookupError, ValueError):  # unknown on this system, or of bytes
        return False
    return True


# All that Python knows, since the detection may name any for bytes that are drawn at random.
OTHER_ENCODINGS = sorted(filter(_is_of_text, {found.name for found in iter_modules(encodings.__path__)} - {"utf_8"}))

COMPRESS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    ".gz": (gzip.compress, gzip.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".xz": (lzma.compress, lzma.decompress),
    ".zst": (zstd.compress, zstd.decompress),
}


def readings(ending: str, content: bytes) -> list[list[str]]:
    """Read a file in every way that its bytes allow, each time slowly and plainly; return the texts of each."""
    inner, *compressed = [f".{part}" for part in ending.split(".")[1:]]
    if compressed:
        content = COMPRESS[compressed[0]][1](content)
    if inner in (".parquet", ".arrow"):
        return columnar(inner, content)
    found: list[list[str]] = []
    for text in decoded(content):
        lines = text.split("\n")[: -1 if text.endswith("\n") or not text else None]
        lines = [line[:-1] if line.endswith("\r") else line for line in lines]
        if inner in (".json", ".jsonl") or text.lstrip().startswith(("{", "[")):
            found += json_readings(text, lines)
            found.append(["" for _ in lines])
        if inner not in (".json", ".jsonl"):
            found += [lines, *table_readings(lines)]
    return found


def decoded(content: bytes) -> list[str]:
    """Decode a text as UTF-8, or else as any encoding that it may have; also with carriage returns as line ends."""
    texts = []
    is_plain = is_utf8(content) and b"\0" not in content and b"\x1b$" not in content
    for encoding in ("utf-8-sig", *(() if is_plain else OTHER_ENCODINGS)):
        with contextlib.suppress(UnicodeError):
            texts.append(content.decode(encoding))
    if b"\n" not in content:
        texts += [text.replace("\r", "\n") for text in texts]
    return texts


def is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def json_readings(text: str, lines: list[str]) -> list[list[str]]:
    """Read a text as one JSON value and as one in each line, of which empty ones count; return each column."""
    found: list[list[str]] = []
    with contextlib.suppress(ValueError):
        whole = json.loads(text) if text.strip() else []
        found += _columns(whole if isinstance(whole, list) else [whole])
    with contextlib.suppress(ValueError):
        found += _columns([json.loads(line) if line.strip() else {} for line in lines])
    return found


def _columns(records: list[object]) -> list[list[str]]:
    rows = [{"text": r} if isinstance(r, str) else r if isinstance(r, dict) else {} for r in records]
    names = {name for row in rows for name in row}
    return [[row.get(name) or "" for row in rows] for name in names] or [["" for _ in rows]]


def table_readings(lines: list[str]) -> list[list[str]]:
    """Read lines as a table with each separator and quoting, with and without a header; return each column."""
    found = []
    for separator in ",;\t|\0":
        literal = [line.split(separator) if line else [] for line in lines]
        for rows in (csv_records(lines, separator), literal, with_backslashes(lines, separator)):
            width = next((len(row) for row in rows or [] if row), 0)
            if rows is None or any(len(row) not in (0, width) for row in rows):
                continue
            first = next((place for place, row in enumerate(rows) if row), None)
            for kept in (rows, [row for place, row in enumerate(rows) if first is not None and place > first]):
                found += [[row[i] if row else "" for row in kept] for i in range(width)] or [["" for _ in kept]]
    return found


def with_backslashes(lines: list[str], separator: str) -> list[list[str]] | None:
    """Read lines as the csv in which a backslash stands before a quotation mark; None if they are not that."""
    try:
        return list(
            csv.reader([line + "\n" for line in lines], delimiter=separator, doublequote=False, escapechar="\\")
        )
    except csv.Error:
        return None


def columnar(inner: str, content: bytes) -> list[list[str]]:
    """Read the columns of a parquet or Arrow file by another function than the reader's.

    Without those that are damaged.
    """
    found = []
    for name in ("n", "t"):
        with contextlib.suppress(OSError, pa.ArrowException, UnicodeDecodeError, KeyError, IndexError):
            stream = io.BytesIO(content)
            if inner == ".parquet":
                table = pq.read_table(stream, columns=[name])
            else:
                table = pa.ipc.open_stream(stream).read_all().select([name])
            found.append([value or "" for value in table.column(0).to_pylist()])
    return found


def csv_records(lines: list[str], separator: str) -> list[list[str]] | None:
    """Read the lines of a csv letter by letter (RFC 4180).

    A quoted field may hold separators, line ends and doubled quotes.
    """
    records, row = [], [""]
    quoted = closed = False
    started = False  # does the record hold anything yet
    for letter in "".join(line + "\n" for line in lines):
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
        elif letter == separator:
            row.append("")
            closed, started = False, True
        elif letter == "\r":
            continue  # the reader may take those before a line end for part of it
        elif closed:
            return None
        else:
            row[-1] += letter
            started = True
    return None if quoted else records

"""A stream of bytes -> lines of text or the records of a table, whichever its first bytes and its name say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from simcse_train.data.columnar import columnar_kind, open_columnar
from simcse_train.data.compression import HEAD, reading_errors, streams
from simcse_train.data.json_records import json_shape, open_json
from simcse_train.data.kinds import refuse_markup
from simcse_train.data.lines import Text, open_text
from simcse_train.data.records import Records
from simcse_train.data.source import Source
from simcse_train.data.tables import is_table, open_table


def open_tables(raw: BinaryIO, source: Source) -> Iterator[Records]:
    """Yield each table in an open file, for a use that needs columns, such as pairs of sentences.

    Records may have more fields than the first. Raises `InputError` if the file is damaged or cannot be understood.
    """
    with reading_errors(source):
        for inner, stream in streams(raw, source):
            opened = _open_table_or_text(stream, inner)
            yield open_table(opened, ragged=True) if isinstance(opened, Text) else opened


def open_texts(raw: BinaryIO, source: Source) -> Iterator[Records | Text]:
    """Yield each table or text of lines in an open file; raises `InputError` as `open_tables` does."""
    with reading_errors(source):
        for inner, stream in streams(raw, source):
            opened = _open_table_or_text(stream, inner)
            yield open_table(opened) if isinstance(opened, Text) and is_table(opened) else opened


def _open_table_or_text(stream: BinaryIO, source: Source) -> Records | Text:
    head = stream.read(HEAD)
    stream.seek(0)
    kind = columnar_kind(head, source.kind)
    if kind is not None:
        return open_columnar(stream, kind, source)
    text = open_text(stream, source)
    refuse_markup(text.start, source)
    shape = json_shape(text)
    return text if shape is None else open_json(text, shape)

"""The text of each record of a file, whatever its format, in one column of a table or on lines."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import BinaryIO

from simcse_train.data.compression import reading_errors
from simcse_train.data.display import enumerated, shorten
from simcse_train.data.formats import open_texts
from simcse_train.data.lines import Text
from simcse_train.data.records import Records, column_named, is_number, peek
from simcse_train.data.source import Source

BLOCK_RECORDS = 1024

logger = logging.getLogger(__name__)


def read_texts(raw: BinaryIO, source: Source, *, say: bool = True) -> Iterator[str]:
    """Yield the text of each record of an open file, as it stands there; an empty record gives an empty text.

    Unless the file is plain UTF-8 lines, the way it was understood is logged (with `say`). Raises `InputError` naming
    the file and the line where the file is not what it seems.
    """
    return itertools.chain.from_iterable(read_blocks(raw, source, say=say))


def read_blocks(raw: BinaryIO, source: Source, *, say: bool = True) -> Iterator[list[str]]:
    """Yield what `read_texts` does, many texts at once."""
    with reading_errors(source):
        for found in open_texts(raw, source):
            if isinstance(found, Text):
                yield from _lines(found, say)
            else:
                texts = _column(found, say)
                while block := list(itertools.islice(texts, BLOCK_RECORDS)):
                    yield block


def read_labelled_texts(raw: BinaryIO, source: Source) -> Iterator[tuple[str, str]]:
    """Yield the text and the label of each record of an open table whose columns `source` names.

    Without the name of the text's column it is the only one with text beside the labels. Raises `InputError`.
    """
    named_label = source.label_column or ""
    with reading_errors(source):
        for found in open_texts(raw, source):
            if isinstance(found, Text):
                raise source.error(f"is read as lines of text and has no column for --label-column {named_label!r}.")
            label = column_named(found, named_label)
            if label is None:
                raise source.error(f"has no column {named_label!r}. {found.listed}: name one with --label-column.")
            if source.text_column is not None and column_named(found, source.text_column) == label:
                raise source.error(f"has the labels in the column {named_label!r}, which --text-column names, too.")
            text = _choose(found, without=label)
            for number, (value, kind) in found.select([text, label]):
                if not isinstance(value, str | None):
                    raise source.error(f": {text!r} is not text but {shorten(str(value))}. Correct it.", number)
                is_missing = kind is None or kind != kind  # the latter is NaN
                yield value or "", "" if is_missing else str(kind)


def _lines(text: Text, say: bool) -> Iterator[list[str]]:
    source = text.source
    if source.text_column is not None:
        raise source.error(
            f"is read as lines of text and has no column for --text-column {source.text_column!r}. Leave the option "
            "out; or, if the file is a table, give it the ending of its format (.csv, .tsv, .jsonl)."
        )
    if say and text.noted:
        example = next((line for line in text.start.split("\n") if not line.isascii()), text.start.split("\n")[0])
        logger.info(f"{source.name}: lines of text{text.noted}, for example {shorten(example)}.")
    yield from text.blocks()


def _column(records: Records, say: bool) -> Iterator[str]:
    source = records.source
    if not records.names:
        if source.text_column is not None:
            raise source.error(f"is empty and has no column {source.text_column!r}. Check the file.")
        yield from ("" for _ in records.select([]))
        return
    column = _choose(records)
    first, values = peek(records.select([column]))
    filled = [row[0] for _, row in first if row[0] is not None and str(row[0]).strip()]
    if len(filled) > 1 and all(map(is_number, filled)):
        raise source.error(
            f"holds only numbers in column {column!r}, such as {filled[0]}, and no sentences. {records.listed}: name "
            "the one with the text with --text-column."
        )
    if say:
        example = f", for example {shorten(str(filled[0]))}" if filled else ""
        logger.info(f"{source.name}: {records.shape}, text from {column!r}{example}.")
    for number, row in values:
        value = row[0]
        if value is not None and not isinstance(value, str):
            raise source.error(
                f": {column!r} is not text but {shorten(str(value))}. Choose another column with --text-column, or "
                f"correct the {records.unit}.",
                number,
            )
        yield value or ""


def _choose(records: Records, without: str | None = None) -> str:
    """Return the column to read, or raise `InputError` listing those there are."""
    source, names = records.source, [name for name in records.names if name != without]
    textual = [name for name in names if records.is_text[name]]
    if source.text_column is not None:
        wanted = column_named(records, source.text_column)
        if wanted not in names:
            raise source.error(f"has no column {source.text_column!r}. {records.listed}: name one with --text-column.")
        if not records.is_text[wanted] and records.types[wanted] not in ("numbers", "empty", "null"):
            raise source.error(
                f"has no text in column {wanted!r} but {records.types[wanted]}. Columns of text: "
                f"{enumerated(textual) or 'none'}."
            )
        return wanted
    candidates = [name for name in textual if records.types[name] != "empty"] or textual
    if not candidates or all(records.types[name] == "empty" for name in names):
        raise source.error(f"has no column of text: it holds {records.typed}. Give a file with a column of sentences.")
    if len(candidates) > 1 and all(records.types[name] == "empty" for name in candidates):
        raise source.error(
            f"has no text in its first records: it holds {records.typed}. If one of its columns has text further on, "
            "name it with --text-column."
        )
    if len(candidates) != 1:
        raise source.error(
            f"has {len(candidates)} columns of text. {records.listed}: name the one to read with --text-column."
        )
    return candidates[0]

"""Parquet and Arrow files -> records, a batch of rows in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simcse_train.data.kinds import has_control_characters
from simcse_train.data.records import Records
from simcse_train.data.source import Source
from simcse_train.errors import one_line

ROWS = 4096
PARQUET = b"PAR1"
ARROW_FILE = b"ARROW1\0\0"
ARROW_STREAM = b"\xff\xff\xff\xff"


def columnar_kind(head: bytes, named: str | None) -> str | None:
    """Return parquet or arrow if the first bytes of a file say so, or its name (`Source.kind`); else None."""
    # A text may begin with these letters, too: PAR1 is a protein.
    if (head.startswith(PARQUET) and has_control_characters(head)) or named == "parquet":
        return "parquet"
    is_arrow = head.startswith((ARROW_FILE, ARROW_STREAM)) or named == "arrow"
    return "arrow" if is_arrow else None


def open_columnar(stream: BinaryIO, kind: str, source: Source) -> Records:
    """Return the records of a parquet or Arrow file; raises `InputError` if it is damaged."""
    if source.encoding is not None:
        raise source.error(f"is {kind}, which has no encoding to choose. Leave --encoding out.")
    try:
        schema = pq.ParquetFile(stream).schema_arrow if kind == "parquet" else _arrow_reader(stream)[0]
        names = schema.names  # a name need not be UTF-8
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(source, kind, error) from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise source.error(f"has several columns with the name {twice[0]!r}. Rename them, and write the file again.")
    paths = _paths(schema)

    def select(names: Sequence[str]) -> Iterator[tuple[int, list[object]]]:
        number = 0
        try:
            for batch in _batches(stream, kind, sorted({paths[name][0][0] for name in names})):
                columns = [_values(batch, paths[name][0]) for name in names]
                for row in zip(*columns, strict=True):
                    number += 1
                    yield number, list(row)
        except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, IndexError) as error:
            raise _damaged(source, kind, error) from None

    return Records(
        source=source,
        shape=f"{len(paths)} columns" if len(paths) != 1 else "1 column",
        names=list(paths),
        is_text={name: _is_text(found[1]) for name, found in paths.items()},
        types={name: str(found[1]) for name, found in paths.items()},
        select=select,
        unit="row",
    )


def _damaged(source: Source, kind: str, error: Exception) -> Exception:
    return source.error(f"is not a readable {kind} file ({one_line(error)}). Write it again.")


def _paths(schema: pa.Schema) -> dict[str, tuple[list[str], pa.DataType]]:
    """Return where each column stands, with its type; a field of a struct is a column with a dotted name."""
    found: dict[str, tuple[list[str], pa.DataType]] = {}

    def visit(field: pa.Field, path: list[str]) -> None:
        if pa.types.is_struct(field.type):
            for inner in field.type:
                visit(inner, [*path, inner.name])
        else:
            found[".".join(path)] = (path, field.type)

    for field in schema:
        visit(field, [field.name])
    return found


def _values(batch: pa.RecordBatch, path: list[str]) -> list[object]:
    array = batch.column(path[0])
    for name in path[1:]:
        array = pc.struct_field(array, name)
    values: list[object] = array.to_pylist()
    return values


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _arrow_reader(file: BinaryIO) -> tuple[pa.Schema, Callable[[], Iterator[pa.RecordBatch]]]:
    file.seek(0)
    is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
    file.seek(0)
    if not is_file:
        stream = pa.ipc.open_stream(file)
        return stream.schema, lambda: iter(stream)
    reader: Any = pa.ipc.open_file(file)
    return reader.schema, lambda: (reader.get_batch(i) for i in range(reader.num_record_batches))


def _batches(file: BinaryIO, kind: str, names: list[str]) -> Iterator[pa.RecordBatch]:
    if kind == "parquet":
        file.seek(0)
        yield from pq.ParquetFile(file).iter_batches(batch_size=ROWS, columns=names)
        return
    for batch in _arrow_reader(file)[1]():
        chosen = batch.select(names)
        chosen.validate(full=True)  # damaged offsets would be read outside the file
        for start in range(0, len(chosen), ROWS):
            yield chosen.slice(start, ROWS)

"""JSON -> records: lines of objects, an array, or an object that holds one array or named columns."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from simcse_train.data.display import enumerated
from simcse_train.data.json_values import SPACE, JsonCursor
from simcse_train.data.lines import Text
from simcse_train.data.records import PEEK, Records
from simcse_train.data.source import Source

STRINGS = "text"  # the name of the only column of an array of strings

Objects = Iterator[tuple[int, dict[str, object]]]


def json_shape(text: Text) -> str | None:
    """Return `lines`, `array` or `document` if a text is JSON as its ending or its first characters say; else None.

    A file of another ending is JSON only if its first line is an object, or it begins with an array of objects or
    strings.
    """
    start = text.start.lstrip()
    first = start.split("\n", 1)[0].strip()
    if text.source.kind == "json lines":
        broken_first_line = re.match(r"\[\s*(\{|$)", first) and _value(first) is None
        return "array" if broken_first_line and len(first) < 2 + PEEK else "lines"
    if text.source.kind == "json":
        if start.startswith("["):
            return "array"
        return "lines" if _is_lines(start, text.complete) or not start else "document"
    if re.match(r"\[\s*[{\"]", start):
        space = SPACE.match(start[1:])
        begin = start.index("[") + 1 + (len(space[0]) if space else 0)
        try:
            _, end = json.JSONDecoder().raw_decode(start, begin)
        except (ValueError, RecursionError):
            return None
        after = start[end:].lstrip()
        is_closed_in_a_line = after.startswith("]") and after[1:].split("\n", 1)[0].strip()  # `["Hm"] he said`
        return "array" if after.startswith((",", "]")) and not is_closed_in_a_line else None
    if isinstance(_value(first), dict):
        return "lines" if _is_lines(start, text.complete) else "document"
    return "document" if text.complete and start.startswith("{") and isinstance(_value(start), dict) else None


def open_json(text: Text, shape: str) -> Records:
    """Return the records of a JSON text; raises `InputError` naming the line of what is not valid, at once or later."""
    source = text.source
    if shape == "lines":
        described, objects = "JSON lines", _json_lines(text.lines(), source)
    elif shape == "array":
        described, objects = "an array", _array(text.stream, source)
    else:
        described, objects = _document(text.stream, source)
    first = list(itertools.islice(objects, PEEK))
    names = list(dict.fromkeys(name for _, record in first for name in record))

    def select(chosen: Sequence[str]) -> Iterator[tuple[int, list[object]]]:
        is_found = len(chosen) == 1 and not source.columns  # the only column of text so far, and nobody has named it
        for number, record in itertools.chain(first, objects):
            if is_found and chosen[0] not in record and (other := _new_text(record, names)):
                raise source.error(
                    f"has no {chosen[0]!r} and text in {other!r}, which no record before had. Name the column to read "
                    "with --text-column; records without it are left out.",
                    number,
                )
            yield number, [record.get(name) for name in chosen]

    return Records(
        source=source,
        shape=f"{described}, {len(names)} field{'s' * (len(names) != 1)}{text.noted}",
        names=names,
        is_text={name: any(isinstance(record.get(name), str) for _, record in first) for name in names},
        types={name: _type([record.get(name) for _, record in first]) for name in names},
        select=select,
        header=names != [str(number) for number in range(1, len(names) + 1)],
    )


def _new_text(record: dict[str, object], names: list[str]) -> str | None:
    """Return a field with text in a record that is none of the names, None where there is none."""
    return next((n for n, value in record.items() if n not in names and isinstance(value, str) and value.strip()), None)


def _is_lines(start: str, complete: bool) -> bool:
    """Say whether each of the first lines is an object; a single line that is all of the file may hold an array."""
    lines = [line for line in start.split("\n") if line.strip()]
    values = [_value(line) for line in (lines if complete else lines[:-1])[:PEEK]]
    if len(lines) == 1:
        if not complete or not isinstance(values[0], dict):
            return not complete
        held = values[0].items()
        return not any(isinstance(value, list | dict) for _, value in held) and not all(
            name.isdigit() for name, _ in held
        )
    return bool(values) and isinstance(values[0], dict) and isinstance(values[-1], dict)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_lines(lines: Iterator[tuple[int, str]], source: Source) -> Objects:
    for number, line in lines:
        if not line.strip():
            yield number, {}
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise source.error("is not valid JSON. In JSON lines, each line is one object.", number) from None
        if record is None:
            record = {}
        if not isinstance(record, dict | list):
            raise source.error("is JSON but no object. In JSON lines, each line is one object.", number)
        yield number, _record(record, source, number)


def _record(value: object, source: Source, number: int) -> dict[str, object]:
    """Return a value as a record.

    Objects within it become dotted names, a string the only column, a list counted ones.
    """
    if isinstance(value, str):
        value = {STRINGS: value}
    if isinstance(value, list):
        value = {str(place): inner for place, inner in enumerate(value, start=1)}
    if not isinstance(value, dict):
        raise source.error("is JSON, but no object, list or string. Give an array of objects or of strings.", number)
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        raise source.error("holds half of a surrogate pair, which is no character. Correct the line.", number) from None
    while any(isinstance(inner, dict) for inner in value.values()):
        flat: dict[str, object] = {}
        for name, inner in value.items():
            flat.update({f"{name}.{key}": v for key, v in inner.items()} if isinstance(inner, dict) else {name: inner})
        value = flat
    return value


def _array(stream: BinaryIO, source: Source) -> Objects:
    cursor = JsonCursor(stream, source)
    yield from _elements(cursor, source)
    if cursor.peek():
        raise source.error("goes on after the end of the JSON array. Give one array.", cursor.line)


def _elements(cursor: JsonCursor, source: Source) -> Objects:
    if cursor.peek() != "[":
        raise cursor.invalid()
    cursor.skip()
    if cursor.peek() == "]":
        cursor.skip()
        return
    while True:
        cursor.peek()
        number = cursor.line
        value = cursor.value()
        yield number, {} if value is None else _record(value, source, number)
        after = cursor.peek()
        if after not in (",", "]"):
            raise cursor.invalid()
        cursor.skip()
        if after == "]":
            return


def _document(stream: BinaryIO, source: Source) -> tuple[str, Objects]:
    """Return what a JSON document is, in words, and its records."""
    cursor = JsonCursor(stream, source)
    if not cursor.peek():
        return "an empty file", iter(())
    value = cursor.value()
    if not isinstance(value, dict):
        raise source.error(
            "is JSON, but neither objects nor an array of them. Give an array of objects or of strings.", 1
        )
    if cursor.peek():
        return "JSON objects", _objects(value, cursor, source)
    arrays = {name: inner for name, inner in value.items() if isinstance(inner, list)}
    if len(arrays) == 1:
        (name, found) = next(iter(arrays.items()))
        return f"the array {name!r}", ((1, {} if v is None else _record(v, source, 1)) for v in found)
    if (
        len(arrays) > 1
        and any(isinstance(inner, dict) for found in arrays.values() for inner in found)
        and "data" not in arrays
    ):
        raise source.error(
            f"is a JSON object with several arrays ({enumerated(list(arrays))}). Write the one that is meant to a file "
            "of its own."
        )
    if len(value) > 1 and all(isinstance(inner, dict) for inner in value.values()) and not _is_column(value):
        return "objects by name", ((1, _record(inner, source, 1)) for inner in value.values())
    if len(value) > 1 and all(name.isdigit() and isinstance(inner, str) for name, inner in value.items()):
        return "numbered strings", ((1, _record(inner, source, 1)) for inner in value.values())
    columns = {name: list(inner.values()) if isinstance(inner, dict) else inner for name, inner in value.items()}
    lengths = {len(inner) if isinstance(inner, list) else -1 for inner in columns.values()}
    if "columns" in arrays and "data" in arrays and all(isinstance(row, list) for row in arrays["data"]):
        head = [str(name) for name in arrays["columns"]]  # pandas, orient="split"
        return "rows with named columns", (
            (1, _record(dict(zip(head, row, strict=False)), source, 1)) for row in arrays["data"]
        )
    if len(lengths) == 1 and lengths != {-1} and (arrays or len(set(map(str, map(_keys, value.values())))) == 1):
        rows = zip(*columns.values(), strict=True)
        return "named columns", ((1, _record(dict(zip(columns, row, strict=True)), source, 1)) for row in rows)
    return "one object", iter([(1, _record(value, source, 1))])


def _is_column(value: dict[str, object]) -> bool:
    """Say whether the objects in an object are columns with numbered rows, as pandas writes them.

    The rows are numbered from 0, or, where some were removed, by numbers that are the same in all columns.
    """
    keys = _keys(next(iter(value.values())))
    if keys == [str(number) for number in range(len(keys))]:
        return True
    is_numbered = all(map(str.isdecimal, keys)) and all(_keys(inner) == keys for inner in value.values())
    return is_numbered and len(keys) >= len(value) and not all(map(str.isdecimal, value))


def _keys(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _objects(first: dict[str, object], cursor: JsonCursor, source: Source) -> Objects:
    """Yield objects that follow each other, each over several lines."""
    yield 1, _record(first, source, 1)
    while cursor.peek():
        number = cursor.line
        value = cursor.value()
        if not isinstance(value, dict):
            raise source.error("is JSON but no object. Give an array of objects.", number)
        yield number, _record(value, source, number)


def _type(values: list[object]) -> str:
    kinds = {type(value).__name__ for value in values if value is not None}
    words = {"str": "text", "int": "numbers", "float": "numbers", "list": "lists", "bool": "true or false"}
    return " and ".join(sorted({words.get(kind, kind) for kind in kinds})) or "empty"

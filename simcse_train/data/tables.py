"""Text with separators -> records: separator, quoting and header are found from the first lines."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from simcse_train.data.header import has_header, is_known_name, is_list_of_names
from simcse_train.data.lines import Text
from simcse_train.data.records import PEEK, Records, is_number
from simcse_train.data.source import Source

SEPARATORS = (",", ";", "\t", "|")
NO_SEPARATOR = "\0"  # no text has it: everything on a line is one field
PEEK_LINES, PEEK_CHARACTERS = 400, 1 << 17
ESCAPED = re.compile(r'"[^"]*\\"')  # a quotation mark with a backslash in a field that one opened
NAMED_SEPARATOR = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)

Lines = Iterator[tuple[int, str]]
Rows = Iterator[tuple[int, list[str]]]


class Dialect(NamedTuple):
    """How the fields of a table are divided.

    quoted: RFC 4180; spaced: the same after a space; escaped: a backslash before a quotation mark; literal: no quoting.
    """

    separator: str
    quoting: Literal["quoted", "spaced", "escaped", "literal"]

    @property
    def shown(self) -> str:
        """The separator in words."""
        return "tabs" if self.separator == "\t" else repr(self.separator)


def open_table(text: Text, *, ragged: bool = False) -> Records:
    """Return the records of a csv, tsv or the like.

    `ragged` records may have more fields, which are left out, or fewer, and then None in their place. Raises
    `InputError` if the file begins with a title, and, while the records are read, with the line of one that does not
    fit.
    """
    csv.field_size_limit(2**31 - 1)
    source = text.source
    lines, peeked, complete, fixed = _peek_lines(text.lines())
    dialect = find_dialect(peeked, complete, source.kind, fixed)
    numbered = _sample(peeked, complete, dialect)
    if numbered is None:
        numbered = list(_rows(iter(peeked), dialect, source))  # raises with the line
    sample = [row for _, row in numbered]
    if dialect.separator == NO_SEPARATOR:
        _refuse_title(peeked, complete, source)
    first = next((row for row in sample if row), [])
    header = has_header(first, [row for row in sample if row][1:], source.columns)
    width = max(map(len, sample), default=0) if ragged and not header else len(first)
    for number, row in numbered:
        if row and len(row) != width and not ragged:
            raise _wrong_width(source, number, len(row), width, dialect)
    names = _unique(first) if header else [str(number) for number in range(1, width + 1)]
    body = [row for row in sample if row][header:]
    columns = {name: [row[i] for row in body if len(row) > i and row[i].strip()] for i, name in enumerate(names)}

    def select(chosen: Sequence[str]) -> Iterator[tuple[int, list[object]]]:
        places = [names.index(name) for name in chosen]
        seen_header = not header
        for number, row in _rows(lines, dialect, source):
            if not row:
                if seen_header:
                    yield number, [""] * len(places)
                continue
            if not seen_header:
                seen_header = True
                continue
            if len(row) != width and not ragged:
                raise _wrong_width(source, number, len(row), width, dialect)
            yield number, [row[place] if place < len(row) else None for place in places]

    divided = f"{width} columns separated by {dialect.shown}" if width != 1 else "one column"
    return Records(
        source=source,
        shape=f"{divided}{'' if header else ', no header'}{text.noted}",
        names=names,
        is_text={name: not values or not all(map(is_number, values)) for name, values in columns.items()},
        types={name: _type(values) for name, values in columns.items()},
        select=select,
        header=header,
        is_delimited=True,
    )


def is_table(text: Text) -> bool:
    """Say whether a text is a table.

    It is if its ending says so, if all lines have as many tabs, or if its first line holds names and the others as many
    fields.
    """
    if text.source.kind in ("csv", "tsv"):
        return True
    lines = [line for line in text.start.split("\n")[: -1 if not text.complete else None] if line.strip()][:PEEK]
    if len(lines) < 2:
        return False
    if len({line.count("\t") for line in lines}) == 1 and "\t" in lines[0].strip():
        return True
    dialect = find_dialect(list(enumerate(lines)), text.complete, None, None)
    rows = [row for _, row in _sample(list(enumerate(lines)), text.complete, dialect) or []]
    if not rows or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        return False
    return any(name in rows[0] for name in text.source.columns) or is_list_of_names(rows[0])


def find_dialect(lines: list[tuple[int, str]], complete: bool, kind: str | None, separator: str | None) -> Dialect:
    """Return the dialect in which all records of the first lines have as many fields, two at least.

    Where there is none, it is the one in which most records have as many as the first; where the first line has no
    separator, a single column.
    """
    separators = (separator,) if separator else ("\t", ",", ";", "|") if kind == "tsv" else SEPARATORS
    filled = [(number, line) for number, line in lines if line]
    if not filled:
        return Dialect(separators[0], "quoted")
    first = filled[0][1]
    if not separator and first.count("||") >= 2 and len({line.count("||") for _, line in filled}) == 1:
        return Dialect("||", "literal")
    candidates: list[Dialect] = []
    has_escapes = any(ESCAPED.search(line) for _, line in filled)  # else a backslash is text
    for quoting in ("quoted", "spaced", "escaped") if has_escapes else ("quoted", "spaced"):
        for mark in separators:
            found = Dialect(mark, quoting)
            if mark == "\t" and (quoting != "quoted" or not _tabs_are_quoted(filled, complete)):
                found = Dialect(mark, "literal")
            candidates.append(found)
    agreed: list[tuple[tuple[bool, int, int], Dialect]] = []
    partly: list[tuple[float, Dialect]] = []
    for place, found in enumerate(candidates):
        rows = _sample(lines, complete, found)
        counts = [len(row) for _, row in rows or [] if row]
        if counts and counts[0] >= 2:
            agrees = sum(count == counts[0] for count in counts) / len(counts)
            if agrees == 1:
                agreed.append((_preference(first, [row for _, row in rows or [] if row], found), found))
            partly.append((agrees, found))
        if agreed and place % len(separators) == len(separators) - 1:  # of this quoting, all were tried
            return max(agreed, key=lambda one: one[0])[1]
    if not any(mark in first for mark in separators):
        single = Dialect(NO_SEPARATOR, "quoted")
        return single if _sample(lines, complete, single) is not None else Dialect(NO_SEPARATOR, "literal")
    if partly:
        return max(partly, key=lambda one: one[0])[1]
    return Dialect(separators[0], "literal" if separators[0] == "\t" else "quoted")


def _preference(first: str, rows: list[list[str]], dialect: Dialect) -> tuple[bool, int, int]:
    """Return how good a dialect is in which all records have as many fields; the greatest is the best.

    A mark that is always followed by a space is punctuation; more fields are better, then more columns of numbers.
    """
    is_punctuation = first.count(dialect.separator) == first.count(dialect.separator + " ")
    numbers = sum(all(is_number(row[i]) for row in rows) for i in range(len(rows[0])))
    return not is_punctuation, len(rows[0]), numbers


def _tabs_are_quoted(lines: list[tuple[int, str]], complete: bool) -> bool:
    """Say whether quotation marks in a tsv enclose fields, rather than being text.

    They do if the lines have different numbers of tabs and the quoted records do not; or if each field that begins
    with one is enclosed, and either the first line has all its fields enclosed or every enclosed field needed it.
    """
    fields = [line.split("\t") for _, line in lines]
    opened = [field for row in fields for field in row if field.startswith('"')]
    if not opened:
        return False
    if len({len(row) for row in fields}) > 1:
        rows = _sample(lines, complete, Dialect("\t", "quoted"))
        return rows is not None and len({len(row) for _, row in rows if row}) == 1
    enclosed = re.compile(r'"(?:[^"]|"")*"')
    if not all(enclosed.fullmatch(field) for field in opened):
        return False
    return all(field.startswith('"') for field in fields[0]) or all('""' in field[1:-1] for field in opened)


def _peek_lines(lines: Lines) -> tuple[Lines, list[tuple[int, str]], bool, str | None]:
    """Return all lines, the first of them, whether those are all, and the separator that a line `sep=` names."""
    peeked: list[tuple[int, str]] = []
    size = 0
    complete = True
    for number, line in lines:
        peeked.append((number, line))
        size += len(line)
        if len(peeked) == PEEK_LINES or size > PEEK_CHARACTERS:
            complete = False
            break
    named = NAMED_SEPARATOR.match(peeked[0][1]) if peeked else None
    if named:
        peeked = peeked[1:]
    return itertools.chain(peeked, lines), peeked, complete, named[1] if named else None


def _sample(lines: Sequence[tuple[int, str]], complete: bool, dialect: Dialect) -> list[tuple[int, list[str]]] | None:
    """Return the records of the first lines; None if they are not valid in this dialect."""
    rows: list[tuple[int, list[str]]] = []
    try:
        for record in _parse(iter(lines), dialect):
            rows.append(record)
    except csv.Error as error:
        if complete or not rows or "unexpected end of data" not in str(error.args[0]):
            return None
    return rows


def _parse(lines: Lines, dialect: Dialect) -> Rows:
    """Yield the records with the number of their last line; raises `csv.Error`."""
    if dialect.quoting == "literal":
        for number, line in lines:
            yield number, line.split(dialect.separator) if line else []
        return
    last = 0

    def texts() -> Iterator[str]:
        nonlocal last
        for number, line in lines:
            last = number
            yield line + "\n"

    escaped = dialect.quoting == "escaped"
    try:
        for row in csv.reader(
            texts(),
            strict=True,
            delimiter=dialect.separator,
            skipinitialspace=dialect.quoting == "spaced",
            doublequote=not escaped,
            escapechar="\\" if escaped else None,
        ):
            yield last, row
    except csv.Error as error:
        raise csv.Error(f"{error}", last) from None


def _rows(lines: Lines, dialect: Dialect, source: Source) -> Rows:
    try:
        yield from _parse(lines, dialect)
    except csv.Error as error:
        reason, number = error.args
        raise source.error(
            f"is not valid csv with {dialect.shown} between the fields ({reason}). Correct the line; a field that "
            "begins with a quotation mark must be enclosed in them, and those inside it doubled.",
            number,
        ) from None


def _wrong_width(source: Source, number: int, found: int, width: int, dialect: Dialect) -> Exception:
    return source.error(
        f"has {found} field{'s' * (found > 1)} where the first line has {width}, separated by {dialect.shown}. Correct "
        "the line: a field that holds the separator stands in double quotes. If the file is lines of text and no "
        "table, rename it to .txt.",
        number,
    )


def _refuse_title(lines: list[tuple[int, str]], complete: bool, source: Source) -> None:
    """Raise `InputError` if the first line is a title: it has one field, and all others are records of several."""
    filled = [(number, line) for number, line in lines if line.strip()]
    if len(filled) < 3 or is_known_name(filled[0][1]) or source.text_column == filled[0][1]:
        return
    rest = find_dialect(filled[1:], complete, source.kind, None)
    rows = [row for _, row in _sample(filled[1:], complete, rest) or [] if row]
    if len(rows) > 1 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
        raise source.error(
            f"is a single field, and the lines after it have {len(rows[0])}, separated by {rest.shown}: it looks like "
            "a title. Remove it, so that the file begins with the names of its columns or with its first record.",
            filled[0][0],
        )


def _unique(names: list[str]) -> list[str]:
    """Return the names of columns without spaces around them; a second one of a name gets its number."""
    found = [name.strip() for name in names]
    unique = []
    for number, name in enumerate(found, start=1):
        if name in unique:
            while name in found:  # another column may have been given that name
                name = f"{name} ({number})"
        unique.append(name)
    return unique


def _type(values: list[str]) -> str:
    return "empty" if not values else "numbers" if all(map(is_number, values)) else "text"

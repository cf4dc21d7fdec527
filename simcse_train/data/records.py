"""What every kind of table gives: records with named columns, of which some hold text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from simcse_train.data.display import enumerated
from simcse_train.data.source import Source

PEEK = 100  # records looked at to tell which columns hold text

Numbered = Iterator[tuple[int, list[object]]]


@dataclass(frozen=True)
class Records:
    """The records of one table."""

    source: Source
    shape: str  # in words, for the screen: 4 columns separated by ';'
    names: list[str]
    is_text: Mapping[str, bool]
    types: Mapping[str, str]  # of each column, in words, for messages
    select: Callable[[Sequence[str]], Numbered]  # names of columns -> number and values of each record; once
    unit: str = "line"
    is_delimited: bool = False  # fields with separators, of which a record may have too few
    header: bool = True  # are the columns named in the file, not counted

    @property
    def typed(self) -> str:
        """The columns and what they hold, for messages."""
        return enumerated(self.names, self.types)

    @property
    def listed(self) -> str:
        """The columns in words, for messages."""
        names = enumerated(self.names)
        return f"Its columns are {names}" if self.header else f"It has no header; its columns are counted: {names}"


def column_named(records: Records, name: str) -> str | None:
    """Return the column that the user named, or counted from 1 where the fields have separators; None if none is."""
    if name in records.names:
        return name
    is_counted = records.is_delimited and name.isdecimal() and 1 <= int(name) <= len(records.names)
    return records.names[int(name) - 1] if is_counted else None


def is_number(value: object) -> bool:
    """Say whether a value is a number, also one with a decimal comma."""
    if isinstance(value, int | float | Decimal):
        return True
    return isinstance(value, str) and as_number(value) is not None


def as_number(text: str) -> float | None:
    """Return the number that a text is, also with a decimal comma as in `4,5`; None if it is none."""
    text = text.strip()
    if text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return None


def peek(records: Iterator[tuple[int, list[object]]]) -> tuple[list[tuple[int, list[object]]], Numbered]:
    """Return the first records, and all of them again."""
    first = list(itertools.islice(records, PEEK))
    return first, itertools.chain(first, records)

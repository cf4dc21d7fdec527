"""Pairs of sentences, from a table of any format: columns by their usual names, by content or by position."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simcse_train.data.compression import reading_errors
from simcse_train.data.display import shorten
from simcse_train.data.files import open_file
from simcse_train.data.formats import open_tables
from simcse_train.data.pair_columns import columns_of, require_no_count, score_beside, wanted
from simcse_train.data.records import Records, as_number, is_number, peek
from simcse_train.data.source import Source, named

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    """Two sentences and how alike people found them."""

    first: str
    second: str
    score: float


def fingerprint(pairs: list[Pair] | None) -> str | None:
    """Return a SHA-256 of labelled pairs; None where there are none."""
    return None if pairs is None else hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def read_pairs(
    path: Path, option: str = "--data", encoding: str | None = None, *, fallback_encoding: str | None = None
) -> list[Pair]:
    """Read labelled pairs from a table of any format; pairs without a score are skipped.

    `encoding` is that of the file; with `fallback_encoding`, the file has that one unless it is UTF-8. Raises
    `InputError` with the line that can't be read, and if fewer than two pairs remain or all have the same score, which
    leaves a rank correlation undefined.
    """
    source = named(path, option, encoding=encoding, fallback_encoding=fallback_encoding)
    pairs = []
    for place, row in read_columns(source, ("first", "second", "score")):
        if (pair := parse_pair([row["first"], row["second"], row["score"]], place)) is not None:
            pairs.append(pair)
    for side, column in (("first", 0), ("second", 1)):
        if pairs and not any(pair[column] for pair in pairs):
            raise source.error(
                f"has no text in the {side} sentence of any of its {len(pairs)} pairs. Check the columns."
            )
    if pairs and all(pair.first == pair.second for pair in pairs):
        raise source.error(
            f"holds the same sentence twice in each of its {len(pairs)} pairs: all cosines are 1. Check the columns."
        )
    if len(pairs) < 2:
        raise source.error(f"holds {len(pairs)} scored pairs; a rank correlation needs at least two.")
    check_scores(pairs, source)
    return pairs


def check_scores(pairs: Sequence[Pair], source: Source) -> None:
    """Raise `InputError` if the pairs cannot be ranked, since all scores are equal."""
    if len({pair.score for pair in pairs}) < 2:
        raise source.error(
            f"gives all {len(pairs)} pairs the same score, {pairs[0].score:g}: they can't be ranked, so that "
            "Spearman's correlation is undefined. Give pairs with different scores (of a public test set, the version "
            "with its labels)."
        )


class Place(NamedTuple):
    """Where a record stands."""

    source: Source
    number: int

    def error(self, problem: str) -> Exception:
        """Return an `InputError` about this record."""
        return self.source.error(problem, self.number)


def read_columns(
    source: Source, roles: Sequence[str] = ("first", "second"), optional: Sequence[str] = ()
) -> Iterator[tuple[Place, Mapping[str, object]]]:
    """Yield the values of each record of a table by their role: first, second, score, negative.

    `optional` roles are None where the file has no such column; blank records are skipped. Which columns were taken is
    logged. Raises `InputError` if a role has no column, or the file can't be read.
    """
    found_any = False
    grades: set[str] = set()  # of all records: a file may be sorted by them, and an archive have one in each member
    with open_file(Path(source.name), source.option) as raw, reading_errors(source):
        for table in open_tables(raw, source):
            if not table.names:
                continue
            columns = columns_of(table, roles, optional)
            graded = None if "score" in roles else score_beside(table, columns)
            first, rows = peek(table.select([*columns.values(), *([graded] if graded else [])]))
            require_no_count(table, columns, first)
            _say(table, columns, first)
            for place, (role, name) in enumerate(columns.items()):
                filled = [row[place] for _, row in first if row[place] is not None and str(row[place]).strip()]
                if role != "score" and len(filled) > 1 and all(map(is_number, filled)):
                    raise table.source.error(
                        f"holds only numbers, such as {filled[0]}, in column {name!r}, and no sentences. "
                        f"{table.listed}. Name the columns of the pairs {wanted(roles)}."
                    )
            for number, row in rows:
                if graded and not _is_missing(row[-1]):
                    grades.add(str(row[-1]).strip())
                    _require_one_grade(grades, graded, table.source)
                if all(value is None or not str(value).strip() for value in row):
                    continue
                found_any = True
                values = dict.fromkeys(optional) | dict(zip(columns, row, strict=False))  # `graded` is left out
                record = Place(table.source, number)
                if table.is_delimited and any(values[role] is None for role in roles):
                    raise record.error(f"has too few fields ({table.shape}); a pair needs {wanted(roles)}.")
                for role in ("first", "second", "negative"):
                    if role in columns and not isinstance(values[role], str | None):
                        raise record.error(
                            f": {columns[role]!r} is not text but {shorten(str(values[role]))}. Correct it."
                        )
                yield record, values
    if not found_any:
        raise source.error(f"is empty. A file of pairs has one pair a line: {wanted(roles)}.")


def _is_missing(value: object) -> bool:
    """Say whether a record has no value in a column; the second is NaN."""
    return value is None or value != value or not str(value).strip()


def _require_one_grade(grades: set[str], column: str, source: Source) -> None:
    """Raise `InputError` if pairs that are all to be learned have different scores or labels."""
    if len(grades) > 1:
        one, other = sorted(grades)
        raise source.error(
            f"has scores or labels in column {column!r}, such as {one} and {other}, and all pairs would be learned as "
            "alike. Keep the pairs that are alike, and remove the column."
        )


def _say(table: Records, columns: Mapping[str, str], first: list[tuple[int, list[object]]]) -> None:
    shown = ", ".join(f"{role} from {name!r}" for role, name in columns.items())
    example = f", for example {' / '.join(shorten(str(value)) for value in first[0][1])}" if first else ""
    logger.info(f"{table.source.name}: {table.shape}; {shown}{example}.")


def parse_pair(values: Sequence[object], place: Place) -> Pair | None:
    """Return a pair of two sentences and a score, or None where there is no score.

    Raises `InputError` if it is no number.
    """
    first, second, score = values
    if _is_missing(score):
        return None
    try:
        label = float(score) if isinstance(score, int | float | Decimal) else as_number(str(score))
    except OverflowError:  # a whole number beyond all floats
        label = None
    if (
        label is None
        or not np.isfinite(label)
        or not is_number(score if not isinstance(score, np.generic) else float(score))
    ):
        raise place.error(
            f": the score {str(score)!r} is not a number. Write a number, the greater the more alike, or nothing, and "
            "the pair is left out."
        )
    return Pair(str(first or "").strip(), str(second or "").strip(), label)

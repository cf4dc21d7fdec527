"""Pairs of sentences, from a table of any format: columns by their usual names, by content or by position."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simcse_train.data.compression import reading_errors
from simcse_train.data.display import shorten
from simcse_train.data.files import open_file
from simcse_train.data.formats import open_tables
from simcse_train.data.header import plain_name
from simcse_train.data.records import Records, as_number, is_number, peek
from simcse_train.data.source import Source, named

# Usual names of the two sentences of a pair, in the order in which they are looked for; without marks and capitals.
COUPLES = (
    "sentence1 sentence2", "sentencea sentenceb", "text1 text2", "texta textb", "sent1 sent2", "sent0 sent1", "s1 s2",
    "question1 question2", "q1 q2", "title1 title2", "premise hypothesis", "anchor positive", "query positive",
    "query document", "query passage", "query answer", "question answer", "sentence paraphrase", "text paraphrase",
    "source target", "input output", "first second", "left right", "a b", "title body", "query pos", "句子1 句子2",
    "文本1 文本2",
)  # fmt: skip
NAMES: dict[str, tuple[str, ...]] = {
    "score": (
        "score", "similarityscore", "similarity", "sim", "relatednessscore", "relatedness", "rating", "goldscore",
        "gold", "label", "labels", "goldlabel", "isduplicate", "duplicate", "y", "target", "相似度", "分数", "标签",
    ),
    "negative": ("negative", "hardnegative", "hardneg", "neg", "negative1", "sent2", "sentence3"),
}  # fmt: skip

# How the types of columns that can be scores begin, as the readers name them; a list of words is no score.
NUMBERS = re.compile(r"numbers|true or false|bool|u?int|halffloat|float|double|decimal")

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
            graded = None if "score" in roles else _score_beside(table, columns)
            first, rows = peek(table.select([*columns.values(), *([graded] if graded else [])]))
            _say(table, columns, first)
            for place, (role, name) in enumerate(columns.items()):
                filled = [row[place] for _, row in first if row[place] is not None and str(row[place]).strip()]
                if role != "score" and len(filled) > 1 and all(map(is_number, filled)):
                    raise table.source.error(
                        f"holds only numbers, such as {filled[0]}, in column {name!r}, and no sentences. "
                        f"{table.listed}. Name the columns of the pairs {_wanted(roles)}."
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
                    raise record.error(f"has too few fields ({table.shape}); a pair needs {_wanted(roles)}.")
                for role in ("first", "second", "negative"):
                    if role in columns and not isinstance(values[role], str | None):
                        raise record.error(
                            f": {columns[role]!r} is not text but {shorten(str(values[role]))}. Correct it."
                        )
                yield record, values
    if not found_any:
        raise source.error(f"is empty. A file of pairs has one pair a line: {_wanted(roles)}.")


def columns_of(table: Records, roles: Sequence[str], optional: Sequence[str] = ()) -> dict[str, str]:
    """Return the column of each role.

    Raises `InputError` that names the columns there are and those that are looked for.
    """
    found = _by_name(table, [*roles, *optional]) if table.header else _by_position(table, [*roles, *optional])
    missing = [role for role in roles if role not in found]
    if missing:
        if not table.header and len(table.names) < len(roles):
            raise table.source.error(f"has too few fields ({table.shape}); a pair needs {_wanted(roles)}.", 1)
        raise table.source.error(
            f"has no columns for a pair that can be told. {table.listed}; {table.shape}. Name them {_wanted(roles)}"
            f"{' in the first line' if table.is_delimited else ''}."
        )
    return found


def _score_beside(table: Records, columns: Mapping[str, str]) -> str | None:
    """Return the column that grades pairs which are all to be learned, None where there is none.

    A second sentence that is called positive is one, whatever its score.
    """
    if plain_name(columns["second"]) in ("positive", "pos"):
        return None
    others = {plain_name(name): name for name in reversed(table.names) if name not in columns.values()}
    return next((others[name] for name in NAMES["score"] if name in others), None)


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


def _wanted(roles: Sequence[str]) -> str:
    names = (
        {"first": "sentence1", "second": "sentence2"} if "score" in roles else {"first": "anchor", "second": "positive"}
    )
    listed = [names.get(role, role) for role in roles]
    return f"{', '.join(listed[:-1])} and {listed[-1]}"


def _by_name(table: Records, roles: Sequence[str]) -> dict[str, str]:
    """Return the columns with usual names; where they have others, the only two of text and the only one of numbers."""
    plain = {plain_name(name): name for name in reversed(table.names)}
    found: dict[str, str] = {}
    couples = [couple.split() for couple in COUPLES]
    if "score" not in roles:  # named as anchors and positives rather than as two sentences
        couples.sort(key=lambda couple: couple[1] not in ("positive", "pos"))
    for first, second in couples:
        if first in plain and second in plain:
            found |= {"first": plain[first], "second": plain[second]}
            break
    for role in roles:
        name = next((name for name in NAMES.get(role, ()) if name in plain and plain[name] not in found.values()), None)
        if name is not None:
            found[role] = plain[name]
    texts = [name for name in table.names if table.is_text[name] and name not in found.values()]
    numbers = [name for name in table.names if NUMBERS.match(table.types[name])]
    if "first" not in found and len(texts) == 2:
        found |= {"first": texts[0], "second": texts[1]}
    if "score" in roles and "score" not in found and len(numbers) == 1:
        found["score"] = numbers[0]
    return {role: found[role] for role in roles if role in found}


def _by_position(table: Records, roles: Sequence[str]) -> dict[str, str]:
    """Return the columns of a table without header.

    Known are STS-B, `id||a||b||score`, and two sentences with a score after or before them.
    """
    names = table.names
    is_number_column = [table.types[name] == "numbers" for name in names]
    if "score" not in roles:
        return dict(zip(roles, names, strict=False))
    if len(names) >= 7 and is_number_column[4] and not any(is_number_column[5:7]):
        places = (5, 6, 4)  # STS-B: genre, file, year, number, score, sentence, sentence
    elif len(names) == 3 and is_number_column == [True, False, False]:
        places = (1, 2, 0)
    elif len(names) == 3:
        places = (0, 1, 2)
    elif len(names) > 3 and is_number_column[-1]:
        places = (len(names) - 3, len(names) - 2, len(names) - 1)
    elif len(names) > 3 and is_number_column[2] and not any(is_number_column[:2]):
        places = (0, 1, 2)
    else:
        return {}
    return {role: names[place] for role, place in zip(("first", "second", "score"), places, strict=True)}


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

"""Pairs of sentences that people have scored for similarity."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simcse_train.data.files import open_file, read_lines
from simcse_train.errors import InputError

COLUMNS = ("sentence1", "sentence2", "score")


class Pair(NamedTuple):
    """Two sentences and how alike people found them."""

    first: str
    second: str
    score: float


def fingerprint(pairs: list[Pair] | None) -> str | None:
    """Return a SHA-256 of labelled pairs; None where there are none."""
    return None if pairs is None else hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def read_pairs(path: Path, option: str = "--data") -> list[Pair]:
    """Read labelled pairs: STS-B's csv, `id||a||b||score`, or csv, tsv or jsonl with sentence1, sentence2, score.

    A csv or tsv may also have just these three columns and no header; pairs without a score are skipped. Raises `InputError` with
    the line that can't be read.
    """
    named = Path(f"{option} {path}")  # as messages name the file
    with open_file(path, option) as raw:
        lines = [(number, line) for number, line in read_lines(raw, named) if line.strip()]
    if not lines:
        raise InputError(f"{named} is empty. A file of pairs has a line 'sentence1, sentence2, score' for each pair.")
    pairs = [pair for pair in _parse_pairs(lines, named) if pair is not None]
    if len(pairs) < 2:
        raise InputError(f"{named} holds {len(pairs)} scored pairs; a rank correlation needs at least two.")
    return pairs


def _parse_pairs(lines: list[tuple[int, str]], path: Path) -> Iterator[Pair | None]:
    if path.suffix == ".jsonl":
        for number, line in lines:
            try:
                record = json.loads(line)
                yield parse_pair([record[column] for column in COLUMNS], path, number)
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{path}, line {number}: not a JSON object with {', '.join(COLUMNS)}.") from None
        return
    first = lines[0][1]
    fields: tuple[int, ...] = (0, 1, 2)
    if first.count("||") == 3:
        split = [(number, line.split("||")) for number, line in lines]
        fields = (1, 2, 3)
    elif "\t" in first:
        split = [(number, line.split("\t")) for number, line in lines]
        if len(split[0][1]) >= 7:  # STS-B: genre, file, year, number, score, sentence, sentence
            fields = (5, 6, 4)
    else:
        try:
            reader = csv.reader((line + "\n" for _, line in lines), strict=True)
            split = [(number, record) for (number, _), record in zip(lines, reader, strict=True)]
        except (csv.Error, ValueError):
            raise InputError(
                f"{path} is not valid csv: each pair must stand on one line, quoted where it holds a comma."
            ) from None
    header = [name.strip().lower() for name in split[0][1]]
    if set(COLUMNS) <= set(header):
        fields = tuple(header.index(column) for column in COLUMNS)
        split = split[1:]
    for number, record in split:
        if len(record) <= max(fields):
            raise InputError(
                f"{path}, line {number} has {len(record)} fields; a pair needs sentence1, sentence2 and score."
            )
        yield parse_pair([record[i] for i in fields], path, number)


def parse_pair(values: Sequence[object], path: Path, number: int) -> Pair | None:
    first, second, score = values
    if score is None or not str(score).strip():
        return None
    try:
        label = float(str(score))
    except ValueError:
        label = float("nan")
    if not np.isfinite(label):
        raise InputError(f"{path}, line {number}: the score {str(score)!r} is not a number.")
    return Pair(str(first).strip(), str(second).strip(), label)

"""Pairs to learn from: anchor, positive, and where there is one a hard negative."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simcse_train.data.files import open_file, read_lines, text_format
from simcse_train.data.sentences import SentenceList
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.errors import InputError

# The columns by the names that are in use: ours, the paper's NLI file, sentence-transformers, retrieval, scored pairs.
NAMES = (
    ("anchor", "positive", "negative"),
    ("sent0", "sent1", "hard_neg"),
    ("query", "positive", "negative"),
    ("sentence1", "sentence2", "sentence3"),
)
ABSENT = -1  # in the place of a hard negative that a pair does not have


@dataclass(frozen=True)
class TrainingPairs:
    """Pairs by the numbers of their sentences."""

    rows: NDArray[np.int64]  # (pairs, 2), or (pairs, 3) where any has a hard negative; ABSENT for those without
    sentences: SentenceList  # distinct
    fingerprint: str


def open_training_pairs(path: Path, tokenizer: SentenceTokenizer, max_length: int) -> TrainingPairs:
    """Return the pairs of a file, each sentence cut at `max_length` tokens; raises `InputError`."""
    records = list(read_training_pairs(path))
    if len(records) < 2:
        raise InputError(f"--pairs {path} holds {len(records)} pairs; at least two are needed.")
    numbers: dict[str, int] = {}
    views = 3 if any(len(record) > 2 for record in records) else 2
    rows = np.full((len(records), views), ABSENT, dtype=np.int64)
    for pair, record in enumerate(records):
        rows[pair, : len(record)] = [numbers.setdefault(sentence, len(numbers)) for sentence in record]
    sentences = list(numbers)
    tokens = tokenizer.tokenize(sentences, max_length)
    return TrainingPairs(rows, SentenceList(sentences, tokens), _digest(records))


def read_training_pairs(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the sentences of each pair, two or three, from a csv, tsv or jsonl file.

    The columns are found by their names (see `NAMES`); without known names they are the first two or three. Raises
    `InputError` with the line where a sentence is missing.
    """
    if not path.is_file():
        raise InputError(f"--pairs {path}: there is no such file. Check the path.")
    kind = text_format(path)
    if kind == ".parquet":
        raise InputError(f"--pairs {path} is no csv, tsv or jsonl file. Convert it.")
    with open_file(path, "--pairs") as raw:
        lines = ((number, line) for number, line in read_lines(raw, path) if line.strip())
        for number, fields in _json_records(lines, path) if kind == ".jsonl" else _table_records(lines, path, kind):
            record = tuple(field.strip() for field in [*fields, "", "", ""][:3])
            if not record[0] or not record[1]:
                raise InputError(
                    f"--pairs {path}, line {number} does not hold an anchor and a positive. Each line needs both; a "
                    "hard negative may follow."
                )
            yield record if record[2] else record[:2]


def _table_records(lines: Iterator[tuple[int, str]], path: Path, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and anchor, positive and, where there is one, hard negative of each line of a csv or tsv."""
    number = 0

    def source() -> Iterator[str]:
        nonlocal number
        for at, line in lines:
            number = at
            yield line + "\n"

    reader = csv.reader(source(), delimiter="\t", quoting=csv.QUOTE_NONE) if kind == ".tsv" else csv.reader(source())
    columns: list[int] | None = None
    try:
        for fields in reader:
            if columns is None:
                header = [field.strip().lower() for field in fields]
                names = _known(header)
                columns = [header.index(name) for name in names if name in header] if names else [0, 1, 2]
                if names:
                    continue
            yield number, [fields[column] if column < len(fields) else "" for column in columns]
    except csv.Error as error:
        raise InputError(f"--pairs {path}, line {number} is not valid csv ({error}). Fix the line.") from None


def _json_records(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and anchor, positive and, where there is one, hard negative of each JSON object or array."""
    for number, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            record = [record.get(name) for name in _known(list(record)) or list(record)[:3]]
        if not isinstance(record, list) or not all(isinstance(value, str | None) for value in record):
            raise InputError(f"--pairs {path}, line {number} is no JSON object or array of sentences.")
        yield number, [value or "" for value in record]


def _known(columns: list[str]) -> tuple[str, ...]:
    """Return the names of `NAMES` that the columns have, empty where they have none of them."""
    return next((names for names in NAMES if set(names[:2]) <= set(columns)), ())


def _digest(records: list[tuple[str, ...]]) -> str:
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()

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
    columns: list[int] | None = None
    for number, fields in _records(path):
        if columns is None:
            header = [field.strip().lower() for field in fields]
            known = next((names for names in NAMES if set(names[:2]) <= set(header)), None)
            columns = (
                [header.index(name) for name in known if name in header] if known else list(range(len(fields)))[:3]
            )
            if known:
                continue
        record = [fields[column].strip() if column < len(fields) else "" for column in columns]
        if len(record) < 2 or not record[0] or not record[1]:
            raise InputError(
                f"--pairs {path}, line {number} does not hold an anchor and a positive. Each line needs both; a hard "
                "negative may follow."
            )
        yield tuple(record if record[-1] else record[:2])


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of each record; of a jsonl file the names of the fields come first."""
    kind = text_format(path)
    if kind == ".parquet" or not path.is_file():
        raise InputError(f"--pairs {path} is no csv, tsv or jsonl file. Check the path, or convert the file.")
    with open_file(path, "--pairs") as raw:
        lines = ((number, line) for number, line in read_lines(raw, path) if line.strip())
        if kind == ".jsonl":
            names: list[str] = []
            for number, line in lines:
                try:
                    values = json.loads(line)
                except ValueError:
                    values = None
                if isinstance(values, dict):
                    if not names:
                        names = list(values)
                        yield number, names
                    values = [values.get(name) for name in names]
                if not isinstance(values, list) or not all(isinstance(v, str | None) for v in values[:3]):
                    raise InputError(f"--pairs {path}, line {number} is no JSON object or array of sentences.")
                yield number, [value or "" for value in values]
            return
        numbered: list[int] = []  # the line on which the present record began

        def source() -> Iterator[str]:
            for number, line in lines:
                numbered[:] = [number]
                yield line + "\n"

        is_tsv = kind == ".tsv"
        reader = csv.reader(source(), delimiter="\t", quoting=csv.QUOTE_NONE) if is_tsv else csv.reader(source())
        try:
            for fields in reader:
                yield numbered[0], fields
        except csv.Error as error:
            raise InputError(
                f"--pairs {path}, line {reader.line_num} is not valid csv ({error}). Fix the line."
            ) from None


def _digest(records: list[tuple[str, ...]]) -> str:
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()

"""The distinct sentences of a text, tokenised and memory-mapped."""

from __future__ import annotations

import json
import logging
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simcse_train.data.cache import ROWS_AT_ONCE, SAID, Counts, build, digest, file_hash, stamp, tokenised_folder
from simcse_train.data.files import find_files, open_file, require_lasting, say_left_out
from simcse_train.data.source import inner_ending, named
from simcse_train.data.texts import read_texts
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.errors import InputError

# The system maps up to 2 MiB around each place of a file that is read. After so many places it is told that this
# process does not need them, or its memory would grow to the size of the file. They stay in the system's cache.
READ_AT_ONCE = 32
CACHE_VERSION = 2  # how a file is understood; another number reads every text anew

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Distinct sentences, tokenised, on disk."""

    batches: Sequence[pa.RecordBatch]  # of all sentences, with their text and token ids
    firsts: NDArray[np.int64]  # (batches,): the number of the first row of each
    rows: NDArray[np.int64]  # (sentences,): the row of each distinct sentence
    mapped: Sequence[mmap.mmap]  # the files behind the batches and `rows`
    counts: Counts
    fingerprint: str  # of the text alone: the same for a moved or renamed file

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, sentences: NDArray[np.int64]) -> list[list[int]]:
        """Return the token ids of the sentences with these numbers."""
        return self._read("input_ids", sentences)

    def texts(self, sentences: NDArray[np.int64]) -> list[str]:
        """Return the sentences with these numbers."""
        return self._read("text", sentences)

    def _read(self, column: str, sentences: NDArray[np.int64]) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(sentences), READ_AT_ONCE):
            rows = self.rows[sentences[start : start + READ_AT_ONCE]]
            numbers = np.searchsorted(self.firsts, rows, side="right") - 1  # of the batches
            places = zip(numbers.tolist(), (rows - self.firsts[numbers]).tolist(), strict=True)
            found += [self.batches[number][column][place].as_py() for number, place in places]
            for mapped in self.mapped:
                mapped.madvise(mmap.MADV_DONTNEED)
        return found


def open_corpus(
    data: Sequence[str],
    text_column: str | None,
    tokenizer: SentenceTokenizer,
    max_length: int,
    expected: str | None = None,
    encoding: str | None = None,
) -> Corpus:
    """Return the sentences of the files, folders and globs in `data`, each cut at `max_length` tokens.

    Tokenised text is kept in the cache and used again. `expected` is the fingerprint that the text must have. If the
    files are gone, the tokenised copy of that text will do. Raises `InputError` if a file can't be read, holds no
    text or another text, or if fewer than two sentences remain.
    """
    try:
        files = find_files(data)
    except InputError as error:
        if expected is None:
            raise
        folder = tokenised_folder(expected, tokenizer, max_length)
        if not folder.is_dir():
            raise InputError(f"{error} If the text was moved, name its new place with --data.") from None
        logger.warning(f"{error} Continuing with the tokenised copy of the text in {folder}.")
        return _open(folder, data, expected)
    require_lasting(files, "--data")
    say_left_out(data)
    before = [stamp(path) for path in files]
    hashes = [file_hash(path) for path in files]
    fingerprint = digest(
        [
            CACHE_VERSION,
            [[content, inner_ending(path)] for content, path in zip(hashes, files, strict=True)],
            text_column,
            encoding,
        ]
    )
    if expected not in (None, fingerprint, _fingerprint_of_0_1_0(files, hashes, text_column)):
        kept = tokenised_folder(expected or "", tokenizer, max_length)
        or_move = f", move the new one away to continue with the tokenised copy in {kept}" if kept.is_dir() else ""
        raise InputError(
            f"--data {' '.join(data)} is not the text that the run was trained on: its content has changed. Restore "
            f"the old text{or_move}, or start a new run from the encoder with --model."
        )
    folder = tokenised_folder(fingerprint, tokenizer, max_length)
    if not folder.is_dir():
        build(files, text_column, encoding, tokenizer, max_length, folder, before)
    else:  # say again how the files are understood
        for path in files[:SAID]:
            with open_file(path) as raw:
                next(read_texts(raw, named(path, text_column=text_column, encoding=encoding)), None)
    return _open(folder, data, fingerprint)


def _fingerprint_of_0_1_0(files: Sequence[Path], hashes: Sequence[str], text_column: str | None) -> str:
    """Return the fingerprint that version 0.1.0 gave a text, so that its runs can be resumed."""
    endings = [inner_ending(path) for path in files]
    known = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
    formats = [ending if ending in known else "other" for ending in endings]
    return digest([1, [list(pair) for pair in zip(hashes, formats, strict=True)], text_column])


def _open(folder: Path, data: Sequence[str], fingerprint: str) -> Corpus:
    """Map the tokenised text in a folder of the cache."""
    try:
        counts = Counts(**json.loads((folder / "counts.json").read_text()))
        with (folder / "sentences.arrow").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        batches = _read_heads(mapped)
        ends = np.cumsum([len(batch) for batch in batches], dtype=np.int64)
        rows: np.memmap[Any, np.dtype[np.int64]] = np.load(folder / "rows.npy", mmap_mode="r")
        if len(rows) != counts.sentences or (len(rows) and rows[-1] >= ends[-1]):
            raise ValueError("it is cut short")
        _require_rising(rows)
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise InputError(
            f"The tokenised text in {folder} can't be read ({error}). Delete that folder and run again."
        ) from None
    if counts.sentences < 2:
        found = {0: "no sentence", 1: "a single sentence"}[counts.sentences]
        raise InputError(
            f"--data {' '.join(data)} holds {found} ({counts.lines} lines, {counts.empty} empty, {counts.duplicates} "
            "duplicates); at least two different ones are needed, one a line."
        )
    assert isinstance(rows.base, mmap.mmap)
    firsts = ends - [len(batch) for batch in batches]
    return Corpus(batches, firsts, rows, [mapped, rows.base], counts, fingerprint)


def _require_rising(rows: np.memmap[Any, np.dtype[np.int64]]) -> None:
    """Raise `ValueError` if `rows` (sentences,) can't be numbers of rows, by parts: their memory does not grow."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[max(0, start - 1) : start + ROWS_AT_ONCE]
        if some[0] < 0 or (some[1:] <= some[:-1]).any():
            raise ValueError("its rows.npy is damaged")
        assert isinstance(rows.base, mmap.mmap)
        rows.base.madvise(mmap.MADV_DONTNEED)


def _read_heads(mapped: mmap.mmap) -> list[pa.RecordBatch]:
    """Return the record batches of an Arrow file, of which this reads no more than the head of each."""
    batches: list[pa.RecordBatch] = []
    with pa.ipc.open_stream(pa.py_buffer(mapped)) as reader:
        for batch in reader:
            batches.append(batch)
            if len(batches) % READ_AT_ONCE == 0:
                mapped.madvise(mmap.MADV_DONTNEED)
    return batches

"""The cache of tokenised text.

A text is read once: every line is decoded, trimmed, hashed and tokenised in a stream, and written to an Arrow file in
the cache. The next run on the same text with the same tokenizer opens that file and reads nothing else. Memory: two
bytes a line.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm
from xxhash import xxh3_64_intdigest

from simcse_train import distributed
from simcse_train.cache import cache_folder
from simcse_train.data.duplicates import FirstOfEach
from simcse_train.data.files import open_file
from simcse_train.data.source import Source, named
from simcse_train.data.texts import read_blocks
from simcse_train.encoders.token_rows import TokenRows
from simcse_train.encoders.tokenizer import MAX_CHARACTERS, SentenceTokenizer
from simcse_train.errors import InputError

# How much is tokenised and written at once: enough to use every core, little enough that long lines do not fill memory.
CHUNK_SENTENCES = 4096
CHUNK_CHARACTERS = 4_000_000
MOST_THREADS = 4  # more would wait for each other in Python
ROWS_AT_ONCE = 2**20
SAID = 5  # files of which the screen says how they were understood

SCHEMA = pa.schema({"text": pa.string(), "input_ids": pa.list_(pa.int32())})


@dataclass(frozen=True)
class Counts:
    """What became of the lines of a text."""

    lines: int
    empty: int
    duplicates: int
    cut: int
    sentences: int


def tokenised_folder(fingerprint: str, tokenizer: SentenceTokenizer, max_length: int) -> Path:
    """Return the folder of the cache for a text, a tokenizer and a length."""
    return cache_folder() / digest([fingerprint, tokenizer.fingerprint(), max_length])[:32]


def build(
    files: list[Path],
    text_column: str | None,
    encoding: str | None,
    tokenizer: SentenceTokenizer,
    max_length: int,
    folder: Path,
    before: list[tuple[int, int]],
) -> None:
    """Write the cache folder of a corpus, all of it or none.

    `before` is what the files looked like when they were hashed.
    """
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        with _claim(partial):
            sources = [named(path, text_column=text_column, encoding=encoding) for path in files]
            firsts = FirstOfEach(partial / "hashes")  # of equal sentences the first stays
            lines, empty, cut = _write_sentences(sources, tokenizer, max_length, partial / "sentences.arrow", firsts)
            is_first = firsts.find()
            shutil.rmtree(firsts.folder, ignore_errors=True)
            sentences = _write_rows(is_first, partial / "rows.npy")
            counts = Counts(lines, empty, len(is_first) - sentences, int((cut & is_first).sum()), sentences)
            (partial / "counts.json").write_text(json.dumps(asdict(counts)))
            if [stamp(path) for path in files] != before:
                raise InputError(
                    f"--data: {' '.join(map(str, files))} changed while it was read. Run again when it is complete."
                )
            for file in partial.iterdir():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            if not folder.is_dir():
                partial.rename(folder)
    except OSError as error:
        if folder.is_dir():  # another run on the same text was faster
            return
        raise InputError(
            f"The tokenised text can't be kept in {folder.parent} ({error.strerror or error}). Free "
            "disk space there, or set XDG_CACHE_HOME to a folder that you may write to."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _claim(partial: Path) -> IO[str]:
    """Make a folder to build in, and sweep those of dead processes.

    Returns the open file whose lock says that this one is alive.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    with (partial.parent / ".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        _sweep(partial.parent)
        partial.mkdir()
        alive = (partial / "lock").open("w")
        fcntl.flock(alive, fcntl.LOCK_EX)
    return alive


def _sweep(parent: Path) -> None:
    """Remove what builds left behind whose process is dead: nobody holds their lock."""
    for partial in parent.glob("*.partial"):
        with contextlib.suppress(OSError), (partial / "lock").open("w") as in_use:
            fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial, ignore_errors=True)


def stamp(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file; raises `InputError` if it is gone."""
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(
            f"--data {path} can't be read: {error.strerror}. Check the file and its permissions."
        ) from None
    return found.st_size, found.st_mtime_ns


def _write_sentences(
    sources: list[Source], tokenizer: SentenceTokenizer, max_length: int, target: Path, firsts: FirstOfEach
) -> tuple[int, int, NDArray[np.bool_]]:
    """Tokenise all files into one Arrow file, and give the hash of each sentence to `firsts`.

    Returns the counts of lines and of empty ones, and whether each sentence was cut.
    """
    cuts: list[NDArray[np.bool_]] = []
    lines = empty = done = 0
    sizes = [stamp(Path(source.name))[0] for source in sources]
    with (
        pa.ipc.new_stream(str(target), SCHEMA) as writer,
        tqdm(
            total=sum(sizes),
            desc="tokenise",
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None if distributed.is_main() else True,  # None: where the screen is no terminal
        ) as bar,
    ):
        for place, (source, size) in enumerate(zip(sources, sizes, strict=True)):
            with open_file(Path(source.name)) as raw:
                blocks = read_blocks(raw, source, say=place < SAID)
                for found, texts, rows in _tokenised(chunks(blocks), tokenizer, max_length):
                    lines += found
                    empty += found - len(texts)
                    firsts.add(np.fromiter(map(xxh3_64_intdigest, map(str.encode, texts)), np.uint64, len(texts)))
                    cuts.append(rows.is_cut)
                    writer.write_batch(_record_batch(texts, rows))
                    bar.update(done + raw.tell() - bar.n)
                done += size
    return lines, empty, np.concatenate([np.zeros(0, dtype=bool), *cuts])


def _tokenised(
    chunks: Iterable[list[str]], tokenizer: SentenceTokenizer, max_length: int
) -> Iterator[tuple[int, list[str], TokenRows]]:
    """Yield of each chunk its number of lines, and its texts that have tokens with these.

    Threads work ahead, each on one chunk.
    """

    def tokenise(chunk: list[str]) -> tuple[int, list[str], TokenRows]:
        texts = [text for line in chunk if (text := line.strip())]
        rows = tokenizer.tokenize_rows(texts, max_length)
        # A text of control characters alone has no token: it is as empty as a blank line.
        full = np.flatnonzero(rows.lengths > tokenizer.special_tokens)
        if len(full) < len(texts):
            texts, rows = [texts[place] for place in full.tolist()], rows.take(full)
        return len(chunk), texts, rows

    threads = min(MOST_THREADS, os.cpu_count() or 1) if tokenizer.takes_threads else 1
    with ThreadPoolExecutor(threads) as workers:
        ahead: deque[Future[tuple[int, list[str], TokenRows]]] = deque()
        for chunk in chunks:
            ahead.append(workers.submit(tokenise, chunk))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _record_batch(texts: list[str], rows: TokenRows) -> pa.RecordBatch:
    ends = pa.array(np.append(0, rows.lengths.cumsum()), pa.int32())
    tokens = pa.ListArray.from_arrays(ends, pa.array(rows.tokens))
    return pa.record_batch([pa.array([text[:MAX_CHARACTERS] for text in texts], pa.string()), tokens], schema=SCHEMA)


def _write_rows(is_first: NDArray[np.bool_], target: Path) -> int:
    """Write where in the Arrow file each distinct sentence stands, as `np.save` does; return how many there are."""
    count = int(is_first.sum())
    with target.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": (count,)})
        for start in range(0, len(is_first), ROWS_AT_ONCE):
            rows = start + np.flatnonzero(is_first[start : start + ROWS_AT_ONCE])
            stream.write(rows.astype("<i8").tobytes())
    return count


def chunks(blocks: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yield the texts of all blocks in chunks that end at `CHUNK_SENTENCES`, or where they pass `CHUNK_CHARACTERS`."""
    chunk: list[str] = []
    characters = 0
    for block in blocks:
        start = 0
        while start < len(block):
            some = block[start : start + CHUNK_SENTENCES - len(chunk)]
            sizes = list(itertools.accumulate(map(len, some), initial=characters))
            some = some[: bisect.bisect_right(sizes, CHUNK_CHARACTERS)]
            chunk += some
            characters = sizes[len(some)]
            start += len(some)
            if len(chunk) == CHUNK_SENTENCES or characters > CHUNK_CHARACTERS:
                yield chunk
                chunk, characters = [], 0
    if chunk:
        yield chunk


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file; raises `InputError` if it can't be read."""
    with open_file(path) as stream:
        try:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        except OSError as error:
            raise InputError(
                f"--data {path} can't be read: {error.strerror}. Check the file and its permissions."
            ) from None


def digest(content: object) -> str:
    """Return the SHA-256 of what can be written as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

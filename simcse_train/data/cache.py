"""The cache of tokenised text.

A text is read once: every line is decoded, trimmed, hashed and tokenised in a stream, and written to an Arrow file in
the cache. The next run on the same text with the same tokenizer opens that file and reads nothing else. Memory: two
bytes a line.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm

from simcse_train import distributed
from simcse_train.cache import cache_folder
from simcse_train.data.duplicates import FirstOfEach
from simcse_train.data.files import open_file
from simcse_train.data.source import Source, named
from simcse_train.data.texts import read_texts
from simcse_train.encoders.tokenizer import MAX_CHARACTERS, SentenceTokenizer
from simcse_train.errors import InputError

# How much is tokenised and written at once: enough to use every core, little enough that long lines do not fill memory.
CHUNK_SENTENCES = 4096
CHUNK_CHARACTERS = 4_000_000
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
            f"The tokenised text can't be kept in {folder.parent} ({error.strerror or error}). Free space, or set "
            "XDG_CACHE_HOME to "
            "another folder."
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
    special = tokenizer.special_tokens
    sizes = [stamp(Path(source.name))[0] for source in sources]
    with (
        pa.ipc.new_stream(str(target), SCHEMA) as writer,
        tqdm(
            total=sum(sizes),
            desc="tokenise",
            unit="B",
            unit_scale=True,
            leave=False,
            disable=not distributed.is_main(),
        ) as bar,
    ):
        for place, (source, size) in enumerate(zip(sources, sizes, strict=True)):
            with open_file(Path(source.name)) as raw:
                records = read_texts(raw, source, say=place < SAID)
                for found, texts, ids, cut in _tokenised(_chunks(records), tokenizer, max_length):
                    lines += found
                    # A text of control characters alone has no token: it is as empty as a blank line.
                    full = [i for i, row in enumerate(ids) if len(row) > special]
                    empty += found - len(full)
                    firsts.add(np.array([_hash(texts[i]) for i in full], dtype=np.uint64))
                    cuts.append(np.array([cut[i] for i in full], dtype=bool))
                    columns = [[texts[i][:MAX_CHARACTERS] for i in full], [ids[i] for i in full]]
                    writer.write_batch(
                        pa.record_batch(
                            [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
                        )
                    )
                    bar.update(done + raw.tell() - bar.n)
                done += size
    return lines, empty, np.concatenate([np.zeros(0, dtype=bool), *cuts])


def _tokenised(
    chunks: Iterable[list[str]], tokenizer: SentenceTokenizer, max_length: int
) -> Iterator[tuple[int, list[str], list[list[int]], list[bool]]]:
    """Yield of each chunk its number of lines, its texts, their token ids and which were cut.

    A thread works one chunk ahead.
    """

    def tokenise(chunk: list[str]) -> tuple[int, list[str], list[list[int]], list[bool]]:
        texts = [text for line in chunk if (text := line.strip())]
        return len(chunk), texts, *(tokenizer.tokenize_and_mark(texts, max_length) if texts else ([], []))

    with ThreadPoolExecutor(1) as worker:
        before: Future[tuple[int, list[str], list[list[int]], list[bool]]] | None = None
        for chunk in chunks:
            ahead = worker.submit(tokenise, chunk)
            if before is not None:
                yield before.result()
            before = ahead
        if before is not None:
            yield before.result()


def _write_rows(is_first: NDArray[np.bool_], target: Path) -> int:
    """Write where in the Arrow file each distinct sentence stands, as `np.save` does; return how many there are."""
    count = int(is_first.sum())
    with target.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": (count,)})
        for start in range(0, len(is_first), ROWS_AT_ONCE):
            rows = start + np.flatnonzero(is_first[start : start + ROWS_AT_ONCE])
            stream.write(rows.astype("<i8").tobytes())
    return count


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
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


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def digest(content: object) -> str:
    """Return the SHA-256 of what can be written as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

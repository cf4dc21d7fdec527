"""Encode the records of a text into a matrix on disk, in memory that does not grow with the text.

Several processes each read the whole text and encode their share of every chunk; the main process writes.
"""

from __future__ import annotations

import errno
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from simcse_train import distributed
from simcse_train.data.files import one_file, open_file, require_other_file
from simcse_train.data.source import named
from simcse_train.data.texts import read_texts
from simcse_train.encoders.acceptance import use_flash, use_kernels
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError, SaveError
from simcse_train.runs.atomic import replacing
from simcse_train.search.embeddings import encode_together, require_finite

BATCH = 256  # sentences at once
CHUNK = 8192  # sentences that are read, encoded and written at once

Rows = Iterator[tuple[list[str], NDArray[np.float32]]]  # sentences, and their embeddings (sentences, hidden)


def encode_file(
    encoder: Encoder,
    source: str,
    target: Path,
    *,
    text_column: str | None = None,
    encoding: str | None = None,
    normalized: bool = True,
    precision: str = "fp32",
) -> tuple[int, int]:
    """Write one float32 row per record of a text, or of standard input for `-`; return the shape of all rows.

    The ending of `target` decides the format: .npy, .safetensors (one tensor, `embeddings`) or .parquet (the columns
    `text` and `embedding`). An empty record gives a row too, so that row numbers equal record numbers. The file is
    written completely or not at all. `precision` is that of the products, fp32 or bf16. Raises `InputError` if the
    input cannot be read or the output is no place to write to, `SaveError` if writing fails.

    Under `torchrun` or `accelerate launch` all processes call it, and the main process writes.
    """
    if target.suffix not in WRITERS:
        raise InputError(f"OUTPUT {target} must end in {', '.join(WRITERS)}.")
    if source == "-" and distributed.world_size() > 1:
        raise InputError("INPUT -: several processes can't share standard input. Give a file, or start one process.")
    path = Path("standard input") if source == "-" else one_file(Path(source), "INPUT")
    require_other_file(target, "OUTPUT", [path])
    with sys.stdin.buffer if source == "-" else open_file(path, "INPUT") as raw:
        sentences = read_texts(raw, named(path, "INPUT", text_column=text_column, encoding=encoding))
        before: list[str] = []  # the blank records before the first text
        first = None
        for text in sentences:
            if text.strip():
                first = text
                break
            before.append(text)
        if first is None:
            found = f"has {len(before)} records, all without text" if before else "is empty"
            raise InputError(f"INPUT {path} {found}: there is nothing to encode.")
        rows = _encoded(encoder, itertools.chain(before, [first], sentences), normalized, precision)
        if not distributed.is_main():
            return sum(len(embeddings) for _, embeddings in rows), encoder.hidden_size
        try:
            with replacing(target) as stream:
                count = WRITERS[target.suffix](stream, rows, encoder.hidden_size)
        except OSError as error:
            message = f"OUTPUT {target} can't be written: {error.strerror}. Choose another place."
            is_place_wrong = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EROFS)
            raise (InputError if is_place_wrong else SaveError)(message) from None
    return count, encoder.hidden_size


def _encoded(encoder: Encoder, sentences: Iterator[str], normalized: bool, precision: str) -> Rows:
    share = CHUNK * distributed.world_size()
    is_first = True
    try:
        with tqdm(desc="encode", unit="sentence", disable=None if distributed.is_main() else True) as bar:
            while chunk := list(itertools.islice(sentences, share)):
                # A shorter text is encoded before the kernels are compiled and tried.
                if is_first and len(chunk) == share:
                    encoder.stack_encodes = not use_kernels(encoder, precision)
                    if encoder.device.type == "cuda":
                        use_flash(encoder, precision)
                is_first = False
                with torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision == "bf16"):
                    embeddings = encode_together(encoder, chunk, batch_size=BATCH, normalized=normalized)
                require_finite(embeddings, chunk.__getitem__)
                yield chunk, embeddings
                bar.update(len(chunk))
    finally:
        encoder.stack_encodes, encoder.flash = False, None


def _write_npy(stream: BinaryIO, rows: Rows, width: int) -> int:
    # numpy leaves space in the header for a first dimension of any size, so that it can be written again at the end.
    def write_header(count: int) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(stream, header)

    write_header(0)
    count = _write_rows(stream, rows)
    stream.seek(0)
    write_header(count)
    return count


def _write_safetensors(stream: BinaryIO, rows: Rows, width: int) -> int:
    # The library's own writer takes the whole tensor. The format: the header's length, the header, the bytes.
    def header(count: int) -> bytes:
        content = {"embeddings": {"dtype": "F32", "shape": [count, width], "data_offsets": [0, 4 * count * width]}}
        text = json.dumps(content).encode().ljust(256)  # spaces are allowed at its end
        return len(text).to_bytes(8, "little") + text

    stream.write(header(0))
    count = _write_rows(stream, rows)
    stream.seek(0)
    stream.write(header(count))
    return count


def _write_rows(stream: BinaryIO, rows: Rows) -> int:
    count = 0
    for _, embeddings in rows:
        stream.write(embeddings.astype("<f4").tobytes())
        count += len(embeddings)
    return count


def _write_parquet(stream: BinaryIO, rows: Rows, width: int) -> int:
    schema = pa.schema({"text": pa.string(), "embedding": pa.list_(pa.float32(), width)})
    count = 0
    with pq.ParquetWriter(stream, schema) as writer:
        for sentences, embeddings in rows:
            values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), width)
            writer.write_batch(pa.record_batch([pa.array(sentences, pa.string()), values], schema=schema))
            count += len(embeddings)
    return count


WRITERS: dict[str, Callable[[BinaryIO, Rows, int], int]] = {
    ".npy": _write_npy,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
}

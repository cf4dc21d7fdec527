"""Encode the lines of a text file into a matrix on disk."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np

from simcse_train.data.files import open_file, read_texts
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError
from simcse_train.runs.atomic import PARTIAL


def encode_file(encoder: Encoder, source: str, target: Path, *, normalized: bool = True) -> tuple[int, int]:
    """Write one float32 row per line of a text file, or of standard input for `-`, as a .npy file; return its shape.

    An empty line gives a row too, so that row numbers equal line numbers. The file is written completely or not at all.
    Raises `InputError` if the input cannot be read or the output cannot be written.
    """
    if target.suffix != ".npy":
        raise InputError(f"OUTPUT {target} must end in .npy.")
    path = Path("standard input" if source == "-" else source)
    with sys.stdin.buffer if source == "-" else open_file(path, "INPUT") as raw:
        sentences = list(read_texts(raw, path, None))
    if not sentences:
        raise InputError(f"INPUT {path} is empty: there is nothing to encode.")
    rows = encoder.encode(sentences, normalized=normalized, show_progress=True)
    partial = target.with_name(f".{target.name}{PARTIAL}")
    try:
        with partial.open("wb") as stream:
            np.save(stream, rows)
        partial.replace(target)
    except OSError as error:
        raise InputError(f"OUTPUT {target} can't be written: {error.strerror}. Choose another place.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return rows.shape[0], rows.shape[1]

"""Arrays in the user's cache: large ones that are filled where they lie, and small ones that save a start some time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from simcse_train.cache import cache_folder
from simcse_train.errors import InputError, one_line
from simcse_train.runs.atomic import PARTIAL, flush
from simcse_train.version import __version__

T = TypeVar("T", bound=np.generic)

LIBRARIES = ("torch", "transformers", "scikit-learn")  # that compute what is remembered


def cached_array(
    name: str, key: object, shape: tuple[int, int], dtype: type[T], write: Callable[[NDArray[T]], None]
) -> NDArray[T]:
    """Return an array from the cache, memory-mapped; `write` fills it if the cache has none under this name and key.

    A process that needs an array that another is computing waits for it. Raises `InputError` if the cache cannot be
    written or holds something else.
    """
    path = _path(name, [key, shape, str(np.dtype(dtype))])
    try:
        with contextlib.nullcontext() if path.exists() else _alone(path) as partial:
            if partial is not None and not path.exists():
                out = open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
                _reserve(partial)
                write(out)
                out.flush()
                flush(partial)
                partial.rename(path)
    except OSError as error:
        raise InputError(
            f"Embeddings cannot be kept in {path.parent} ({error.strerror or error}). Free "
            "disk space there, or set XDG_CACHE_HOME to a folder that you may write to."
        ) from None
    try:
        # Copy-on-write: torch warns of arrays that it may not write to.
        found: NDArray[T] = _load(path, shape, dtype, mmap_mode="c")
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}). Delete that file and run again.") from None
    return found


def remembered(name: str, key: object, shape: tuple[int, ...], dtype: type[T]) -> NDArray[T] | None:
    """Return what `remember` kept under this name and key, or None if the cache has none that is whole and finite."""
    try:
        found = _load(_path(name, [key, *_arithmetic()]), shape, dtype)
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def remember(name: str, key: object, array: NDArray[Any]) -> None:
    """Keep a small array for later runs; where the cache cannot be written they compute it again."""
    path = _path(name, [key, *_arithmetic()])
    with contextlib.suppress(OSError), _alone(path) as partial:
        with partial.open("wb") as stream:
            np.save(stream, array)
        flush(partial)
        partial.rename(path)


def _load(path: Path, shape: tuple[int, ...], dtype: type[T], mmap_mode: Literal["c"] | None = None) -> NDArray[T]:
    """Return the array of a file; raises `ValueError` if there is none of this shape and type."""
    try:
        found: NDArray[T] = np.load(path, mmap_mode=mmap_mode)
    except Exception as error:  # numpy evaluates the header, and a damaged one fails in many ways
        raise ValueError(one_line(error)) from None
    if found.shape != shape or found.dtype != dtype:
        raise ValueError("it has another shape")
    return found


def _arithmetic() -> list[object]:
    """Return what decides the last bits of a result besides what it is computed from."""
    vectors = torch.backends.cpu.get_cpu_capability()
    return [__version__, *map(version, LIBRARIES), torch.get_num_threads(), vectors]


def _path(name: str, key: object) -> Path:
    return cache_folder() / f"{name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npy"


def _reserve(path: Path) -> None:
    """Give a file its place on the disk: to write into a mapped file that finds none kills the process."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Yield the file to write before it is renamed to `path`, locked; the system unlocks it when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

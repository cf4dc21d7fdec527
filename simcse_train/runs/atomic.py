"""Atomic writes: a path is replaced completely or left unchanged, even after a kill or a full disk.

New content is written to a temporary sibling, flushed to disk, and renamed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from simcse_train.errors import SaveError, one_line

PARTIAL = ".partial"  # being written, or being removed
REPLACED = ".replaced"  # the previous folder, until the new one has its name


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling of the folder `target`, flush it to disk, and rename it to `target`.

    Raises `SaveError` if anything fails; then the sibling is removed and `target` is unchanged. After a kill,
    `remove_leftovers` does the same.
    """
    partial, old = (target.with_name(f".{target.name}{mark}") for mark in (PARTIAL, REPLACED))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        new_folders = [folder for folder in target.parents if not folder.exists()]
        partial.mkdir(parents=True)
        write(partial)
        for path in [*partial.rglob("*"), partial]:
            flush(path)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by a process that was killed after it had replaced it
            target.rename(old)
        partial.rename(target)
        for folder in (target.parent, *(folder.parent for folder in new_folders)):
            flush(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:  # also an interrupt must leave nothing half-written
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            _restore(old, target)
        if not isinstance(error, Exception):  # tokenizers raises a bare Exception when the disk is full
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        raise SaveError(f"{target} can't be written: {reason}. What was saved before is intact.") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text`; raises `SaveError` if that fails, and the file is unchanged."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        partial.replace(path)
        flush(path.parent)
    except OSError as error:
        raise SaveError(f"{path} can't be written: {error.strerror}. What was saved before is intact.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def flush(path: Path) -> None:
    """Write a file's or folder's cached data to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while writing in `folder` left there; restore what it was replacing."""
    for old in folder.glob(f".*{REPLACED}"):
        with contextlib.suppress(OSError):
            _restore(old, old.with_name(old.name[1:].removesuffix(REPLACED)))
    for partial in folder.glob(f".*{PARTIAL}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink()


def _restore(old: Path, target: Path) -> None:
    """Rename the previous folder back to `target`, or remove it if `target` exists."""
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(target)

"""Files and folders on a disk that may fill, by a process that may be killed: each is there whole, or as it was.

What is new is written to a temporary sibling, flushed to disk, and renamed. One process at a time writes in a run folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from simcse_train.config import InputError

PARTIAL = ".partial"  # being written, or being removed
REPLACED = ".replaced"  # what was there before, until the new one stands in its place


class SaveError(Exception):
    """A checkpoint or an export could not be written; what was there before is untouched."""


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling of the folder `target`, flush it to disk, and put it in `target`'s place.

    Raises `SaveError` if anything fails; then the sibling is gone and `target` is as it was. After a kill `sweep` sees to the same.
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
            target.rename(old)
        partial.rename(target)
        for folder in (target.parent, *(folder.parent for folder in new_folders)):
            flush(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:  # an interrupt too leaves nothing half-written
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            _settle(old, target)
        if not isinstance(error, Exception):  # tokenizers raises a bare Exception when the disk is full
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise SaveError(f"{target} can't be written: {reason}. What was saved before is intact.") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole; raises `SaveError` if that fails, with the file as it was."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        partial.write_text(text, encoding="utf-8")
        flush(partial)
        partial.replace(path)
    except OSError as error:
        raise SaveError(f"{path} can't be written: {error.strerror}. What was saved before is intact.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def flush(path: Path) -> None:
    """Make the system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(run: Path) -> None:
    """Clear away what a process that was killed while it wrote left behind."""
    for folder in (run, run / "checkpoints"):
        for old in folder.glob(f".*{REPLACED}"):
            with contextlib.suppress(OSError):
                _settle(old, old.with_name(old.name[1:].removesuffix(REPLACED)))
        for partial in folder.glob(f".*{PARTIAL}"):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink()


@contextlib.contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Hold the run folder for this process; raises `InputError` if another one trains there.

    The system drops the lock with the process, however it ends, so a lock file that was left behind is not in the way.
    """
    try:
        lock = (run / ".lock").open("w")
    except OSError as error:
        raise InputError(f"The run folder {run} can't be written: {error.strerror}. Check its permissions.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another process is training in {run}. Wait for it, stop it, or choose another folder.") from None
        except OSError as error:
            raise InputError(f"The run folder {run} can't be locked: {error.strerror}. Choose one on a disk that knows locks.") from None
        yield


def _settle(old: Path, target: Path) -> None:
    """Put what `target` was back where nothing took its place, else remove it."""
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(target)

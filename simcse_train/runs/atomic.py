"""Atomic writes: a path is replaced completely or left unchanged, even after a kill or a full disk.

New content is written to a temporary sibling, flushed to disk, and renamed. The sibling is locked meanwhile, so that
two processes never write into one; the system releases the lock when a process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from simcse_train.errors import InputError, SaveError, one_line

PARTIAL = ".partial"  # being written, or being removed
REPLACED = ".replaced"  # the previous folder, until the new one has its name


class InUse(InputError):
    """Another process is writing the same path, or has written it meanwhile."""


def write_folder(target: Path, write: Callable[[Path], None], *, replaces: bool = True) -> None:
    """Let `write` fill a temporary sibling of the folder `target`, flush it to disk, and rename it to `target`.

    Raises `SaveError` if anything fails; then the sibling is removed and `target` is unchanged. After a kill,
    `remove_leftovers` does the same. Raises `InUse` if another process is writing `target`, or has written it
    meanwhile where it `replaces` none.
    """
    partial, old = _partial(target), target.with_name(f".{target.name}{REPLACED}")
    locked: int | None = None
    try:
        new_folders = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        locked = _open_alone(partial, target, os.O_RDONLY, is_folder=True)
        for left in partial.iterdir():  # by a process that was killed
            _remove(left)
        write(partial)
        for path in [*partial.rglob("*"), partial]:
            flush(path)
        if not replaces and target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InUse(f"{target} was written by another process meanwhile, and is left as it is. Choose another.")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by a process that was killed after it had replaced it
            target.rename(old)
        partial.rename(target)
        for folder in (target.parent, *(folder.parent for folder in new_folders)):
            flush(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:  # also an interrupt must leave nothing half-written
        if locked is not None:
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                _restore(old, target)
        if not isinstance(error, Exception) or isinstance(error, InUse):
            raise
        # tokenizers raises a bare Exception when the disk is full
        reason = getattr(error, "strerror", None) or one_line(error)
        raise SaveError(f"{target} can't be written: {reason}. What was saved before is intact.") from error
    finally:
        if locked is not None:
            os.close(locked)


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text`; raises `SaveError` if that fails, and the file is unchanged."""
    try:
        with replacing(path, waits=True) as stream:
            stream.write(text.encode())
        flush(path.parent)
    except OSError as error:
        raise SaveError(f"{path} can't be written: {error.strerror}. What was saved before is intact.") from None


@contextlib.contextmanager
def replacing(target: Path, *, waits: bool = False) -> Iterator[BinaryIO]:
    """Yield a file that replaces `target` when the block ends, flushed to disk; if the block fails, it is removed.

    Where another process is writing `target`, this one `waits` for it or raises `InUse`. Raises `OSError` if the file
    cannot be written.
    """
    partial = _partial(target)
    with os.fdopen(_open_alone(partial, target, os.O_RDWR | os.O_CREAT, waits=waits), "wb") as stream:
        try:
            stream.truncate(0)  # left by a process that was killed
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            partial.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


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
        with contextlib.suppress(InUse, FileNotFoundError):  # a report that is just being written, or is finished
            os.close(_open_alone(partial, partial, os.O_RDONLY))
            _remove(partial)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}{PARTIAL}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _open_alone(partial: Path, target: Path, flags: int, *, is_folder: bool = False, waits: bool = False) -> int:
    """Return the descriptor of a file or folder that is made if it is not there, locked; raises `InUse`."""
    while True:
        if is_folder:
            partial.mkdir(exist_ok=True)
        try:
            descriptor = os.open(partial, flags, 0o666)
        except FileNotFoundError:
            if is_folder:  # removed meanwhile
                continue
            raise
        try:
            _lock(descriptor, target, waits=waits)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), partial.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process that had it locked has renamed or removed it


def _lock(descriptor: int, target: Path, *, waits: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        raise InUse(f"Another process is writing {target}. Wait for it, or choose another name.") from None
    except OSError:  # a file system without locks: of these, NFS has none for folders
        return


def _restore(old: Path, target: Path) -> None:
    """Rename the previous folder back to `target`, or remove it if `target` exists."""
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(target)

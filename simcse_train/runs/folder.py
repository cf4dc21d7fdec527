"""A run folder: the names inside it, its creation, and its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from simcse_train.config import TrainConfig
from simcse_train.encoders.saving import ENCODER
from simcse_train.errors import InputError
from simcse_train.launcher import is_launched, resuming, started_at
from simcse_train.manifest import MANIFEST
from simcse_train.runs.atomic import PARTIAL, remove_leftovers

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
START = "start"  # the encoder that the run started from, where the objective needs it
STANDARD_INPUT = "stdin.txt"
LOCK = ".lock"

__all__ = ["CHECKPOINTS", "CONFIG", "ENCODER", "LOCK", "METRICS", "STANDARD_INPUT", "START"]


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first, damaged or not."""
    try:
        found = list((run / CHECKPOINTS).iterdir())  # not glob, which finds nothing in a folder that it may not read
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(path for path in found if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir())


def last_saved(run: Path) -> str:
    """Return a sentence that names the last checkpoint of a run, for a run that fails."""
    saved = checkpoints(run)
    return f"The last checkpoint is {saved[-1]}." if saved else "No checkpoint was saved before."


def run_of(checkpoint: Path) -> Path:
    """Return the run folder that a checkpoint belongs to."""
    is_plain = len(checkpoint.parts) > 2 and ".." not in checkpoint.parts and checkpoint.parent.name == CHECKPOINTS
    return (checkpoint if is_plain else in_its_run(checkpoint)).parent.parent


def in_its_run(checkpoint: Path) -> Path:
    """Return the absolute path of a checkpoint in its run, either of which may be given as a link."""
    named = Path(os.path.normpath(checkpoint.absolute()))
    return named if named.parent.name == CHECKPOINTS else checkpoint.resolve()


def never_saved(run: Path) -> bool:
    """Return whether a run was stopped before its first checkpoint, so that a new start loses nothing."""
    return (run / CONFIG).exists() and not checkpoints(run) and not (run / ENCODER).exists()


def run_folder(config: TrainConfig) -> Path:
    """Return the folder that the settings name; by default one that is the same for every attempt of a launcher."""
    default = Path("runs") / f"{with_name(Path(config.model)).name}-{started_at():%Y%m%d-%H%M%S}"
    return with_name(Path(config.output).expanduser()) if config.output else default


def with_name(folder: Path) -> Path:
    """Return a folder under its own name, by which a run or an export is called: `.` and `..` are none."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def new_run_folder(config: TrainConfig) -> Path:
    """Create the run folder; raises `InputError` if it cannot be created or is in use.

    A folder that holds only what a run that never began leaves behind counts as empty. Runs without a name that begin
    in the same second get folders of their own, except under a launcher, whose every attempt must find the same one.
    """
    run = run_folder(config)
    try:
        if not config.output and not is_launched():
            return _unused_folder(run)
        if run.exists() and (not run.is_dir() or any(not _is_leftover(path) for path in run.iterdir())):
            if (run / CONFIG).exists():
                found = "already holds a run", f", or continue that run: {resuming(run)}"
            else:
                found = "is not an empty folder", ""
            raise InputError(f"--output {run} {found[0]}. Choose another folder{found[1]}.")
        run.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(run / START, ignore_errors=True)  # of a run that was killed before its settings were written
        (run / LOCK).touch()
    except OSError as error:
        raise InputError(
            f"--output {run} can't be written: {error.strerror}. Choose a folder that you may write to."
        ) from None
    return run


def _unused_folder(wanted: Path) -> Path:
    """Create a folder with the wanted name, or with the first number after it that no other process has taken."""
    wanted.parent.mkdir(parents=True, exist_ok=True)  # fails where it is no folder, as a link to a disk that is away
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
    (folder / LOCK).touch()
    return folder


def _is_leftover(path: Path) -> bool:
    """Return whether a file or folder of a run folder is one that a run leaves which never began."""
    if path.name == START:
        return (path / MANIFEST).is_file() and path.with_name(LOCK).exists()
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(PARTIAL))


def remove_unused(run: Path, *, is_own: bool) -> None:
    """Empty the folder of a run that never began; remove it if it `is_own`, made for that run."""
    with contextlib.suppress(OSError):  # an error about this folder is already being reported
        for path in [run / name for name in (STANDARD_INPUT, CONFIG, LOCK)] + list(run.glob(f".*{PARTIAL}")):
            path.unlink(missing_ok=True)
        shutil.rmtree(run / START, ignore_errors=True)
        if is_own and not any(run.iterdir()):
            run.rmdir()


def keep_standard_input(run: Path) -> Path:
    """Copy standard input into a file of the run folder, so that the run can be resumed; return the file.

    Raises `InputError` if it is empty, or if the folder cannot hold it.
    """
    path = run / STANDARD_INPUT
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        with partial.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if not partial.stat().st_size:
            raise InputError("--data -: standard input is empty. Check the command before the pipe.")
        partial.rename(path)
    except OSError as error:
        raise InputError(
            f"Standard input can't be kept in {run}: {error.strerror}. Choose another folder with --output."
        ) from None
    return path


def has_standard_input(run: Path) -> bool:
    """Return whether a run keeps a copy of standard input, and can be resumed with it."""
    return (run / STANDARD_INPUT).exists() and (run / CONFIG).exists()


@contextlib.contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Lock the run folder for this process and remove what a killed process left half-written.

    The system releases the lock when the process ends, however it ends, so an old lock file does no harm. Raises
    `InputError` if another process holds the lock.
    """
    try:
        lock = (run / LOCK).open("w")
    except OSError as error:
        raise InputError(f"The run folder {run} can't be written: {error.strerror}. Check its permissions.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another process is training in {run}. Wait for it, stop it, or choose another folder."
            ) from None
        except OSError as error:
            raise InputError(
                f"The run folder {run} can't be locked: {error.strerror}. Choose one on a file system that supports "
                "file locks."
            ) from None
        for folder in (run, run / CHECKPOINTS):
            remove_leftovers(folder)
        yield


def check_space(run: Path, weights: int, checkpoints_kept: int, encoders: int = 1) -> None:
    """Refuse a run whose checkpoints do not fit on the disk; raises `InputError`.

    weights: bytes of the encoder. A checkpoint holds the weights of so many `encoders` and two moments of those that
    are trained; one more is needed while saving. What a resumed run already stores counts as free, since it will be
    replaced.
    """
    needed = weights * (encoders + 2) * (checkpoints_kept + 1) + weights
    stored = sum(
        path.stat().st_size for name in (CHECKPOINTS, ENCODER) for path in (run / name).rglob("*") if path.is_file()
    )
    free = shutil.disk_usage(run).free + stored
    if free < needed:
        raise InputError(
            f"--output {run}: the disk has {free / 2**20:,.0f} MiB free for it, and {checkpoints_kept} checkpoints and "
            f"the encoder need {needed / 2**20:,.0f} MiB. Free some space, lower --keep, or choose another folder."
        )

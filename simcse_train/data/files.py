"""The files that a name, a folder or a pattern stands for."""

from __future__ import annotations

import glob
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from simcse_train.data import hub
from simcse_train.data.source import COMPRESSED, KINDS, has_text_ending
from simcse_train.errors import InputError

# What `datasets.save_to_disk` writes: into the folder of one data set, and above the folders of its splits.
STATE, SPLITS, DESCRIBED = "state.json", "dataset_dict.json", "dataset_info.json"

logger = logging.getLogger(__name__)


def find_files(data: Iterable[str], option: str = "--data") -> list[Path]:
    """Return the files that the names, folders and globs stand for, in a fixed order.

    A folder that `datasets` saved stands for its Arrow files, in their order; of several splits, for those of `train`.
    A name on the hub (see `hub`) is downloaded. Raises `InputError` if an entry stands for none.
    """
    found: list[Path] = []
    for entry in data:
        if entry.startswith(hub.PREFIX):
            found += hub.download(entry, option).files
            continue
        if not entry:
            raise InputError(f"{option} is empty, where the name of a file was expected. Name one.")
        if entry == "-":
            raise InputError(
                f"{option} -: only a training's --data is read from standard input. Save the content in a file."
            )
        path = Path(entry).expanduser()
        try:
            if path.is_dir():
                files = _in_folder(path, option)
                endings = " ".join([*KINDS, *COMPRESSED])
                hint = f"there is no text file in that folder (known endings: {endings})"
            elif path.exists():
                files, hint = [path], ""
            else:
                files = sorted(inner for match in _matches(path) for inner in _behind(match, option))
                hint = "there is no such file"
                if glob.has_magic(str(path)):
                    hint += ", nor one that matches it as a pattern"
                if option == "--data" and len(path.parts) == 2 and not path.suffix:
                    hint += f", and a text on the Hugging Face hub is named {hub.PREFIX}datasets/{entry}"
        except (OSError, ValueError) as error:
            raise InputError(f"{option} {entry}: {error}. Check the path.") from None
        if not files:
            raise InputError(f"{option} {entry}: {hint}. Check the path.")
        found += files
    return list(dict.fromkeys(found))


def say_left_out(data: Iterable[str]) -> None:
    """Log how many files of the folders in `data` are left out, since their names do not end as those of texts do."""
    for entry in data:
        path = Path(entry).expanduser()
        matches = [] if entry.startswith(hub.PREFIX) else [path] if path.exists() else _matches(path)
        others = sorted(
            {
                inner
                for folder in matches
                if folder.is_dir() and not is_saved_data_set(folder)
                for inner in _below(folder)
                if inner.is_file() and not has_text_ending(inner) and _is_the_users(inner, folder)
            }
            - set(matches)
        )  # a file that a pattern matches is read, whatever its ending
        if others:
            which = (
                f"{len(others)} files are left out, such as {others[0]}" if others[1:] else f"{others[0]} is left out"
            )
            logger.info(f"{entry}: {which}: no known ending of a text. To read such a file, name it.")


def require_utf8(given: str) -> None:
    """Raise `InputError` if a name or another argument holds bytes that are not UTF-8, which no setting could keep."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{given} holds bytes that are not UTF-8. If it is a name, rename the file or folder; if it looks right to "
            "you, set the environment variable LC_ALL to C.UTF-8."
        ) from None


def one_file(entry: Path, option: str) -> Path:
    """Return the only file that a path stands for; raises `InputError` if it stands for several, or for none."""
    files = find_files([str(entry)], option)
    if len(files) > 1:
        raise InputError(f"{option} {entry} stands for {len(files)} files, such as {files[0]}. Give one.")
    return files[0]


def require_lasting(files: Iterable[Path], option: str) -> None:
    """Raise `InputError` for a pipe, which can be read only once, where a text is read again."""
    for path in files:
        if path.exists() and not path.is_file():
            raise InputError(
                f"{option} {path} is a pipe or a device, which can be read only once. Save its content in a file first"
                + ("; a training also takes --data - and reads standard input." if option == "--data" else ".")
            )


def require_other_file(target: Path, option: str, used: Iterable[Path]) -> None:
    """Raise `InputError` if a file that is to be written is one that the command uses too, which would be lost."""
    for path in used:
        if target.absolute() == path.absolute() or (target.exists() and path.exists() and target.samefile(path)):
            raise InputError(f"{option} {target} would replace {path}, which this command uses too. Choose another.")


def is_saved_data_set(path: Path) -> bool:
    """Say whether a folder is what `datasets` saves: a data set, or several splits of one."""
    return (path / SPLITS).is_file() or ((path / STATE).is_file() and (path / DESCRIBED).is_file())


def open_file(path: Path, option: str = "--data") -> BinaryIO:
    """Open a file; raises `InputError` that names the option or argument the user gave if that is not possible."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{option} {path} can't be read: {error.strerror}. Check the path and its permissions."
        ) from None


def _matches(pattern: Path) -> list[Path]:
    return [Path(match) for match in glob.glob(str(pattern), recursive=True)]  # noqa: PTH207 (also absolute patterns)


def _behind(match: Path, option: str) -> list[Path]:
    """Return the files that a match of a pattern stands for: a folder is what it is when it is named."""
    return _in_folder(match, option) if match.is_dir() else [match] if match.is_file() else []


def _in_folder(folder: Path, option: str) -> list[Path]:
    """Return the files of text in a folder and in the folders below it, sorted by name."""
    if (folder / SPLITS).is_file():
        splits = _described(folder / SPLITS, "splits", option)
        if "train" not in splits and len(splits) != 1:
            listed = ", ".join(str(folder / split) for split in splits)
            raise InputError(
                f"{option} {folder} is a data set without a split named train. Name one of its splits: {listed}."
            )
        return _in_folder(folder / ("train" if "train" in splits else splits[0]), option)
    if (folder / STATE).is_file() and (folder / DESCRIBED).is_file():
        return [folder / name for name in _described(folder / STATE, "_data_files", option)]
    files: list[Path] = []
    for path in _below(folder):
        inside_data_set = any(
            (above / STATE).is_file() or (above / SPLITS).is_file() for above in path.parents if folder in above.parents
        )
        if inside_data_set or not _is_the_users(path, folder):
            continue
        if path.is_dir() and ((path / SPLITS).is_file() or (path / STATE).is_file()):
            files += _in_folder(path, option)
        elif path.is_file() and has_text_ending(path):
            files.append(path)
    return files


def _below(folder: Path) -> list[Path]:
    """Return what a folder holds and the folders in it, linked ones too, sorted by name; each folder once.

    Raises `OSError` for one that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[str] = set()  # a link may lead to a folder above it
    for place, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(place)
        folders.sort()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, name) for name in (*folders, *names)]
    return sorted(found)


def _is_run_or_encoder(folder: Path) -> bool:
    """Return whether a folder is a run of this program or an encoder, whose files are no texts."""
    is_run = (folder / "config.yaml").is_file() and any((folder / name).exists() for name in ("checkpoints", ".lock"))
    weights = ("*.safetensors", "pytorch_model*.bin", "onnx/*.onnx")
    return is_run or ((folder / "config.json").is_file() and any(any(folder.glob(name)) for name in weights))


def _is_the_users(path: Path, folder: Path) -> bool:
    """Return whether a file below a folder is neither hidden nor a part of a run or an encoder."""
    above = [folder, *(parent for parent in path.parents if folder in parent.parents)]
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not is_hidden and not any(map(_is_run_or_encoder, above))


def _described(path: Path, key: str, option: str) -> list[str]:
    """Return the names that `datasets` lists in a saved data set; raises `InputError` if that file is damaged."""
    try:
        listed: object = json.loads(path.read_text(encoding="utf-8"))[key]
        if not isinstance(listed, list):
            raise TypeError(f"{key!r} is no list")
        return [str(entry["filename"] if isinstance(entry, dict) else entry) for entry in listed]
    except (OSError, ValueError, TypeError, LookupError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{option} {path} can't be read ({what}). Save the data set again.") from None

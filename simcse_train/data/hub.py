"""Texts on the Hugging Face hub, named hf://datasets/OWNER/NAME[@REVISION][/PATTERN] as its own libraries do.

They are downloaded into the hub's cache and read from there: their content can be compared when a run is resumed, and
a run that has begun needs no network.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from simcse_train.data.source import has_text_ending
from simcse_train.errors import InputError, one_line

PREFIX = "hf://"
FORM = "hf://datasets/OWNER/NAME, hf://datasets/OWNER/NAME@REVISION or hf://datasets/OWNER/NAME/data/*.parquet"
# How the name of a file or folder of the training split begins; `trained.json` and `training_notes.txt` are none.
TRAINING = re.compile(r"train(?:[\W\d_]|$)|training(?:\.|[-_]?\d|$)")
# Revisions with a slash that may be written as they are; of others it is written %2F (as in HfFileSystem).
SPECIAL_REVISION = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)(?=/|$)")
# Files that describe a data set (those that `datasets` leaves out).
DESCRIPTIONS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "dummy_data.zip")
SECONDS = 5.0  # for the hub to answer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """Files of a data set, in a folder of the hub's cache that is named after its revision."""

    name: str  # with the revision, so that it always stands for the same files
    files: tuple[Path, ...]


_found: dict[str, Download] = {}  # by the name given and the lasting one: a process looks for its files several times


def download(entry: str, option: str = "--data") -> Download:
    """Return the files of text behind a name on the hub, downloaded.

    Of several splits only the training part is taken, unless a pattern names others. Where the hub can't be asked, what
    was downloaded before will do. Raises `InputError` if there is no such text.
    """
    if option != "--data":
        raise InputError(f"{option} {entry}: only --data takes a text of the hub. Download it, and name the file.")
    if entry not in _found:
        _found[entry] = found = _download(entry)
        _found[found.name] = found
    return _found[entry]


def _download(entry: str) -> Download:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    name, revision, pattern = _parse(entry)
    try:
        found = HfApi().dataset_info(name, revision=revision, timeout=SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"revision {revision}" if isinstance(error, RevisionNotFoundError) else "data set"
        raise InputError(
            f"--data {entry}: the hub has no such {what}, or only shows it after `hf auth login`. Check the name."
        ) from None
    except Exception as error:  # whatever keeps the hub from answering: no network, a proxy, offline mode
        folder, names = _downloaded_before(entry, name, revision, _reason(error))
        chosen = _select_some(names, pattern, f"--data {entry}: what was downloaded before of {name}")
    else:
        names = [file.rfilename for file in found.siblings or []]
        chosen = _select_some(names, pattern, f"--data {entry}: the data set {name}")
        folder = _fetch(entry, name, revision, chosen)
    number = f"{len(chosen)} files, such as " if len(chosen) > 1 else ""
    logger.info(f"{entry}: {number}{chosen[0]}.")
    pinned = f"{PREFIX}datasets/{name}@{folder.name}" + (f"/{pattern}" if pattern else "")
    return Download(pinned, tuple(folder / file for file in chosen))


def select(names: Sequence[str], pattern: str | None) -> list[str]:
    """Return which files of a data set are read: those that match the pattern, or the training part of the text."""
    if pattern is not None:
        patterns = {pattern, pattern.replace("**/", "")}  # `**/` stands for any folders, or for none
        return sorted(name for name in names if any(fnmatch.fnmatchcase(name, each) for each in patterns))
    parts = {name: PurePosixPath(name).parts for name in sorted(names) if has_text_ending(Path(name))}
    texts = [name for name in parts if not any(part.startswith(".") or part in DESCRIPTIONS for part in parts[name])]
    return [name for name in texts if any(map(TRAINING.match, parts[name]))] or texts


def _select_some(names: Sequence[str], pattern: str | None, holder: str) -> list[str]:
    if chosen := select(names, pattern):
        return chosen
    wanted = f"no file that matches {pattern}" if pattern else "no file of text that can be read here"
    raise InputError(f"{holder} holds {wanted}. Give {FORM}.")


def _parse(entry: str) -> tuple[str, str | None, str | None]:
    """Return the name of a data set, its revision and the pattern of its files."""
    kind, _, rest = entry.removeprefix(PREFIX).partition("/")
    owner, _, rest = rest.partition("/")
    name, _, pattern = rest.partition("/")
    revision = ""
    if "@" in name:
        name, _, after = rest.partition("@")
        special = SPECIAL_REVISION.match(after)
        revision = special[0] if special else after.partition("/")[0]
        pattern = after.removeprefix(revision).removeprefix("/")
    if kind != "datasets" or not owner or not name:
        raise InputError(f"--data {entry} is not how a text on the Hugging Face hub is named. Give {FORM}.")
    return f"{owner}/{name}", unquote(revision) or None, pattern or None


def without_revision(entry: str) -> str:
    """Return the name of a text on the hub as it is given where any revision will do."""
    name, _, pattern = _parse(entry)
    return f"{PREFIX}datasets/{name}" + (f"/{pattern}" if pattern else "")


def _fetch(entry: str, name: str, revision: str | None, files: list[str]) -> Path:
    """Download files of a data set; return the folder that they are in."""
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(file) for file in files]  # `[1].txt` is a name, and would be a pattern
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # of the network, the hub, or the disk
        raise InputError(
            f"--data {entry} can't be downloaded ({_reason(error)}). Run again to continue the download, or download "
            "it elsewhere and name the folder."
        ) from None


def _downloaded_before(entry: str, name: str, revision: str | None, reason: str) -> tuple[Path, list[str]]:
    """Return the folder and the files of an earlier download, since the hub can't be asked."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    with contextlib.suppress(CacheNotFound, ValueError):  # there is no cache, or it is a file
        for repository in scan_cache_dir().repos:
            is_wanted = (repository.repo_type, repository.repo_id) == ("dataset", name)
            for found in repository.revisions if is_wanted else ():
                if revision == found.commit_hash or (revision or "main") in found.refs:
                    files = [file.file_path.relative_to(found.snapshot_path).as_posix() for file in found.files]
                    logger.warning(f"{entry}: the hub can't be asked ({reason}). Using what was downloaded before.")
                    return found.snapshot_path, files
    raise InputError(
        f"--data {entry}: the hub can't be asked ({reason}), and this text was not downloaded before. Go online, or "
        "download it elsewhere and name the folder."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"

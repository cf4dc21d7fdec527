"""What the user named to be read: the option, the file, and the settings that decide how it is understood."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from simcse_train.errors import InputError

# The part of a name that says how a file was compressed.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
# What the content of a file is, as the rest of its name says; a folder, an archive or a data set is searched for these.
KINDS = {
    ".txt": "lines",
    ".csv": "csv",
    ".psv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".jl": "json lines",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


@dataclass(frozen=True)
class Source:
    """A file, or a member of an archive, as the user named it."""

    option: str  # the option or argument that named it: --data, --eval, INPUT
    name: str  # as it appears in messages
    ending: str  # the last ending in lower case, without that of a compression
    text_column: str | None = None
    encoding: str | None = None
    label_column: str | None = None
    fallback_encoding: str | None = None  # of a file that is not UTF-8: the one that the user named for other files

    @property
    def kind(self) -> str | None:
        """What the content is as the name says; None if it says nothing."""
        return KINDS.get(self.ending)

    @property
    def columns(self) -> list[str]:
        """The columns that the user named."""
        return [column for column in (self.text_column, self.label_column) if column is not None]

    def error(self, problem: str, line: int | None = None) -> InputError:
        """Return an error about this file: `problem` follows its name and, where given, the line."""
        place = "" if line is None else f", line {line}"
        space = "" if problem.startswith(":") else " "
        return InputError(f"{self.option} {self.name}{place}{space}{problem}")

    def member(self, name: str) -> Source:
        """Return the source of a member of this archive."""
        return dataclasses.replace(self, name=f"{self.name}:{name}", ending=inner_ending(Path(name)))


def named(
    path: Path,
    option: str = "--data",
    *,
    text_column: str | None = None,
    encoding: str | None = None,
    label_column: str | None = None,
    fallback_encoding: str | None = None,
) -> Source:
    """Return the source of a file."""
    return Source(option, str(path), inner_ending(path), text_column, encoding, label_column, fallback_encoding)


def inner_ending(path: Path) -> str:
    """Return the ending that names a format, in lower case: `.csv` of `rows.CSV.gz`, nothing of `notes`."""
    endings = [ending.lower() for ending in path.suffixes]
    while endings and endings[-1] in COMPRESSED:
        endings.pop()
    return endings[-1] if endings else ""


def has_text_ending(path: Path) -> bool:
    """Say whether the name of a file is that of a text or a table."""
    return inner_ending(path) in KINDS or (path.suffix.lower() == ".zip" and not path.name.startswith("."))

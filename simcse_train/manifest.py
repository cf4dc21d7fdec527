"""The manifest of a folder: size and SHA-256 of every file in it, to tell an intact copy from a damaged one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST, STATE = "manifest.json", "state.json"


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files in a folder into it."""
    (folder / MANIFEST).write_text(_as_text(_files(folder)), encoding="utf-8")


def damage(folder: Path, required: str = STATE) -> str | None:
    """Return what is wrong with a folder, or None if every byte is as it was when the manifest was written.

    `required` names a file that the manifest must list.
    """
    try:
        written = (folder / MANIFEST).read_bytes()
        expected = json.loads(written)["files"]
        found = _files(folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"its manifest can't be read ({type(error).__name__})"
    # An intact manifest is equal to what would be written again, to the byte: white space counts too.
    if not isinstance(expected, dict) or required not in expected or written != _as_text(expected).encode():
        return "its manifest is damaged"
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} does not belong to it"
        if expected[name] != found[name]:
            return f"{name} is damaged"
    return None


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _as_text(files: dict[str, dict[str, Any]]) -> str:
    return json.dumps({"files": files}, indent=2) + "\n"

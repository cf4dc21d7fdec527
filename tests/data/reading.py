"""Read a file in memory, as the tests of the readers do."""

from __future__ import annotations

import io
from pathlib import Path

from simcse_train.data.source import named
from simcse_train.data.texts import read_texts


def read(name: str, content: bytes, column: str | None = None, encoding: str | None = None) -> list[str]:
    """Return the texts of a file with this name and content."""
    source = named(Path(name), text_column=column, encoding=encoding)
    return list(read_texts(io.BytesIO(content), source, say=False))

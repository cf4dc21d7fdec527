"""What is said on the screen. That it cannot be said, on a full disk or to a pipe that nobody reads, ends no run."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO

from simcse_train.data.display import visible


class Screen(logging.Handler):
    """Writes messages above the progress bar; names and text in them don't act on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        from tqdm import tqdm

        tqdm.write(visible(self.format(record)), file=sys.stderr)


class Unfailing:
    """A stream that drops what cannot be written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written, or keep it until that is possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

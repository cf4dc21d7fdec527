"""A stream of bytes -> numbered lines of text.

A line ends at a line feed, with or without a carriage return before it, and nowhere else: U+2028, form feed and the
like are text. Only in a file without any line feed (of an old Macintosh) a carriage return ends a line.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from simcse_train.data.compression import reading_errors, streams
from simcse_train.data.encoding import encoding_of
from simcse_train.data.files import open_file
from simcse_train.data.source import Source

SAMPLE = 1 << 18  # bytes from which encoding, line ends and format are told
BLOCK = 1 << 16
NOT_VALID = "is not valid {}. Correct that line, or name the encoding of the file with --encoding."


@dataclass(frozen=True)
class Text:
    """A text at its start: UTF-8 bytes, whatever the file has, with its first characters."""

    source: Source
    stream: BinaryIO
    start: str  # the first characters, without a byte order mark, with line feeds
    complete: bool  # is `start` all of it
    encoding: str
    old_line_ends: bool

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield number and text of each line; raises `InputError` at a line that is not text."""
        return read_lines(self.stream, self.source)

    def blocks(self) -> Iterator[list[str]]:
        """Yield the text of the lines, many at once; raises as `lines` does."""
        first = 1
        while raw := self.stream.readlines(BLOCK):
            yield _decoded(raw, self.source, first)
            first += len(raw)

    @property
    def noted(self) -> str:
        """What is worth telling about the encoding and the line ends."""
        encoding = "" if self.encoding == "utf-8" else f" in {self.encoding.upper()}"
        return encoding + (" with carriage returns as line ends" if self.old_line_ends else "")


def open_text(stream: BinaryIO, source: Source) -> Text:
    """Tell the encoding and the line ends of a stream from its first bytes.

    Raises `InputError` if that is not possible.
    """
    sample = stream.read(SAMPLE)
    complete = len(sample) < SAMPLE
    stream.seek(0)
    encoding = encoding_of(sample, complete, source)
    try:
        start = codecs.getincrementaldecoder(encoding)("replace").decode(sample, final=complete).removeprefix("\ufeff")
    except UnicodeError:  # as UTF-16 without a byte order mark, which "replace" does not cure
        raise source.error(NOT_VALID.format(encoding.upper()), 1) from None
    old = "\r" in start and "\n" not in start
    if encoding != "utf-8" or old:
        stream = cast(BinaryIO, io.BufferedReader(_Translated(stream, source, encoding, old), BLOCK))
    return Text(source, stream, start.replace("\r", "\n") if old else start, complete, encoding, old)


def plain_lines(source: Source) -> list[tuple[int, str]]:
    """Return number and text of all lines of a file whose format is known, as in published test sets."""
    with open_file(Path(source.name), source.option) as raw, reading_errors(source):
        return [line for inner, stream in streams(raw, source) for line in open_text(stream, inner).lines()]


def read_lines(stream: Iterable[bytes], source: Source, first: int = 1) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line of UTF-8; raises `InputError` at a line that is none, or is not text.

    `first` is the number of the first line.
    """
    for number, raw in enumerate(stream, first):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            if raw == codecs.BOM_UTF8:  # a file that holds no more than its mark has no line
                continue
            line = line.removeprefix(codecs.BOM_UTF8)
        if b"\0" in line:
            raise source.error("holds a NUL byte, as binary files do. Give a text file, or remove the byte.", number)
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise source.error(
                f"is not valid UTF-8 (byte {error.start + 1} of the line, {line[error.start]:#04x}), though what "
                "stands before it is. Correct that line; or, if all of the file is in another encoding, name it with "
                "--encoding.",
                number,
            ) from None


def _decoded(raw: list[bytes], source: Source, first: int) -> list[str]:
    """Return what `read_lines` yields of these lines, without their numbers."""
    whole = b"".join(raw)
    try:
        text = whole.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return [line for _, line in read_lines(raw, source, first)]  # raises with the number of the line
    if first == 1:
        text = text.removeprefix("\ufeff")
        if not text:
            return []
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if "\r" in text else lines


class _Translated(io.RawIOBase):
    """A stream in another encoding, or with carriage returns as line ends, as UTF-8 with line feeds."""

    def __init__(self, stream: BinaryIO, source: Source, encoding: str, old_line_ends: bool) -> None:
        self._stream = stream
        self._source = source
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True) if old_line_ends else None
        self._ready = b""
        self._lines = 1
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        while not self._ready and not self._ended:
            self._ready = self._next_block()
        view = memoryview(cast(bytearray, buffer))
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _next_block(self) -> bytes:
        block = self._stream.read(BLOCK)
        self._ended = not block
        try:
            text = self._decoder.decode(block, final=self._ended)
            if self._newlines is not None:
                text = self._newlines.decode(text, final=self._ended)
            translated = text.encode("utf-8")
        except UnicodeError as error:
            if isinstance(error, UnicodeDecodeError):
                before = error.object[: error.start].decode(self._encoding, "ignore")
                self._lines += before.count("\r" if self._newlines is not None else "\n")
            raise self._source.error(NOT_VALID.format(self._encoding.upper()), self._lines) from None
        self._lines += translated.count(b"\n")
        return translated

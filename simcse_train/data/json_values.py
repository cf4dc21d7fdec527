"""The values of a long JSON text, one after another, with the line at which each begins."""

from __future__ import annotations

import json
import re
from typing import BinaryIO

from simcse_train.data.source import Source

BLOCK = 1 << 16
SPACE = re.compile(r"[ \t\n\r]*")


class JsonCursor:
    """A place in a stream of JSON, of which only the value that is read next is in memory."""

    def __init__(self, stream: BinaryIO, source: Source) -> None:
        self._stream = stream
        self._source = source
        self._decoder = json.JSONDecoder()
        self._pending = b""
        self._text = ""
        self._place = 0
        self.line = 1
        self._more()
        self._text = self._text.removeprefix("\ufeff")

    def _more(self) -> bool:
        """Read on, twice as much as is waiting, so that a long value is tried few times.

        Returns whether there was more.
        """
        block = self._stream.read(max(BLOCK, len(self._text) - self._place))
        data = self._pending + block
        whole = data if not block else data[: _last_whole(data)]
        self._pending = data[len(whole) :]
        try:
            more = whole.decode("utf-8")
        except UnicodeDecodeError as error:
            number = self.line + self._text.count("\n", self._place) + whole.count(b"\n", 0, error.start)
            raise self._source.error(
                "is not valid UTF-8. Correct that line, or name its encoding with --encoding.", number
            ) from None
        if "\0" in more:
            number = self.line + self._text.count("\n", self._place) + more.count("\n", 0, more.index("\0"))
            raise self._source.error(
                "holds a NUL byte, as binary files do. Give a text file, or remove the byte.", number
            )
        self._text = self._text[self._place :] + more
        self._place = 0
        return bool(block) or bool(more)  # the last bytes may have waited for the rest of a character

    def peek(self) -> str:
        """Return the next character that is not a space; nothing at the end."""
        while True:
            space = SPACE.match(self._text, self._place)
            end = space.end() if space else self._place
            self.line += self._text.count("\n", self._place, end)
            self._place = end
            if end < len(self._text):
                return self._text[end]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Go past the character that was peeked at."""
        self._place += 1

    def value(self) -> object:
        """Return the next value; raises `InputError` if it is not valid JSON."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except RecursionError:
                raise self.invalid() from None
            except ValueError:
                if self._more():
                    continue
                raise self.invalid() from None
            if end == len(self._text) and self._more():  # a number may go on
                continue
            self.line += self._text.count("\n", self._place, end)
            self._place = end
            return value

    def invalid(self) -> Exception:
        """Return an error about this place."""
        return self._source.error("is not valid JSON. Check that the file is complete.", self.line)


def _last_whole(data: bytes) -> int:
    """Return where the last character that may be cut begins."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return len(data) - back
        if byte < 0x80:
            break
    return len(data)

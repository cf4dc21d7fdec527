"""A file -> the streams of bytes in it, decompressed: one, or one for each member of a zip archive.

The first bytes say how a file is compressed, never its name. Files that hold no text are refused by name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from simcse_train.data.kinds import refuse_archive, refuse_binary
from simcse_train.data.source import Source, has_text_ending

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

DECOMPRESS: tuple[tuple[re.Pattern[bytes], str, Callable[[BinaryIO], BinaryIO]], ...] = (
    (re.compile(rb"\x1f\x8b"), ".gz", lambda raw: cast(BinaryIO, gzip.GzipFile(fileobj=raw))),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), ".bz2", lambda raw: cast(BinaryIO, bz2.BZ2File(raw))),
    (re.compile(rb"\xfd7zXZ\0"), ".xz", lambda raw: cast(BinaryIO, lzma.LZMAFile(raw))),
    (re.compile(rb"\x28\xb5\x2f\xfd"), ".zst", lambda raw: cast(BinaryIO, zstd.ZstdFile(raw))),
)
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
RANDOM_ACCESS = (b"PAR1", b"ARROW1")  # formats in which the reader jumps about; decompressed on disk
LAYERS = 4  # of compression within each other; more are a mistake or an attack
HEAD = 512

logger = logging.getLogger(__name__)


def streams(raw: BinaryIO, source: Source, layers: int = LAYERS) -> Iterator[tuple[Source, BinaryIO]]:
    """Yield each stream of bytes in an open file, seekable and at its start, with the source that names it.

    Raises `InputError` if the file is damaged or holds something that is not text; damage may also show while a stream
    is read (`reading_errors`).
    """
    if not raw.seekable():
        with _on_disk(raw) as copy:
            yield from streams(copy, source, layers)
        return
    stream = raw
    head = stream.read(HEAD)
    stream.seek(0)
    if not layers:
        raise source.error("is compressed more than four times over. Decompress it first.")
    if head.startswith(ZIP):
        yield from _members(stream, source, layers)
        return
    for mark, _, decompress in DECOMPRESS:
        if mark.match(head):
            # A buffer around it makes lines several times faster than the decompressor's own.
            inner = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, decompress(stream)), 1 << 18))
            yield from streams(inner, source, layers - 1)
            return
    refuse_binary(head, source)
    if layers == LAYERS:
        _check_name(source)
    if layers < LAYERS and head.startswith(RANDOM_ACCESS):
        with _on_disk(stream) as copy:
            yield source, copy
        return
    yield source, stream


@contextmanager
def reading_errors(source: Source) -> Iterator[None]:
    """Turn the errors of decompression and of the disk into an `InputError` that names the file."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zstd.ZstdError, zipfile.BadZipFile) as error:
        raise source.error(f"is damaged: it can't be decompressed ({error}). Fetch it again.") from None
    except OSError as error:
        if error.errno is None:  # bz2 reports damage so
            raise source.error(f"is damaged: it can't be decompressed ({error}). Fetch it again.") from None
        raise source.error(f"can't be read: {error.strerror}. Check the file and its permissions.") from None


def _on_disk(stream: BinaryIO) -> BinaryIO:
    copy = tempfile.TemporaryFile()
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return cast(BinaryIO, copy)


def _members(stream: BinaryIO, source: Source, layers: int) -> Iterator[tuple[Source, BinaryIO]]:
    """Yield the streams of the members of a zip archive, in the order of their names."""
    with _zip_errors(source):
        archive = zipfile.ZipFile(stream)
    with archive:
        refuse_archive(archive.namelist(), source)
        members = sorted(
            (info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)),
            key=lambda info: info.filename,
        )
        texts = [info for info in members if has_text_ending(Path(info.filename))]
        if texts and len(texts) < len(members):
            others = [info.filename for info in members if info not in texts]
            logger.info(
                f"{source.name}: {len(others)} of {len(members)} files left out that are no text, such as {others[0]}."
            )
            members = texts
        if not members:
            raise source.error("is an archive without files. Give one that holds text.")
        for info in members:
            member = source.member(info.filename)
            if info.flag_bits & 1:
                raise member.error("is encrypted. Unpack the archive, and give the folder.")
            with _zip_errors(member):
                opened = archive.open(info)
            with opened:
                yield from streams(cast(BinaryIO, io.BufferedReader(_Member(opened, member))), member, layers - 1)


class _Member(io.RawIOBase):
    """The bytes of a member of an archive, read under `_zip_errors`."""

    def __init__(self, opened: IO[bytes], source: Source) -> None:
        self._opened, self._source = opened, source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        with _zip_errors(self._source):
            read = self._opened.read(len(view))
        view[: len(read)] = read
        return len(read)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _zip_errors(self._source):
            return self._opened.seek(offset, whence)


@contextmanager
def _zip_errors(source: Source) -> Iterator[None]:
    """Turn what zipfile raises besides `BadZipFile` into that, or into an `InputError` where it lacks a feature."""
    try:
        yield
    except RuntimeError as error:  # a version of the format or a method of compression that zipfile does not know
        raise source.error(f"can't be read: {error}. Unpack the archive, and give the folder.") from None
    except ValueError as error:  # damaged bytes: a name that is not UTF-8, an offset before the start
        raise zipfile.BadZipFile(str(error)) from None


def _is_hidden(name: str) -> bool:
    """Say whether a member is what the Macintosh adds to archives, not what the user put there."""
    return name.startswith("__MACOSX/") or any(part.startswith(".") for part in name.split("/"))


def _check_name(source: Source) -> None:
    for _, ending, _ in DECOMPRESS:
        if source.name.lower().endswith(ending):
            raise source.error(
                f"is damaged or not the compressed file its name says: it does not begin as {ending} does. Fetch it "
                f"again, or rename it without {ending} if it is not compressed."
            )
    if source.name.lower().endswith(".zip"):
        raise source.error(
            "is damaged or not the archive its name says: it does not begin as .zip does. Fetch it again."
        )

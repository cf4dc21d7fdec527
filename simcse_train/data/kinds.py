"""Files that hold no plain text, told by their first bytes and refused with what to do."""

from __future__ import annotations

import re

from simcse_train.data.source import Source

SAVE_AS_TEXT = "Save it as plain text (.txt), and give that file."
SAVE_AS_TABLE = "Save the sheet as .csv, and give that file."
OFFICE = "Save it as .txt or .csv, and give that file."
UNPACK = "Unpack it, and give the files or the folder."
NO_TEXT = "Give a file of text."
EXTRACT = "Extract the text, one sentence a line, and give that file."

BINARY: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF-", "a PDF document", SAVE_AS_TEXT),
    (b"{\\rtf", "an RTF document", SAVE_AS_TEXT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Word or Excel document", OFFICE),
    (b"%!PS", "a PostScript document", SAVE_AS_TEXT),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (b"\x1f\x9d", "a file compressed by compress (.Z)", UNPACK),
    (b"\x04\x22\x4d\x18", "a file compressed by lz4", UNPACK),
    (b"\x5d\x00\x00", "a file compressed by lzma", UNPACK),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", NO_TEXT),
    (b"\xff\xd8\xff", "a JPEG image", NO_TEXT),
    (b"GIF8", "a GIF image", NO_TEXT),
    (b"RIFF", "a sound, image or film (RIFF)", NO_TEXT),
    (b"ID3", "a sound (MP3)", NO_TEXT),
    (b"OggS", "a sound (Ogg)", NO_TEXT),
    (b"fLaC", "a sound (FLAC)", NO_TEXT),
    (b"SQLite format 3\0", "an SQLite database", "Write the table as .csv, and give that file."),
    (b"\x89HDF\r\n", "an HDF5 file", "Write the text as .txt or .csv, and give that file."),
    (b"\x93NUMPY", "a NumPy array", "Write the text as .txt, and give that file."),
    (b"Obj\x01", "an Avro file", "Write it as .parquet or .jsonl, and give that file."),
    (b"ORC", "an ORC file", "Write it as .parquet or .jsonl, and give that file."),
    (b"FEA1", "a file of Feather's first version", "Write it as .parquet, and give that file."),
    (b"GGUF", "a model (GGUF)", NO_TEXT),
    *((b"\x80" + bytes([version]) + end, "a Python pickle", "Write the text as .jsonl or .parquet, and give that file.")
      for version in (2, 3, 4, 5) for end in (b"\x95", b"}", b"]", b"c", b"(")),
)  # fmt: skip
# Documents of programs by members that they have; a folder of texts may be named as one of theirs.
ARCHIVES: tuple[tuple[str, str, str], ...] = (
    (r"word/\w+\.xml$", "a Word document (.docx)", SAVE_AS_TEXT),
    (r"xl/\w+\.(?:xml|bin)$", "an Excel workbook (.xlsx)", SAVE_AS_TABLE),
    (r"ppt/\w+\.xml$", "a PowerPoint presentation (.pptx)", SAVE_AS_TEXT),
    (r"META-INF/MANIFEST\.MF$", "a Java archive", NO_TEXT),
    (r"META-INF/", "an OpenDocument or EPUB file", OFFICE),
    (r"Index/.*\.iwa$", "an Apple Pages or Numbers document", "Export it as .txt or .csv, and give that file."),
)
MARKUP = re.compile(r"\s*<(?:!doctype|!--|\?xml|[a-z][a-z0-9:_-]*[\s>/])", re.IGNORECASE)
DOCUMENT = re.compile(
    r"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s|\?xml\s|html[\s>]|head[\s>]|body[\s>]|svg[\s>])", re.I | re.S
)

# Text with marks that would be taken for words, told by its first lines: what it is, and which marks.
NOTATIONS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"\s*(?:WEBVTT\b|\d+\n\d+:\d\d:\d\d[,.]\d+ --> )"), "a file of subtitles", "numbers and times"),
    (re.compile(r"\s*(?:%.*\n\s*)*\\documentclass\b"), "LaTeX", "commands"),
    (
        re.compile(
            r"From \S+@\S+ +(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) |(?:[A-Za-z-]+: .*\n(?:[ \t].*\n)*)*?"
            r"(?:Received|Return-Path|MIME-Version|Message-ID|Content-Type|Delivered-To): "
        ),
        "e-mail",
        "headers",
    ),
    (re.compile(r"\s*\|.*\|[ \t]*\n[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)+[ \t]*\n"), "a Markdown table", "lines and bars"),
)


def has_control_characters(head: bytes) -> bool:
    """Say whether the first bytes of a file hold control characters that no text has."""
    return re.search(rb"[\0-\x08\x0e-\x1a]", head) is not None


def refuse_binary(head: bytes, source: Source) -> None:
    """Raise `InputError` if the first bytes of a file are those of a known kind of file that is not text."""
    for mark, kind, advice in BINARY:
        # Some marks are letters that a text may begin with.
        if head.startswith(mark) and (not mark.isalnum() or has_control_characters(head)):
            raise source.error(f"is {kind}, not text. {advice}")
    if head[257:262] == b"ustar" and has_control_characters(head):  # not "mustard"
        raise source.error(f"is a tar archive. {UNPACK}")
    if head[4:8] == b"ftyp" and has_control_characters(head):
        raise source.error(f"is a film or sound (MP4), not text. {NO_TEXT}")


def refuse_archive(names: list[str], source: Source) -> None:
    """Raise `InputError` if a zip archive with these members is the document of some program."""
    for member, kind, advice in ARCHIVES:
        if any(re.match(member, name) for name in names):
            raise source.error(f"is {kind}, not text. {advice}")
    if any(name.endswith("data.pkl") for name in names) or (names and all(name.endswith(".npy") for name in names)):
        raise source.error(
            "holds arrays of numbers (PyTorch or NumPy), not text. Write the text as .jsonl or .parquet."
        )


def refuse_markup(text: str, source: Source) -> None:
    """Raise `InputError` if a text, given by its first lines, is HTML, XML or the like: its marks would be words."""
    for pattern, kind, marks in NOTATIONS:
        if pattern.match(text.replace("\r\n", "\n")):
            raise source.error(f"is {kind}: its {marks} are not sentences. {EXTRACT}")
    if not MARKUP.match(text):
        return
    lines = [line for line in text.splitlines()[:200] if line.strip()]
    tagged = sum(line.lstrip().startswith("<") for line in lines)
    if DOCUMENT.match(text) or (2 * tagged > len(lines) and "</" in text):
        kind = "HTML" if re.search(r"<(!doctype html|html|head|body|div|p|span|br|table|ul)\b", text, re.I) else "XML"
        raise source.error(f"is {kind}: its tags are not sentences. {EXTRACT}")

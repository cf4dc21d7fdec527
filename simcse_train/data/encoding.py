"""The encoding of a text, from a sample of its bytes.

Text that is valid UTF-8 is UTF-8, and a byte order mark decides. Everything else is chardet's judgement, which is taken
only where no other encoding explains the sample as well; otherwise the user is asked for `--encoding`.
"""

from __future__ import annotations

import codecs
import unicodedata
from dataclasses import dataclass
from itertools import pairwise

from simcse_train.data.source import Source

MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WIDE = ("utf-16", "utf-32")
EXAMPLES = "for example gb18030, big5, shift_jis, cp1252 or cp1251"
JAPANESE_SHIFT = b"\x1b$"  # ISO-2022 is ASCII with such sequences, which no text has
ENOUGH = 6  # bytes beyond ASCII; fewer of them fit too many encodings
# What is taken without asking, if it is certain. Those of DOS and of the old Macintosh are rare, and told wrong too
# often.
COMMON = (
    "cp125", "iso8859-2", "iso8859-5", "iso8859-7", "koi8", "gb18030", "big5", "cp932", "shift_jis", "euc_j", "iso2022",
    "cp949", "euc_kr", "tis-620", "cp874",
)  # fmt: skip
MARGIN = 1.02  # how much more confident chardet must be than of any encoding that reads the sample otherwise
MIXED = 0.02  # share of words that mix two alphabets; above it the encoding is a wrong one


@dataclass(frozen=True)
class Reading:
    """How one encoding reads a sample."""

    encoding: str
    confidence: float
    text: str


def encoding_of(sample: bytes, complete: bool, source: Source) -> str:
    """Return the encoding of a text, as Python names it.

    `complete` says that the sample is the whole text. Raises `InputError` if the option --encoding contradicts the
    text, or if the encoding is not certain.
    """
    marked = next((name for mark, name in MARKS if sample.startswith(mark)), None)
    is_utf8 = _is_utf8(sample, complete)
    if source.encoding is not None:
        is_wide = known_encoding(source.encoding, source).startswith(WIDE)
        # What is written in ASCII alone is the same in most encodings; in wide ones, spaces and line ends hold NULs.
        return _given(source, marked, is_utf8 and (not sample.isascii() or (is_wide and b"\0" not in sample)))
    if marked is not None:
        return marked
    if b"\0" in sample:
        if (wide := _wide(sample, is_utf8)) is not None:
            return wide
        line = sample.count(b"\n", 0, sample.index(b"\0")) + 1
        raise source.error("holds a NUL byte, as binary files do. Give a text file, or remove the byte.", line)
    if JAPANESE_SHIFT in sample and sample.isascii():
        return _shifted(sample)
    if is_utf8 or _is_damaged_utf8(sample):
        return "utf-8"
    if source.fallback_encoding is not None:
        return known_encoding(source.fallback_encoding, source)
    return _detected(sample if complete else sample[: sample.rfind(b"\n") + 1] or sample, source)


def known_encoding(name: str, source: Source) -> str:
    """Return Python's name of an encoding that the user gave; raises `InputError` if it is not one of text."""
    try:
        found = codecs.lookup(name)
        "".encode(found.name)
    except (LookupError, ValueError):
        raise source.error(f"can't be read: --encoding {name} is not a known encoding of text ({EXAMPLES}).") from None
    return "utf-8" if found.name == "utf-8-sig" else found.name


def _given(source: Source, marked: str | None, is_utf8: bool) -> str:
    given = known_encoding(source.encoding or "", source)
    if marked is not None and not given.startswith(marked):
        raise source.error(
            f"begins with the mark of {marked.upper()}, not of --encoding {source.encoding}. Leave it out."
        )
    if is_utf8 and given != "utf-8":
        raise source.error(f"is valid UTF-8, not --encoding {source.encoding}. Leave the option out.")
    return marked or given


def _shifted(sample: bytes) -> str:
    """Return the encoding of ASCII with sequences that shift to another alphabet; UTF-8 if they are not that."""
    return next((codecs.lookup(r.encoding).name for r in _readings(sample) if "2022" in r.encoding), "utf-8")


def _is_utf8(sample: bytes, complete: bool) -> bool:
    """Say whether a sample is UTF-8; its last character may be cut unless the sample is complete."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample, final=complete)
    except UnicodeDecodeError:
        return False
    return True


def _is_damaged_utf8(sample: bytes) -> bool:
    """Say whether a text that is not valid UTF-8 was UTF-8: most of what is not ASCII is valid."""
    text = sample.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    return sum(character > "\x7f" for character in text) > 2 * bad


def _wide(sample: bytes, is_utf8: bool) -> str | None:
    """Return UTF-16 or UTF-32 with its byte order if a sample is text in that alone; else None.

    With bytes in the wrong order, or of another kind of file, some characters are not assigned or control characters.
    Pairs of Latin letters are assigned ones, though: a text of such bytes, or of UTF-8, with a few NULs is not wide.
    """
    nul = sample.count(0)
    letters = sum(map(sample.count, b" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    # Cyrillic in UTF-16 is valid UTF-8, too, but with bytes of 4.
    is_narrow = is_utf8 and all(byte > 31 or byte in b"\0\t\n\r" for byte in set(sample))
    if 4 * nul < len(sample) and (is_narrow or letters > 0.7 * (len(sample) - nul)):
        return None
    found = []
    for name, width in (("utf-16-le", 2), ("utf-16-be", 2), ("utf-32-le", 4), ("utf-32-be", 4)):
        try:
            text = codecs.getincrementaldecoder(name)().decode(sample)  # the last character may be cut
        except UnicodeDecodeError:
            continue
        if len(sample) % width:
            continue
        characters = set(text)
        has_spaces = bool(characters & {"\n", "\r", " "})
        odd = {c for c in characters - {"\t", "\n", "\r"} if unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs")}
        if has_spaces and not odd:
            found.append(name)
    return found[0] if len(found) == 1 else None


def _detected(sample: bytes, source: Source) -> str:
    """Return the encoding that explains a sample best; raises `InputError` if another explains it about as well."""
    line, start = _first_beyond_ascii(sample)
    where = f"is not valid UTF-8 (byte {start} of the line)"
    readings = _readings(sample)
    if not readings:
        raise source.error(f"{where}, nor any other encoding of text that could be told. {_ask()}", line)
    best = readings[0]
    rivals = [r for r in readings[1:] if r.text != best.text]
    beyond = sum(byte > 127 for byte in sample) if 0x1B not in sample else ENOUGH
    same = [codecs.lookup(r.encoding).name for r in readings if r.text == best.text]
    common = next((name for name in same if name.startswith(COMMON)), None)
    if common is not None and beyond >= ENOUGH and not (rivals and _is_rival(rivals[0], best)):
        return common
    shown = [best, *rivals[:1]]
    as_read = "; ".join(f"as {r.encoding} it reads {_shorten(_line(r.text, line))!r}" for r in shown)
    raise source.error(f"{where}, and its encoding is not certain: {as_read}. {_ask()}", line)


def _ask() -> str:
    return f"Name the encoding of the file with --encoding ({EXAMPLES}), or correct the line."


def _readings(sample: bytes) -> list[Reading]:
    """Return how the encodings read a sample that chardet holds possible, the most probable first.

    Those whose text has control characters, or words that mix alphabets, are left out.
    """
    import chardet  # slow to import, and UTF-8 does not need it
    from chardet import EncodingEra

    readings = []
    for found in chardet.detect_all(
        sample, ignore_threshold=True, encoding_era=EncodingEra.ALL & ~EncodingEra.MAINFRAME
    ):
        name = found["encoding"]
        wider = {"iso-8859-1": "Windows-1252", "gb2312": "GB18030", "euc-kr": "CP949", "shift_jis": "CP932"}
        name = wider.get(str(name).lower(), name)
        try:
            text = codecs.getincrementaldecoder(str(name))().decode(sample)  # the last character may be cut
        except (UnicodeError, LookupError):
            continue
        if not _is_garbled(text):
            readings.append(Reading(str(name), float(found["confidence"]), text))
    return readings


def _is_rival(other: Reading, best: Reading) -> bool:
    """Say whether another reading is about as probable; of DOS and Macintosh encodings only one that is more so."""
    old = other.encoding.lower().startswith(("mac", "cp4", "cp7", "cp8", "hp", "ibm"))
    return best.confidence < other.confidence * (1 if old else MARGIN)


def _is_garbled(text: str) -> bool:
    """Say whether a text has control characters that no text has, or many words that mix two alphabets."""
    beyond = {character for character in text if character > "\x7f"}
    if any(unicodedata.category(character) in ("Cc", "Co", "Cn") for character in beyond):
        return True
    alphabets = {character: _alphabet(character) for character in beyond}
    words = mixed = 0
    for word in text.split():
        if word.isascii():
            continue
        words += 1
        kinds = [alphabets[c] if c > "\x7f" else "LATIN" if c.isalpha() else "" for c in word]
        mixed += any(a and b and a != b for a, b in pairwise(kinds))
    return mixed > max(MIXED * words, 0.5)


def _alphabet(character: str) -> str:
    """Return the alphabet of a letter, BOX of a drawing character, and nothing of other characters."""
    name = unicodedata.name(character, "")
    first = name.split(" ")[0]
    return first if first in ("LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "BOX", "THAI") else ""


def _first_beyond_ascii(sample: bytes) -> tuple[int, int]:
    """Return the line of the first byte that is no UTF-8, and its place in the line, both counted from 1."""
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        start = error.start
    else:
        return 1, 1
    return sample.count(b"\n", 0, start) + 1, start - sample.rfind(b"\n", 0, start)


def _line(text: str, number: int) -> str:
    return text.split("\n")[number - 1] if text.count("\n") >= number - 1 else text


def _shorten(text: str) -> str:
    """Return at most 40 characters of a line, from a little before the first that is not ASCII."""
    first = next((i for i, character in enumerate(text) if character > "\x7f"), 0)
    start = max(0, first - 20)
    return text[start : start + 40].strip()

"""Text as a screen or a page shows it: sentences short, and no characters that act on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

CHARACTERS = 400  # of a sentence that are shown
EXAMPLE = 60  # characters of an example or a name
NAMES = 12  # of columns or files that a message lists
ACTING = ("Cc", "Cs", "Co", "Cn")  # control, half of a pair, private, not assigned


def shown(text: str, characters: int = CHARACTERS) -> str:
    """Return a sentence as it is shown: in one line, cut after some characters, control characters as their symbols."""
    cut = text if len(text) <= characters else f"{text[:characters]}… ({len(text):,} characters)"
    return visible(cut.translate(dict.fromkeys(map(ord, "\t\n\r"), " ")))


def shorten(text: str) -> str:
    """Return a text in quotes, on one line, cut if it is long."""
    return repr(text if len(text) <= EXAMPLE else text[:EXAMPLE] + "...")


def enumerated(names: Sequence[str], notes: Mapping[str, str] | None = None) -> str:
    """Return names in quotes for a message, the first of many, each with its note in brackets."""
    listed = [shorten(name) + (f" ({notes[name]})" if notes else "") for name in names[:NAMES]]
    return ", ".join(listed) + (f" and {len(names) - NAMES:,} more" if len(names) > NAMES else "")


def visible(text: str) -> str:
    """Return a text of any length with the control characters other than tab and line feed as their symbols."""
    return "".join(
        _symbol(character) if unicodedata.category(character) in ACTING and character not in "\t\n" else character
        for character in text
    )


def _symbol(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"

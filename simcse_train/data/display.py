"""Text as a screen or a page shows it: sentences short, and no characters that act on a terminal."""

from __future__ import annotations

import unicodedata

CHARACTERS = 400  # of a sentence that are shown
ACTING = ("Cc", "Cs", "Co", "Cn")  # control, half of a pair, private, not assigned


def shown(text: str, characters: int = CHARACTERS) -> str:
    """Return a sentence as it is shown: in one line, cut after some characters, control characters as their symbols."""
    cut = text if len(text) <= characters else f"{text[:characters]}… ({len(text):,} characters)"
    return visible(cut.translate(dict.fromkeys(map(ord, "\t\n\r"), " ")))


def visible(text: str) -> str:
    """Return a text of any length with the control characters other than tab and line feed as their symbols."""
    return "".join(
        _symbol(character) if unicodedata.category(character) in ACTING and character not in "\t\n" else character
        for character in text
    )


def _symbol(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"

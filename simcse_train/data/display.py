"""Sentences of a text as a screen or a page shows them: short, and without characters that act on a terminal."""

from __future__ import annotations

import unicodedata

CHARACTERS = 400  # of a sentence that are shown


def shown(text: str) -> str:
    """Return a text as it is shown: cut after 400 characters, control characters as their symbols."""
    cut = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}… ({len(text):,} characters)"
    return "".join(_visible(character) for character in cut)


def _visible(character: str) -> str:
    if character in "\t\n\r":
        return " "
    if unicodedata.category(character) not in ("Cc", "Cs", "Co", "Cn"):
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"

from __future__ import annotations

from simcse_train.data.display import CHARACTERS, shown, visible


def test_long_texts_are_cut_and_control_characters_made_visible() -> None:
    assert shown("a\tb\x00\x1b\x7f\x85") == "a b\u2400\u241b\u2421\ufffd"
    cut = shown("y" * 10_000)
    assert cut.startswith("y" * CHARACTERS + "…")
    assert len(cut) < CHARACTERS + 30
    assert shown("日本語 עברית 👩‍👧") == "日本語 עברית 👩‍👧"


def test_messages_keep_their_lines_and_lose_what_acts_on_a_terminal() -> None:
    assert visible("one\n\ttwo\r\x1b[2J\x9b31m") == "one\n\ttwo␍␛[2J\ufffd31m"
    assert visible("y" * 10_000) == "y" * 10_000

from __future__ import annotations

import itertools
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import AutoTokenizer

from simcse_train.encoders import words
from simcse_train.encoders.token_rows import TokenRows, concatenate_rows, join_rows
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.encoders.words import WordTokens, divide, portions, works_on_words

VOCABULARY = [
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "cat",
    "##s",
    "the",
    "The",
    "a",
    "##b",
    "b",
    ",",
    ".",
    "-",
    "_",
    "##3",
    "猫",
    "é",
]
AWKWARD = [
    "", " ", "the cats, a-b", "The  CATS\t.\x01the\x0bcat\x1fs", "\u0301the ,\u0301 cat\u0301", "cat\u00a0cat\u3000cat",
    "一只猫 cat猫cat", "[SEP] the[CLS]", "a" * 150 + " the", "İstanbul ΣΑΣ Kelvin\u212a", "\u037ea\u1fefb",
    "😀👩‍👩‍👧 cat", "\ufeffthe\u200bcat\u00ad", "e\u0301 é", "the\ncat\r\nthe\u2028cat", "the cats " * 40,
]  # fmt: skip
TEXTS = st.lists(
    st.text(st.sampled_from("aàé\u0301Σİ猫 ,.-_\t\x01\u00a0catsTheb3") | st.characters(exclude_categories=["Cs"]))
)


def backend(lowercase: bool) -> Tokenizer:
    made = Tokenizer(WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[CLS]", "[SEP]"])
    return made


def as_lists(rows: TokenRows) -> list[list[int]]:
    return [row.tolist() for row in np.split(rows.tokens, rows.lengths.cumsum()[:-1])] if len(rows) else []


def assert_equal_to_the_library(tokenizer: Tokenizer, found: WordTokens, texts: list[str], most: int) -> None:
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    expected = [encoding.ids for encoding in plain.encode_batch(texts, add_special_tokens=False)]
    rows = found.tokenize(texts, most)
    assert as_lists(rows) == [row[:most] for row in expected]
    assert rows.is_cut.tolist() == [len(row) > most for row in expected]


@pytest.mark.parametrize("lowercase", [True, False])
def test_tokens_by_words_are_those_of_the_library(lowercase: bool) -> None:
    tokenizer = backend(lowercase)
    assert works_on_words(tokenizer)
    for most in (1, 3, 1000):
        assert_equal_to_the_library(tokenizer, WordTokens(tokenizer), AWKWARD, most)


@pytest.mark.parametrize("lowercase", [True, False])
@settings(max_examples=150, deadline=None)
@given(parts=st.lists(TEXTS, max_size=3), most=st.integers(1, 6))
def test_whatever_was_seen_before_tokens_are_those_of_the_library(
    lowercase: bool, parts: list[list[str]], most: int
) -> None:
    tokenizer = backend(lowercase)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "MOST_WORDS", 5)
        patch.setattr(words, "PORTION_TEXTS", 2)
        found = WordTokens(tokenizer)
        for texts in parts:
            assert_equal_to_the_library(tokenizer, found, texts, most)


def test_words_are_forgotten_before_they_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 50)
    found = WordTokens(backend(True))
    for start in range(0, 1000, 10):
        found.tokenize([f"w{number}" for number in range(start, start + 10)], 8)
        assert len(found._numbers) <= 60
        assert len(found._sizes) == len(found._starts) == len(found._numbers)
    monkeypatch.setattr(words, "MOST_CHARACTERS", 50)
    for number in range(20):
        found.tokenize([f"{number:030}"], 8)
        assert found._characters <= 80


def test_only_a_tokenizer_that_divides_text_at_spaces_works_on_words(tiny: Path) -> None:
    assert SentenceTokenizer(AutoTokenizer.from_pretrained(tiny)).takes_threads
    with_spaces, added = backend(True), backend(True)
    with_spaces.pre_tokenizer = pre_tokenizers.Metaspace()
    added.add_tokens(["new york"])
    other = backend(True)
    other.normalizer = normalizers.NFC()
    assert not any(map(works_on_words, (with_spaces, added, other)))


@given(st.lists(st.text("ab ,", max_size=9), max_size=9))
def test_portions_are_bounded_in_texts_and_in_characters(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "PORTION_TEXTS", 3)
        patch.setattr(words, "PORTION_CHARACTERS", 12)
        edges = [0, *portions(texts), len(texts)]
    assert edges == sorted(edges)
    for start, end in itertools.pairwise(edges):
        assert end - start <= 3
        assert sum(map(len, texts[start:end])) < 12 + 9


@given(st.lists(st.text("aB é,_ \t", max_size=9), max_size=6), st.booleans())
def test_texts_are_divided_at_spaces_and_marks(texts: list[str], lowercase: bool) -> None:
    found, first = divide(texts, lowercase=lowercase)
    expected = [
        text.replace(",", " , ").replace("_", " _ ").replace("B", "b" if lowercase else "B").split(" ")
        for text in texts
    ]
    assert found.to_pylist() == [word for row in expected for word in row if word]
    assert np.diff(first).tolist() == [sum(map(bool, row)) for row in expected]


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6), st.data())
def test_rows_in_one_array_are_taken_joined_and_enclosed_like_lists(rows: list[list[int]], data: st.DataObject) -> None:
    joined = join_rows(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    assert as_lists(joined) == rows
    assert as_lists(joined.take(np.array(chosen, np.int64))) == [rows[place] for place in chosen]
    assert as_lists(joined.between([7, 8], [9, 6, 5])) == [[7, 8, *row, 9, 6, 5] for row in rows]
    assert as_lists(concatenate_rows([joined, joined])) == rows + rows


@pytest.mark.skipif(find_spec("pandas") is None, reason="pandas is not installed")
def test_words_are_tokenised_without_the_import_of_pandas() -> None:
    """It takes a fifth of a second of every start."""
    code = """
        import sys
        from tokenizers import Tokenizer, normalizers
        from tokenizers.models import WordPiece
        from simcse_train.encoders.words import WordTokens
        backend = Tokenizer(WordPiece({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        print(WordTokens(backend).tokenize(["Cat dog", "cat"], 8).tokens, "pandas" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], check=True, capture_output=True, text=True)
    assert done.stdout == "[1 0 1] False\n"

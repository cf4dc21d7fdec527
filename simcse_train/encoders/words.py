"""Token ids of many texts, where each different word is tokenised once.

BERT's tokenizer works on each character and then on each word by itself, and a space always ends a word. So the tokens
of a text are those of its parts between spaces, one after another. A long text repeats most of its parts: looking them
up takes a small part of the time in which the `tokenizers` library computes them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from simcse_train.encoders.token_rows import TokenRows, concatenate_rows, join_rows, ranges

# When this much is known it is forgotten, and begins anew. It bounds the memory: about 100 bytes for each word.
MOST_WORDS = 2**18
MOST_CHARACTERS = 2**22

PORTION_TEXTS = 4096
PORTION_CHARACTERS = 4_000_000
REMEMBERING = threading.Lock()  # not one of each object, which could not be copied
MARKS = "".join(chr(code) for code in range(33, 127) if not chr(code).isalnum())
IS_MARK = np.isin(np.arange(256), list(MARKS.encode()))  # (256,): of a byte


def works_on_words(backend: Tokenizer) -> bool:
    """Say whether the tokens of a text are those of its parts between spaces, one after another."""
    return (
        isinstance(backend.normalizer, BertNormalizer)
        and isinstance(backend.pre_tokenizer, BertPreTokenizer)
        and isinstance(backend.model, WordPiece)
        # Those that are not special are found in the text before it is divided into words.
        and all(token.special for token in backend.get_added_tokens_decoder().values())
    )


class WordTokens:
    """Tokenises with a tokenizer that works on words, and remembers words; written special tokens are text."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self._model = self._backend.model
        self._lowercase = bool(backend.normalizer.lowercase)
        self._numbers: dict[str, int]
        self._characters: int
        self._starts: NDArray[np.int64]  # (words,): where the tokens of each word begin
        self._sizes: NDArray[np.int64]  # (words,)
        self._tokens: NDArray[np.int32]  # of all words, one after another
        self._forget()

    def tokenize(self, texts: Sequence[str], most: int) -> TokenRows:
        """Return the first `most` tokens of each text, without special tokens around them."""
        edges = [0, *portions(texts), len(texts)]
        return concatenate_rows([self._tokenize(texts[start:end], most) for start, end in itertools.pairwise(edges)])

    def _tokenize(self, texts: Sequence[str], most: int) -> TokenRows:
        words, first = divide(texts, lowercase=self._lowercase)
        encoded = words.dictionary_encode()
        with REMEMBERING:  # also by other threads
            # Arrow's own `to_numpy` and `array` import pandas where it is installed, which a start would wait for.
            numbers = self._numbers_of(encoded.dictionary.to_pylist())[np.from_dlpack(encoded.indices)]  # (words,)
            tokens, starts, sizes = self._tokens, self._starts[numbers], self._sizes[numbers]
        before = np.append(0, sizes.cumsum())  # (words + 1,): tokens before each word, in all texts
        ends = before[first]  # (texts + 1,): tokens before each text
        whole = np.diff(ends)
        # Of each word, how many tokens are kept: those before the limit of its text.
        kept = (np.repeat(ends[:-1] + most, np.diff(first)) - before[:-1]).clip(0, sizes)
        return TokenRows(tokens[ranges(starts, kept)], whole.clip(max=most), whole > most)

    def _numbers_of(self, words: list[str]) -> NDArray[np.int64]:
        """Return the numbers under which these words, all different, are remembered."""
        if len(self._numbers) > MOST_WORDS or self._characters > MOST_CHARACTERS:
            self._forget()
        numbers = list(map(self._numbers.get, words))
        if None in numbers:
            new = [place for place, number in enumerate(numbers) if number is None]
            self._remember([words[place] for place in new])
            for number, place in enumerate(new, len(self._numbers) - len(new)):
                numbers[place] = number
        return np.array(numbers, np.int64)

    def _remember(self, words: list[str]) -> None:
        """Tokenise words that are not known and number them."""
        # What normalisation leaves as it is goes to the model, which takes a quarter of the time.
        others = [word for word in words if not (word.isascii() and word.isalnum())]
        encoded = dict(zip(others, self._backend.encode_batch_fast(others, add_special_tokens=False), strict=True))
        tokens = [
            encoded[word].ids if word in encoded else [token.id for token in self._model.tokenize(word)]
            for word in words
        ]
        rows = join_rows(tokens)
        self._numbers.update(zip(words, range(len(self._numbers), len(self._numbers) + len(words)), strict=True))
        self._characters += sum(map(len, words))
        self._starts = np.append(self._starts, len(self._tokens) + rows.lengths.cumsum() - rows.lengths)
        self._sizes = np.append(self._sizes, rows.lengths)
        self._tokens = np.append(self._tokens, rows.tokens)

    def _forget(self) -> None:
        self._numbers, self._characters = {}, 0
        self._starts, self._sizes = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._tokens = np.zeros(0, np.int32)


def portions(texts: Sequence[str]) -> list[int]:
    """Return where to divide many texts, or long ones, so that the memory that one portion takes is bounded."""
    characters = np.fromiter(map(len, texts), np.int64, len(texts)).cumsum() // PORTION_CHARACTERS
    portion = characters + np.arange(len(texts)) // PORTION_TEXTS  # it rises where either of both does
    return (np.flatnonzero(np.diff(portion)) + 1).tolist()


def divide(texts: Sequence[str], *, lowercase: bool) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    """Return the words of texts, and which is the first of each text (texts + 1,).

    Words end at spaces and at ASCII punctuation, each mark of which is a word. With `lowercase`, A to Z are lowered.
    """
    encoded = [text.encode() for text in texts]
    content = b"".join(encoded)
    characters = np.frombuffer(content.lower() if lowercase else content, np.uint8)  # no byte of a letter is a mark
    edges = np.append(0, np.fromiter(map(len, encoded), np.int64, len(encoded)).cumsum())
    is_mark = IS_MARK[characters]
    is_space = characters == ord(" ")
    after_letter = np.zeros(len(characters), bool)  # whether a letter of the same text stands before
    np.logical_not(is_mark[:-1] | is_space[:-1], out=after_letter[1:])
    after_letter[edges[:-1][edges[:-1] < edges[-1]]] = False
    begins = (is_mark | ~after_letter) & ~is_space
    first = np.searchsorted(np.flatnonzero(begins), edges)
    places = np.append(np.flatnonzero(begins[~is_space]), np.count_nonzero(~is_space))
    contents = pa.py_buffer(places), pa.py_buffer(characters[~is_space])
    return pa.LargeStringArray.from_buffers(len(places) - 1, *contents), first

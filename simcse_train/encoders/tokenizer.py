"""Sentences to token ids.

Wraps a tokenizer of transformers. Where the `tokenizers` library alone gives the same ids, it is called directly, which
takes about half the time; a tokenizer class may override the Python around it, so this is checked when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# A longer text is cut here before it is tokenised: no sentence of `max_length` tokens needs as many characters, and a
# line of 100 MB would keep the tokenizer busy for minutes.
MAX_CHARACTERS = 20_000

# Sentences on which a loaded encoder and its tokenizer are checked.
PROBES = ("One.", "A somewhat longer sentence stands beside it.", "Three of them.")


class SentenceTokenizer:
    """A tokenizer of transformers that gives the token ids of sentences and nothing else."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pretrained = tokenizer
        self.is_direct = _backend_gives_same_tokens(tokenizer)
        self.opening, self.closing = _special_tokens(tokenizer)

    @property
    def special_tokens(self) -> int:
        """The number of special tokens that are added to a sentence."""
        return self.opening + self.closing

    @property
    def padding_id(self) -> int:
        """The token id that fills padded batches; attention never sees it."""
        return self.pretrained.pad_token_id or 0

    def tokenize(self, sentences: Sequence[str], max_length: int) -> list[list[int]]:
        """Return the token ids of each sentence, special tokens included, cut at `max_length` tokens.

        A special token written in a sentence, such as `[SEP]`, is text.
        """
        texts = [sentence[:MAX_CHARACTERS] for sentence in sentences]
        tokenize = _backend_tokens if self.is_direct else _tokens
        return tokenize(self.pretrained, texts, max_length)

    def tokenize_and_mark(self, sentences: Sequence[str], max_length: int) -> tuple[list[list[int]], list[bool]]:
        """Return what `tokenize` returns, and which of the sentences were cut."""
        # Asking for one token more than is kept shows which sentences are cut. A tokenizer cuts the text before it adds
        # the special tokens, so such a row has exactly one token of text too many.
        rows = self.tokenize(sentences, max_length + 1)
        cut = [len(row) > max_length for row in rows]
        cuts_left = self.pretrained.truncation_side == "left"
        surplus = self.opening if cuts_left else max_length - self.closing
        for row, is_cut in zip(rows, cut, strict=True):
            if is_cut:
                del row[surplus]
        return rows, cut

    def fingerprint(self) -> str:
        """Return a SHA-256 of all that decides which tokens a text becomes."""
        backend = getattr(self.pretrained, "backend_tokenizer", None)
        if backend is None:
            return _digest([type(self.pretrained).__name__, sorted(self.pretrained.get_vocab().items())])
        settings = json.loads(backend.to_str())
        # The most recent call leaves its truncation and padding there.
        return _digest([settings[part] for part in sorted(settings) if part not in ("truncation", "padding")])


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    return tokenizer(  # type: ignore[no-any-return]
        texts,
        truncation=True,
        max_length=max_length,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def _backend_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    """Return what `_tokens` returns, from the tokenizers library alone."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    backend.encode_special_tokens = True
    return [encoding.ids for encoding in backend.encode_batch_fast(texts)]


def _backend_gives_same_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    if not tokenizer.is_fast:
        return False
    texts = [*PROBES, "", f"a {' '.join(tokenizer.all_special_tokens)} b"]
    return all(_backend_tokens(tokenizer, texts, length) == _tokens(tokenizer, texts, length) for length in (6, 64))


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return how many special tokens stand before a text and how many after it."""
    row, empty = _tokens(tokenizer, [PROBES[0], ""], 16)
    differs = (i for i, (token, special) in enumerate(zip(row, empty, strict=False)) if token != special)
    opening = next(differs, len(empty))
    return opening, tokenizer.num_special_tokens_to_add() - opening


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

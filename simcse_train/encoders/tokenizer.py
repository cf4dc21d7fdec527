"""Sentences to token ids.

Wraps a tokenizer of transformers. Where the `tokenizers` library alone gives the same ids, it is called directly, which
takes about half the time; a tokenizer class may override the Python around it, so this is checked when it is loaded.

What stands in a sentence is text. The tokens that the tokenizer's class itself uses, such as `[SEP]` or `<s>`, are cut
into pieces when somebody has written them in a sentence. All other added tokens, special or not, are part of the
vocabulary that the user wants: each stays whole.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_python import Trie

from simcse_train.encoders.token_rows import TokenRows, join_rows
from simcse_train.encoders.words import WordTokens, works_on_words

# A longer text is cut here before it is tokenised: no sentence of `max_length` tokens needs as many characters, and a
# line of 100 MB would keep the tokenizer busy for minutes.
MAX_CHARACTERS = 20_000
CHARACTERS_PER_TOKEN = 64

HIDDEN = "\ufdd0"  # no character of Unicode: programs may use it inside, and no text has it

# Sentences on which a loaded encoder and its tokenizer are checked.
PROBES = ("One.", "A somewhat longer sentence stands beside it.", "Three of them.")


class SentenceTokenizer:
    """A tokenizer of transformers that gives token ids of sentences, each after a `prompt`, and nothing else."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str = "") -> None:
        self.pretrained = tokenizer
        self.prompt = prompt
        self._reading = _for_reading(tokenizer)
        self.gives_types = "token_type_ids" in tokenizer(PROBES[0])
        self.is_direct = _backend_gives_same_tokens(self._reading)
        works = self.is_direct and works_on_words(self._reading.backend_tokenizer)
        self._words = WordTokens(self._reading.backend_tokenizer) if works else None
        # Tokens before and after every sentence, those of the prompt included.
        self._added = _special_tokens(self._reading, "")
        self._around = _tokens(self._reading, [""], 10_000)[0]
        self.opening, self.closing = _special_tokens(self._reading, prompt) if prompt else self._added

    @property
    def special_tokens(self) -> int:
        """The number of tokens that every sentence has: those of the prompt and the special ones around it."""
        return self.opening + self.closing

    @property
    def has_first_token(self) -> bool:
        """Whether a token such as `[CLS]` stands before every sentence; T5's and XLNet's tokenizers put none there."""
        return self._added[0] > 0

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may call `tokenize_rows`; otherwise the tokenizer has threads of its own."""
        return self._words is not None

    @property
    def padding_id(self) -> int:
        """The token id that fills padded batches; attention never sees it."""
        return self.pretrained.pad_token_id or 0

    @property
    def largest_id(self) -> int:
        """The largest token id that a sentence can have; the mask token is in none."""
        mask = self.pretrained.mask_token_id
        return max((i for i in self.pretrained.get_vocab().values() if i != mask), default=0)

    def tokenize(self, sentences: Sequence[str], max_length: int) -> list[list[int]]:
        """Return the token ids of each sentence, prompt and special tokens included, cut at `max_length` tokens.

        A token of the tokenizer's class written in a sentence, such as `[SEP]`, is text; the user's own tokens stay
        whole.
        """
        self._reading.truncation_side = self.pretrained.truncation_side
        tokenize = _backend_tokens if self.is_direct else _tokens
        return tokenize(self._reading, self._read_texts(sentences, max_length), max_length)

    def tokenize_rows(self, sentences: Sequence[str], max_length: int) -> TokenRows:
        """Return the token ids that `tokenize` returns in one array, and which of the sentences were cut."""
        cuts_left = self.pretrained.truncation_side == "left"
        before, after = self._added
        kept = max_length - before - after
        if self._words is not None and kept > 0 and not cuts_left:
            texts = self._read_texts(sentences, max_length + 1)
            return self._words.tokenize(texts, kept).between(self._around[:before], self._around[before:])
        # Asking for one token more than is kept shows which sentences are cut. A tokenizer cuts the text before it adds
        # the special tokens, so such a row has exactly one token of text too many.
        rows = self.tokenize(sentences, max_length + 1)
        is_cut = np.fromiter((len(row) > max_length for row in rows), bool, len(rows))
        surplus = before if cuts_left else max_length - after
        for place in np.flatnonzero(is_cut).tolist():
            del rows[place][surplus]
        return join_rows(rows, is_cut)

    def text(self, ids: Sequence[int]) -> str:
        """Return a sentence as its token ids show it, without special tokens."""
        return str(self.pretrained.decode(list(ids), skip_special_tokens=True))

    def _read_texts(self, sentences: Sequence[str], max_length: int) -> list[str]:
        """Return as much of each sentence, after the prompt, as can become tokens."""
        most = max(MAX_CHARACTERS, CHARACTERS_PER_TOKEN * min(max_length, 10**6))
        kept = slice(-most, None) if self.pretrained.truncation_side == "left" else slice(most)
        return [(self.prompt + sentence)[kept] for sentence in sentences]

    def unknown_share(self, rows: Sequence[Sequence[int]]) -> float:
        """Return the share of tokens, without special ones, that stand for what the tokenizer does not know."""
        own = self.pretrained
        if own.unk_token_id in (None, own.pad_token_id, own.eos_token_id, own.sep_token_id, own.cls_token_id):
            return 0.0
        unknown = sum(row.count(own.unk_token_id) for row in map(list, rows))
        return unknown / max(1, sum(len(row) - self.special_tokens for row in rows))

    def fingerprint(self) -> str:
        """Return a SHA-256 of all that decides which tokens a text becomes."""
        backend = getattr(self._reading, "backend_tokenizer", None)
        around = (
            [] if self.is_direct else [type(self.pretrained).__name__, str(sorted(self.pretrained.init_kwargs.items()))]
        )
        side = [self.pretrained.truncation_side] if self.pretrained.truncation_side != "right" else []
        if backend is None:
            return _digest([self.prompt, around, sorted(self.pretrained.get_vocab().items()), *side])
        settings = json.loads(backend.to_str())
        # The most recent call leaves its truncation and padding there.
        parts = [settings[part] for part in sorted(settings) if part not in ("truncation", "padding")]
        return _digest([*parts, *([self.prompt, around] if self.prompt or around else []), *side])


def user_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the added tokens that stay whole in a sentence: all but those that the tokenizer's class itself uses."""
    own = set(_own_special_tokens(tokenizer))
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.content not in own]


def _own_special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    found = (getattr(tokenizer, f"{name}_token", None) for name in names)
    return [str(token) for token in found if token is not None]


def _for_reading(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy for which the class's own tokens are text and the user's are not; what is saved stays as it was."""
    reading = copy.copy(tokenizer)
    reading.split_special_tokens = True
    whole = set(user_tokens(tokenizer))
    if not tokenizer.is_fast:
        if whole and hasattr(tokenizer, "tokens_trie"):  # here the setting would split all added tokens
            reading.split_special_tokens = False
            reading.tokens_trie = Trie(whole)
        return reading
    hidden = _own_special_tokens(tokenizer) if _finds_own_tokens(tokenizer) else []
    if hidden or any(token.special for token in tokenizer.added_tokens_decoder.values() if token.content in whole):
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in settings["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in whole
        _hide(settings, set(hidden))
        reading._tokenizer = Tokenizer.from_str(json.dumps(settings))
    return reading


def _finds_own_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the class's own tokens come out of a text that has them, as the unigram model's pieces do."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    own = set(_own_special_tokens(tokenizer)) - {tokenizer.unk_token}  # what is unknown always comes out as that
    return any(
        backend.token_to_id(token) in backend.encode(f"a {token} b", add_special_tokens=False).ids for token in own
    )


def _hide(settings: dict[str, Any], tokens: set[str]) -> None:
    """Rename tokens in the settings of a tokenizer, to what no text contains; their ids stay."""
    model = settings["model"]
    if not tokens:
        return
    if isinstance(model["vocab"], dict):
        model["vocab"] = {HIDDEN * (piece in tokens) + piece: i for piece, i in model["vocab"].items()}
        if model.get("unk_token") in tokens:
            model["unk_token"] = HIDDEN + model["unk_token"]
    else:
        model["vocab"] = [[HIDDEN * (piece in tokens) + piece, score] for piece, score in model["vocab"]]
    for token in settings["added_tokens"]:
        token["content"] = HIDDEN * (token["content"] in tokens) + token["content"]


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    return tokenizer(  # type: ignore[no-any-return]
        texts,
        truncation=True,
        max_length=max_length,
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
    added = " ".join(user_tokens(tokenizer)[:8])
    texts = [*PROBES, "", f"a {' '.join(tokenizer.all_special_tokens[:32])} b", f"a {added} b"]
    return all(_backend_tokens(tokenizer, texts, length) == _tokens(tokenizer, texts, length) for length in (6, 64))


def _special_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, int]:
    """Return how many tokens stand before a sentence, special ones and those of the prompt, and how many after it."""
    row, empty = _tokens(tokenizer, [prompt + PROBES[0], prompt], 10_000)
    differs = (i for i, (token, special) in enumerate(zip(row, empty, strict=False)) if token != special)
    opening = next(differs, len(empty))
    return opening, len(empty) - opening


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

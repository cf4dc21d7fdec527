"""A Hugging Face encoder, its pooling, and the head used in training only.

Sentences travel packed (see `packing`), so no padding token is multiplied, and where `[CLS]` is the embedding the last layer computes
nothing else. An encoder that does not use transformers' attention interface, or does not give the same states packed as padded, is fed
padded batches instead.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from simcse_train.config import InputError
from simcse_train.dropout import replace_dropout
from simcse_train.packing import let_last_layer_compute_first_tokens, pack, packing
from simcse_train.texts import open_file, read_texts

# Longer texts are cut here before they are tokenised; no sentence of `max_length` tokens needs as many characters, and a line of
# 100 MB must not keep the tokenizer busy for minutes.
MAX_CHARACTERS = 20_000

# On these an encoder shows, when it is loaded, which of the faster ways give the same states.
PROBES = ("One.", "A somewhat longer sentence stands beside it.", "Three of them.")

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class Encoder(nn.Module):
    """A sentence encoder: model, tokenizer, pooling, and in training possibly a head on top."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str,
        max_length: int,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_length = max_length
        self.head = head
        self.backend = _backend_tokenizes_exactly(tokenizer)
        self.special_tokens = _special_tokens(tokenizer)
        replace_dropout(model)
        self.eval()
        self.packed = _packs_exactly(self)
        self.first_only = self.packed and pooling == "cls" and _computes_first_tokens_exactly(self)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    @property
    def hidden_size(self) -> int:
        """The length of an embedding."""
        return int(self.model.config.hidden_size)

    @property
    def max_positions(self) -> int:
        """The most tokens that a sentence can have."""
        return max_positions(self.model)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the embeddings (rows, hidden) that the loss sees: with the head, where there is one."""
        embeddings = self.embed(tokens, lengths)
        return embeddings if self.head is None else self.head(embeddings)

    def embed(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the pooled embeddings (rows, hidden) in float32 of packed tokens (total,) with lengths (rows,).

        The head is left out: this is what is evaluated and exported (`cls_before_pooler` of the paper's code).
        """
        if self.first_only:
            return self.states(tokens, lengths, first_only=True).float()
        states = self.states(tokens, lengths).float()  # (total, hidden)
        if self.pooling == "cls":
            return states[lengths.cumsum(0) - lengths]
        return torch.segment_reduce(states, "mean", lengths=lengths, unsafe=True)

    def states(self, tokens: Tensor, lengths: Tensor, *, first_only: bool = False) -> Tensor:
        """Return the last layer's states (total, hidden) of packed tokens (total,); with `first_only` those of `[CLS]` (rows, hidden)."""
        if not self.packed:
            return self.padded_states(tokens, lengths)
        starts = lengths.cumsum(0) - lengths
        places = torch.arange(len(tokens), device=tokens.device) - starts.repeat_interleave(lengths)
        output = self.model(
            input_ids=tokens[None],
            position_ids=(places + _first_position(self.model))[None],
            packing=packing(lengths, first_only=first_only),
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    def padded_states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return what `states` returns, computed on a padded batch with the model's own attention."""
        rows = tokens.split(lengths.tolist())
        padding = self.tokenizer.pad_token_id or 0
        input_ids = pad_sequence(list(rows), batch_first=True, padding_value=padding)  # (rows, longest)
        mask = torch.arange(input_ids.shape[1], device=tokens.device) < lengths[:, None]
        output = self.model(input_ids=input_ids, attention_mask=mask.long())
        states: Tensor = output.last_hidden_state[mask]
        return states

    def tokenize(self, sentences: Sequence[str], max_length: int) -> list[list[int]]:
        """Return the token ids of each sentence, special tokens included, cut at `max_length`.

        Special tokens written in a sentence, such as `[SEP]`, are text.
        """
        heads = [sentence[:MAX_CHARACTERS] for sentence in sentences]
        return _backend_tokens(self.tokenizer, heads, max_length) if self.backend else _tokens(self.tokenizer, heads, max_length)

    def tokenize_and_mark(self, sentences: Sequence[str], max_length: int) -> tuple[list[list[int]], list[bool]]:
        """Return what `tokenize` returns, and which of the sentences were cut."""
        # One token more than is kept shows which sentences are cut. A tokenizer cuts the text before it adds the special tokens, so
        # such a row holds one token of text too many, and nothing else differs.
        rows = self.tokenize(sentences, max_length + 1)
        cut = [len(row) > max_length for row in rows]
        opening, closing = self.special_tokens
        surplus = opening if self.tokenizer.truncation_side == "left" else max_length - closing
        for row, is_cut in zip(rows, cut, strict=True):
            if is_cut:
                del row[surplus]
        return rows, cut

    @torch.inference_mode()
    def encode(
        self, sentences: Sequence[str], *, batch_size: int = 64, normalized: bool = True, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Return one float32 row per sentence (sentences, hidden), without dropout and without the head."""
        training = self.training
        self.eval()
        out = np.zeros((len(sentences), self.hidden_size), dtype=np.float32)
        # Neighbours of like length waste least where batches have to be padded.
        order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
        for start in tqdm(range(0, len(order), batch_size), desc="encode", unit="batch", disable=not show_progress):
            chosen = order[start : start + batch_size]
            tokens, lengths = pack(self.tokenize([sentences[i] for i in chosen], self.max_length), self.device)
            embeddings = self.embed(tokens, lengths)
            out[chosen] = (normalize(embeddings) if normalized else embeddings).cpu().numpy()
        self.train(training)
        return out


def projection_head(hidden_size: int, *, seed: int, initializer_range: float = 0.02) -> nn.Module:
    """Return the head of the paper: a linear layer and tanh on `[CLS]` (section 6.3), new, as BERT initialises its own."""
    with seeded(seed):
        linear = nn.Linear(hidden_size, hidden_size)
        nn.init.normal_(linear.weight, std=initializer_range)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.Tanh())


def encode_file(encoder: Encoder, source: str, target: Path, *, normalized: bool = True) -> tuple[int, int]:
    """Write one float32 row per line of a text file, or of standard input for `-`, as a .npy file; return its shape.

    An empty line gives a row too, so that rows and lines stay in step. The file is written whole or not at all.
    """
    if target.suffix != ".npy":
        raise InputError(f"OUTPUT {target} must end in .npy.")
    path = Path("standard input" if source == "-" else source)
    with sys.stdin.buffer if source == "-" else open_file(path) as raw:
        sentences = list(read_texts(raw, path, None))
    if not sentences:
        raise InputError(f"{path} is empty: there is nothing to encode.")
    rows = encoder.encode(sentences, normalized=normalized, show_progress=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as stream:
            np.save(stream, rows)
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{target} can't be written: {error.strerror}. Choose another place.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return rows.shape[0], rows.shape[1]


def save_encoder(encoder: Encoder, folder: Path) -> None:
    """Write the encoder, without the head, as a folder that transformers and sentence-transformers load."""
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {
        "word_embedding_dimension": encoder.hidden_size,
        "pooling_mode_cls_token": encoder.pooling == "cls",
        "pooling_mode_mean_tokens": encoder.pooling == "mean",
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": encoder.max_length, "do_lower_case": False},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def dropout_settings(config: PretrainedConfig) -> dict[str, float]:
    """Return the dropout probabilities that act inside the encoder, under the names that its family uses."""
    heads = ("classif", "pooler", "summary", "qa_", "head")
    return {
        name: float(value)
        for name, value in config.to_dict().items()
        if "dropout" in name and isinstance(value, int | float) and not any(word in name for word in heads)
    }


@contextlib.contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Draw random numbers from the given seed inside the block, and leave the outer random state as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield


@torch.inference_mode()
def is_deterministic(encoder: Encoder) -> bool:
    """Say whether two passes in training mode give one and the same embedding: then dropout makes no positive pairs."""
    training = encoder.training
    encoder.train()
    tokens, lengths = pack(encoder.tokenize(["Two views of one sentence differ by dropout alone."], 16), encoder.device)
    with seeded(0):
        first = encoder.embed(tokens, lengths)
        second = encoder.embed(tokens, lengths)
    encoder.train(training)
    return torch.equal(first, second)


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
    """Return what `_tokens` returns, straight from the tokenizers library: ids only, in about half the time."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    backend.encode_special_tokens = True
    return [encoding.ids for encoding in backend.encode_batch_fast(texts)]


def _backend_tokenizes_exactly(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether there is a fast tokenizer that gives the same tokens without the Python around it, which a class may override."""
    if not tokenizer.is_fast:
        return False
    texts = [*PROBES, "", f"a {' '.join(tokenizer.all_special_tokens)} b"]
    return all(_backend_tokens(tokenizer, texts, length) == _tokens(tokenizer, texts, length) for length in (6, 64))


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return how many special tokens stand before a text and how many after it."""
    row, empty = _tokens(tokenizer, [PROBES[0], ""], 16)
    opening = next((i for i, (token, special) in enumerate(zip(row, empty, strict=False)) if token != special), len(empty))
    return opening, tokenizer.num_special_tokens_to_add() - opening


@torch.inference_mode()
def _packs_exactly(encoder: Encoder) -> bool:
    """Switch the model to packed attention if it then gives the same states as on a padded batch; else leave it padded."""
    model = encoder.model
    before = model.config._attn_implementation
    tokens, lengths = pack(encoder.tokenize(PROBES, 12), encoder.device)
    padded = encoder.padded_states(tokens, lengths)
    encoder.packed = True
    try:
        model.set_attn_implementation("packed")
        exact = torch.allclose(encoder.states(tokens, lengths), padded, atol=1e-4, rtol=1e-4)
    except (ValueError, TypeError, RuntimeError, AttributeError):
        exact = False
    if not exact:
        model.set_attn_implementation(before)
    return exact


@torch.inference_mode()
def _computes_first_tokens_exactly(encoder: Encoder) -> bool:
    """Let the last layer of a packed encoder compute `[CLS]` alone, and say whether that gives the same states of it."""
    tokens, lengths = pack(encoder.tokenize(PROBES, 12), encoder.device)
    expected = encoder.states(tokens, lengths)[lengths.cumsum(0) - lengths]
    try:
        let_last_layer_compute_first_tokens(encoder.model, encoder.model.config.num_hidden_layers)
        found = encoder.states(tokens, lengths, first_only=True)
    except (ValueError, TypeError, RuntimeError, AttributeError):
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


def _first_position(model: PreTrainedModel) -> int:
    """Return the position of a sentence's first token: RoBERTa and its kin count from after the padding index."""
    padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def max_positions(model: PreTrainedModel) -> int:
    """Return the most tokens that a sentence can have in a model."""
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    return int(positions) - _first_position(model)

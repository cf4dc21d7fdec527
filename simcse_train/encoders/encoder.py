"""A sentence encoder: a Hugging Face model, its tokenizer, its pooling, and in training a projection head.

Batches are packed (see `packing`), so no padding token is multiplied, and where `[CLS]` is the embedding the last layer
computes nothing else. A model that does not give the same states packed as padded gets padded batches; `probing`
decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from simcse_train.encoders.compiled.stack import Stack
from simcse_train.encoders.dropout import replace_dropout
from simcse_train.encoders.modules import Dense, Folder, LayerNorm, Normalize
from simcse_train.encoders.packing import moved, pack_rows, packing, positions
from simcse_train.encoders.padding import accepted_inputs, padded_states
from simcse_train.encoders.pooling import pool
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.errors import InputError

BATCH_TOKENS = 16_384  # that are encoded at once
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
UNLIMITED = 1_000_000  # tokens: the limit of a model that has none


class Encoder(nn.Module):
    """Model, tokenizer and pooling; `packed`, `first_only` and `equal_lengths` say how batches are computed.

    `folder` holds what a sentence-transformers folder adds to a model: the modules after the pooling, prompts,
    settings.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: SentenceTokenizer,
        pooling: str,
        max_length: int,
        head: nn.Module | None = None,
        folder: Folder | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_length = max_length
        self.head = head
        self.folder = folder or Folder()
        self.token_size = int(model.config.hidden_size)  # the length of a token's state
        self.modules_after = nn.Sequential(*self.folder.modules)
        self.packed = False
        self.first_only = False
        self.equal_lengths = False
        self.stack: Stack | None = None  # computes the layers in training, where `acceptance` lets it
        self.stack_encodes = False  # whether it also computes them without dropout
        self.flash: Callable[..., Tensor] | None = None  # computes attention on a GPU, where `acceptance` lets it
        self.float32_only = ""  # why it cannot be computed in bfloat16, if it cannot
        self.source = ""  # the folder or name that it was loaded from, as it was given
        self.notes: list[str] = []  # what the user should know about how this encoder is used
        # Whether the model is told that every token is of type 0: to GPT-2 that is not the same as to be told nothing.
        self.gives_types = tokenizer.gives_types and "token_type_ids" in accepted_inputs(model)
        replace_dropout(model)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    @property
    def hidden_size(self) -> int:
        """The length of an embedding."""
        sizes = [module.size for module in self.folder.modules if isinstance(module, Dense | LayerNorm)]
        return sizes[-1] if sizes else self.token_size * len(self.pooling.split("+"))

    @property
    def max_positions(self) -> int:
        """The largest number of tokens that a sentence can have."""
        return max_positions(self.model)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the embeddings (rows, hidden) that the loss sees: with the head, where there is one."""
        # The loss divides by the length itself, and the head is meant for states, which are not of length 1.
        last = len(self.modules_after) - 1
        is_unit = last >= 0 and isinstance(self.modules_after[last], Normalize)
        after = self.modules_after[:last] if is_unit else self.modules_after
        embeddings: Tensor = after(self._pooled(tokens, lengths)).float()
        return embeddings if self.head is None else self.head(embeddings)

    def embed(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the embeddings (rows, hidden) in float32 of packed tokens (total,) with lengths (rows,).

        The lengths are on the CPU, whatever the device of the tokens. The embeddings are pooled and passed through the
        folder's modules. The head is left out: this is what is evaluated and exported (`cls_before_pooler` of the
        paper's code).
        """
        embeddings: Tensor = self.modules_after(self._pooled(tokens, lengths))
        return embeddings.float()

    @property
    def batches(self) -> str:
        """How the sentences of a batch are computed, in words."""
        if self.packed:
            return "packed, [CLS] alone in the last layer" if self.first_only else "packed"
        return "of equal lengths" if self.equal_lengths else "padded"

    def _pooled(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the pooled states (rows, hidden) in float32."""
        if self.first_only:
            return self.states(tokens, lengths, first_only=True).float()
        return pool(self.states(tokens, lengths).float(), lengths, self.pooling)

    def states(self, tokens: Tensor, lengths: Tensor, *, first_only: bool = False) -> Tensor:
        """Return the last layer's states (total, hidden) of packed tokens (total,).

        With `first_only`, return those of each sentence's first token alone (rows, hidden).
        """
        if not self.packed:
            return self.padded_states(tokens, lengths)
        places = moved(positions(lengths, len(tokens)) + first_position(self.model), tokens.device)
        if self.stack is not None and (self.training or self.stack_encodes):
            return self.stack(tokens, places, lengths, first_only=first_only, training=self.training)
        types = {"token_type_ids": torch.zeros_like(tokens)[None]} if self.gives_types else {}
        output = self.model(
            input_ids=tokens[None],
            position_ids=places[None],
            packing=packing(lengths, tokens.device, first_only=first_only, kernel=self.flash),
            **types,
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    def padded_states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return what `states` returns, computed on padded batches with the model's own attention."""
        padding = self.tokenizer.padding_id
        return padded_states(
            self.model, tokens, lengths, padding_id=padding, types=self.gives_types, equal_lengths=self.equal_lengths
        )

    @torch.inference_mode()
    def encode(
        self,
        sentences: Iterable[str],
        *,
        batch_size: int = 64,
        normalized: bool = True,
        show_progress: bool = False,
    ) -> NDArray[np.float32]:
        """Return one float32 row per sentence (sentences, hidden), without dropout and without the head.

        A batch has at most `batch_size` sentences, and fewer where they are long, which bounds the memory. A sentence
        without a single token, as an empty one of a tokenizer without special tokens, gives zeros. Raises `InputError`
        for a single text, whose letters would be taken for sentences, and for an entry that is no text.
        """
        if isinstance(sentences, str):
            raise InputError("encode takes a list of sentences, not a single text. Put it in brackets: encode([text]).")
        if isinstance(sentences, Mapping) or hasattr(sentences, "columns"):
            raise InputError("encode takes a list of sentences, not a table. Give one of its columns: table['text'].")
        sentences = sentences.to_pylist() if hasattr(sentences, "to_pylist") else list(sentences)  # a column of Arrow
        if wrong := [number for number, sentence in enumerate(sentences) if not isinstance(sentence, str)]:
            raise InputError(
                f"encode takes texts, and {len(wrong)} of {len(sentences)} entries are not. The first of these is "
                f"entry {wrong[0]}, {sentences[wrong[0]]!r:.80}. Leave them out."
            )
        for number, sentence in enumerate(sentences):
            if HALF_CHARACTER.search(sentence):
                raise InputError(
                    f"Entry {number} of the list, {sentence!r:.80}, holds half of a character (a lone surrogate), as a "
                    "text that was cut does. Leave it out, or read the text again."
                )
        out = np.zeros((len(sentences), self.hidden_size), dtype=np.float32)
        rows = self.tokenizer.tokenize_rows(sentences, self.max_length)
        # Sentences of like length share a batch, so that a padded batch has little padding.
        order = np.argsort(-rows.lengths, kind="stable")[: np.count_nonzero(rows.lengths)]
        bar = tqdm(total=len(order), desc="encode", unit="sentence", disable=not show_progress)
        with bar, mode(self, training=False):
            while len(order):
                fit = BATCH_TOKENS // int(rows.lengths[order[0]])  # the longest that is left
                chosen, order = np.split(order, [max(1, min(batch_size, fit))])
                embeddings = self.embed(*pack_rows(rows.take(chosen), self.device))
                out[chosen] = (normalize(embeddings) if normalized else embeddings).cpu().numpy()
                bar.update(len(chosen))
        return out


@contextmanager
def mode(encoder: nn.Module, *, training: bool) -> Iterator[None]:
    """Compute with dropout (training) or without it for as long as the block lasts, however it ends."""
    before = encoder.training
    encoder.train(training)
    try:
        yield
    finally:
        encoder.train(before)


def dropout_settings(config: PretrainedConfig) -> dict[str, float]:
    """Return the dropout probabilities that act inside the encoder, under the names that its family uses."""
    heads = ("classif", "pooler", "summary", "qa_", "head")
    return {
        name: float(value)
        for name, value in config.to_dict().items()
        if ("dropout" in name or name.endswith("pdrop"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)  # ESM's token_dropout says whether, not how often
        and not any(word in name for word in heads)
    }


def max_positions(model: PreTrainedModel) -> int:
    """Return the largest number of tokens that a sentence can have in a model; `UNLIMITED` where it has no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return UNLIMITED
    return int(positions) - first_position(model)


def first_position(model: PreTrainedModel) -> int:
    """Return the position of a sentence's first token: RoBERTa and its kin count from after the padding index."""
    padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def input_embeddings(model: PreTrainedModel) -> nn.Embedding | None:
    """Return the table of a model's word embeddings, or None where it has none (CANINE hashes characters)."""
    try:
        found = model.get_input_embeddings()
    except (RuntimeError, AttributeError):  # transformers' errors for a model without such a table
        return None
    return found if isinstance(found, nn.Embedding) else None

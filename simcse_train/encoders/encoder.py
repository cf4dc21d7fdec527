"""A sentence encoder: a Hugging Face model, its tokenizer, its pooling, and in training a projection head.

Batches are packed (see `packing`), so no padding token is multiplied, and where `[CLS]` is the embedding the last layer
computes nothing else. A model that does not give the same states packed as padded gets padded batches; `probing` decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from simcse_train.encoders.dropout import replace_dropout
from simcse_train.encoders.packing import pack, packing
from simcse_train.encoders.pooling import pool
from simcse_train.encoders.tokenizer import SentenceTokenizer


class Encoder(nn.Module):
    """Model, tokenizer and pooling; `packed` and `first_only` say which of the faster ways of computing are in use."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: SentenceTokenizer,
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
        self.packed = False
        self.first_only = False
        replace_dropout(model)
        self.eval()

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
        """The largest number of tokens that a sentence can have."""
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
        return pool(self.states(tokens, lengths).float(), lengths, self.pooling)

    def states(self, tokens: Tensor, lengths: Tensor, *, first_only: bool = False) -> Tensor:
        """Return the last layer's states (total, hidden) of packed tokens (total,).

        With `first_only`, return those of each sentence's first token alone (rows, hidden).
        """
        if not self.packed:
            return self.padded_states(tokens, lengths)
        starts = lengths.cumsum(0) - lengths
        places = torch.arange(len(tokens), device=tokens.device) - starts.repeat_interleave(lengths)
        output = self.model(
            input_ids=tokens[None],
            position_ids=(places + first_position(self.model))[None],
            packing=packing(lengths, first_only=first_only),
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    def padded_states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return what `states` returns, computed on a padded batch with the model's own attention."""
        rows = tokens.split(lengths.tolist())
        input_ids = pad_sequence(list(rows), batch_first=True, padding_value=self.tokenizer.padding_id)
        mask = torch.arange(input_ids.shape[1], device=tokens.device) < lengths[:, None]  # (rows, longest)
        output = self.model(input_ids=input_ids, attention_mask=mask.long())
        states: Tensor = output.last_hidden_state[mask]
        return states

    @torch.inference_mode()
    def encode(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int = 64,
        normalized: bool = True,
        show_progress: bool = False,
    ) -> NDArray[np.float32]:
        """Return one float32 row per sentence (sentences, hidden), without dropout and without the head."""
        training = self.training
        self.eval()
        out = np.zeros((len(sentences), self.hidden_size), dtype=np.float32)
        # Sentences of like length share a batch, so that a padded batch has little padding.
        order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
        batches = range(0, len(order), batch_size)
        for start in tqdm(batches, desc="encode", unit="batch", disable=not show_progress):
            chosen = order[start : start + batch_size]
            rows = self.tokenizer.tokenize([sentences[i] for i in chosen], self.max_length)
            embeddings = self.embed(*pack(rows, self.device))
            out[chosen] = (normalize(embeddings) if normalized else embeddings).cpu().numpy()
        self.train(training)
        return out


def dropout_settings(config: PretrainedConfig) -> dict[str, float]:
    """Return the dropout probabilities that act inside the encoder, under the names that its family uses."""
    heads = ("classif", "pooler", "summary", "qa_", "head")
    return {
        name: float(value)
        for name, value in config.to_dict().items()
        if "dropout" in name and isinstance(value, int | float) and not any(word in name for word in heads)
    }


def max_positions(model: PreTrainedModel) -> int:
    """Return the largest number of tokens that a sentence can have in a model."""
    positions = getattr(model.config, "max_position_embeddings", None) or 512
    return int(positions) - first_position(model)


def first_position(model: PreTrainedModel) -> int:
    """Return the position of a sentence's first token: RoBERTa and its kin count from after the padding index."""
    padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1

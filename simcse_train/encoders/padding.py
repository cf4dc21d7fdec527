"""Padded batches, for models whose attention cannot be packed.

Rows of like length share a padded batch, so that little padding is computed. A model whose states depend on how much
padding stands beside a sentence is given only rows of equal length, without any padding.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from simcse_train.encoders.packing import moved

GROUPS = 4  # more groups save little more padding, and small groups use a processor badly
WORTHWHILE = 0.1  # a batch with a smaller share of padding is not divided


def padded_states(
    model: PreTrainedModel, tokens: Tensor, lengths: Tensor, *, padding_id: int, types: bool, equal_lengths: bool
) -> Tensor:
    """Return the last layer's states (total, hidden) of packed tokens (total,) with lengths (rows,), by padded batches.

    The lengths are on the CPU.
    `types` says whether token types are given, all 0. Raises `TypeError` if the model has no state for each token.
    """
    rows = tokens.split(lengths.tolist())
    groups = (by_equal_length if equal_lengths else by_like_length)(lengths)
    found = [_states(model, [rows[i] for i in group.tolist()], padding_id, types) for group in groups]
    if len(groups) == 1:
        return found[0]
    # From the order of the groups to the order of the packed tokens.
    order = torch.cat(groups)
    sources = lengths[order].cumsum(0) - lengths[order]  # where each row of `order` starts in the concatenated groups
    start = torch.empty_like(sources).scatter_(0, order, sources)  # the same for each row of the batch
    ends = lengths.cumsum(0)
    index = torch.arange(int(ends[-1])) + (start - (ends - lengths)).repeat_interleave(lengths)
    return torch.cat(found)[moved(index, tokens.device)]


def by_equal_length(lengths: Tensor) -> list[Tensor]:
    """Return the indices of rows in groups of equal length; lengths: (rows,), on the CPU."""
    order = lengths.argsort(stable=True)
    counts = lengths[order].unique_consecutive(return_counts=True)[1]
    return list(order.split(counts.tolist()))


def by_like_length(lengths: Tensor) -> list[Tensor]:
    """Return the indices of rows in at most `GROUPS` groups of like length; one where little would be saved."""
    rows, longest = len(lengths), int(lengths.max())
    whole = torch.arange(rows)
    if rows < 2 * GROUPS or int(lengths.sum()) > (1 - WORTHWHILE) * rows * longest:
        return [whole]
    return list(lengths.argsort(stable=True).tensor_split(GROUPS))


def _states(model: PreTrainedModel, rows: list[Tensor], padding_id: int, types: bool) -> Tensor:
    """Return the states (tokens of the rows, hidden) of one padded batch."""
    input_ids = pad_sequence(rows, batch_first=True, padding_value=padding_id)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(input_ids.shape[1]) < lengths[:, None]  # (rows, longest)
    inputs = {"input_ids": input_ids, "attention_mask": moved(mask.long(), input_ids.device)}
    if types:
        inputs["token_type_ids"] = torch.zeros_like(input_ids)
    accepted = accepted_inputs(model)
    output = model(**{name: value for name, value in inputs.items() if name in accepted})
    states: Tensor | None = getattr(output, "last_hidden_state", None)
    if states is None or states.shape[:2] != mask.shape:
        raise TypeError(f"a model of the type {model.config.model_type} gives no state for each token")
    return states.flatten(0, 1)[moved(mask.flatten().nonzero()[:, 0], states.device)]


def accepted_inputs(model: PreTrainedModel) -> set[str]:
    """Return the names of the arguments that a model's forward pass declares."""
    return set(inspect.signature(model.forward).parameters)

"""DeBERTa v2 and v3: relative position embeddings cut to those that a batch uses.

Each layer projects the embeddings of all relative positions, 512 for v3, and multiplies them with every token, though a
batch of sentences of L tokens refers to 2 L - 1 of them. The states stay the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention


class CutEncoder(DebertaV2Encoder):
    """A DeBERTa v2 or v3 encoder that computes with the relative positions of its batch alone."""

    used: int  # the largest distance of the batch, plus one
    full: int  # the same for which there are embeddings

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the encoder of transformers returns; hidden_states: (rows, longest, hidden)."""
        self.used = min(self.full, hidden_states.shape[-2])  # a bucket of distances is never beyond the distance itself
        for module in self.modules():
            if isinstance(module, DisentangledSelfAttention):
                module.pos_ebd_size = self.used
        return super().forward(hidden_states, *args, **kwargs)  # type: ignore[no-untyped-call]

    def get_rel_embedding(self) -> Tensor:
        """Return the embeddings (2 * used, hidden) of the distances in use, distance 0 in the middle."""
        weight = self.rel_embeddings.weight[self.full - self.used : self.full + self.used]
        return self.LayerNorm(weight) if "layer_norm" in self.norm_rel_ebd else weight


def cut_relative_embeddings(model: PreTrainedModel) -> bool:
    """Make the encoder of a DeBERTa v2 or v3 a `CutEncoder`; return whether the model is one."""
    found = False
    for module in model.modules():
        if type(module) is DebertaV2Encoder and module.relative_attention:
            module.__class__ = CutEncoder
            assert isinstance(module, CutEncoder)
            module.full = module.used = module.rel_embeddings.num_embeddings // 2
            found = True
    return found

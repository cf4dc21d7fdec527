"""Which encoders the kernels compute: where each family keeps the parts of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from simcse_train.encoders.attention import layer_list

# Model types of transformers, MiniLM being a bert. Their layers are those of Vaswani et al. 2017, with the norms last.
BERTS = ("bert", "roberta", "xlm-roberta", "electra")
FAMILIES = (*BERTS, "distilbert")


@dataclass(frozen=True)
class Tables:
    """The parts of the embeddings, and the probability of dropout after their norm."""

    words: nn.Embedding
    positions: nn.Embedding
    token_types: nn.Embedding | None  # every token is of the first type; None where the family has no types
    norm: nn.LayerNorm
    dropout: float
    projection: nn.Linear | None  # where ELECTRA's embeddings are narrower than its layers

    def parameters(self) -> tuple[Tensor, ...]:
        """Return the tables, and weight and bias of the norm and the projection, in the order of the fields."""
        tables = (self.words, self.positions, self.token_types)
        parts = (self.norm, self.projection)
        found = [table.weight for table in tables if table is not None]
        return (*found, *(tensor for part in parts if part is not None for tensor in (part.weight, part.bias)))


@dataclass(frozen=True)
class Layer:
    """The parts of one layer, and the probability of dropout after attention's softmax and the two sub-layers."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attended: nn.Linear  # the output projection of attention
    attended_norm: nn.LayerNorm
    inner: nn.Linear
    outer: nn.Linear
    outer_norm: nn.LayerNorm
    dropout: tuple[float, float, float]
    heads: int

    def parameters(self) -> tuple[Tensor, ...]:
        """Return weight and bias of each part, in the order of the fields."""
        attention = (self.query, self.key, self.value, self.attended, self.attended_norm)
        parts = (*attention, self.inner, self.outer, self.outer_norm)
        return tuple(tensor for part in parts for tensor in (part.weight, part.bias))


def read_layers(model: PreTrainedModel) -> list[Layer]:
    """Return the layers of a model of `FAMILIES`; raises `AttributeError` where a part has another name."""
    layers = layer_list(model)
    if layers is None:
        raise AttributeError("the model has no list of its layers")
    return [_distilbert(layer) if model.config.model_type == "distilbert" else _bert(layer) for layer in layers]


def read_tables(model: PreTrainedModel) -> Tables:
    """Return the embeddings of a model of `FAMILIES`; raises `AttributeError` where a part has another name."""
    embeddings: Any = model.embeddings
    return Tables(
        words=embeddings.word_embeddings,
        positions=embeddings.position_embeddings,
        token_types=None if model.config.model_type == "distilbert" else embeddings.token_type_embeddings,
        norm=embeddings.LayerNorm,
        dropout=embeddings.dropout.p,
        projection=getattr(model, "embeddings_project", None),
    )


def unsupported(model: PreTrainedModel) -> str:
    """Return why the kernels cannot compute a model, as far as its configuration tells; nothing if they can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"the kernels compute {', '.join(FAMILIES)}, not {config.model_type}"
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if activation != "gelu":
        return f"the kernels compute the activation gelu, not {activation}"
    hidden, heads = config.hidden_size, config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or config.hidden_dim
    sizes = [hidden, inner, getattr(config, "embedding_size", hidden)]  # the last one is ELECTRA's
    if any(size % 32 for size in sizes) or hidden % heads or (hidden // heads) % 16:
        listed = ", ".join(str(size) for size in dict.fromkeys(sizes))
        return f"the kernels need sizes of 32 n and heads of 16 n, not {listed} and {hidden / heads:g}"
    return ""


def _bert(layer: Any) -> Layer:
    attention, inner, outer = layer.attention, layer.intermediate, layer.output
    own, after = attention.self, attention.output
    return Layer(
        query=own.query,
        key=own.key,
        value=own.value,
        attended=after.dense,
        attended_norm=after.LayerNorm,
        inner=inner.dense,
        outer=outer.dense,
        outer_norm=outer.LayerNorm,
        dropout=(own.dropout.p, after.dropout.p, outer.dropout.p),
        heads=own.num_attention_heads,
    )


def _distilbert(layer: Any) -> Layer:
    attention, feed_forward = layer.attention, layer.ffn
    return Layer(
        query=attention.q_lin,
        key=attention.k_lin,
        value=attention.v_lin,
        attended=attention.out_lin,
        attended_norm=layer.sa_layer_norm,
        inner=feed_forward.lin1,
        outer=feed_forward.lin2,
        outer_norm=layer.output_layer_norm,
        dropout=(attention.dropout.p, 0.0, feed_forward.dropout.p),
        heads=attention.n_heads,
    )

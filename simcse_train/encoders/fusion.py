"""Layers fused by torch.compile, on a GPU: what stands between two products becomes few kernels.

Attention stays as it is: it has kernels of its own, and what it is told of the sentences changes with every batch.
"""

from __future__ import annotations

import warnings

import torch
from transformers import AttentionInterface, PreTrainedModel

from simcse_train.encoders.attention import layer_list, packed_attention

NAME = "torch.compile"


def fuse_layers(model: PreTrainedModel) -> None:
    """Let torch.compile compute the layers of a model, for any number of tokens.

    They are compiled when they are called next. A copy of the model is not compiled. Raises
    `AttributeError` where the model has no list of its layers.
    """
    layers = layer_list(model)
    if layers is None:
        raise AttributeError("the model has no list of its layers")
    # The compiler reads the .grad of every tensor that it is given, of which torch warns.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    AttentionInterface.register("packed", torch.compiler.disable(packed_attention))
    for layer in layers:
        layer.compile(dynamic=True)


def separate_layers(model: PreTrainedModel) -> None:
    """Let the layers compute as they did before `fuse_layers`, also where that was not called.

    Attention stays hidden from the compiler, which changes nothing without it.
    """
    for layer in layer_list(model) or ():
        layer._compiled_call_impl = None  # torch has no public way back

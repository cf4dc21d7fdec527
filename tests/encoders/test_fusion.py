"""Layers computed by torch.compile; its compiler for processors stands in for that for GPUs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from simcse_train.config import make_config
from simcse_train.encoders.acceptance import use_fused_layers
from simcse_train.encoders.attention import layer_list
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.fusion import separate_layers
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.packing import pack
from simcse_train.errors import InputError
from simcse_train.training.computation import choose_kernels
from simcse_train.training.start import train


def layers_of(encoder: Encoder) -> nn.ModuleList:
    layers = layer_list(encoder.model)
    assert layers is not None
    return layers


def are_fused(encoder: Encoder) -> bool:
    return all(layer._compiled_call_impl is not None for layer in layers_of(encoder))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_fused_layers_compute_the_same_for_any_number_of_tokens_and_are_compiled_once(tiny: Path, pooling: str) -> None:
    torch._dynamo.reset()
    encoder = load_encoder(tiny, pooling=pooling)
    # Also as many sentences as a head or a state has values, which must not count as the same size.
    batches = [pack([[2, 5, 6, 3]] * rows + [[2, 7, 3]]) for rows in (1, 7, 13, 15, 31, 63)]
    expected = [encoder.embed(*batch) for batch in batches]
    counters.clear()
    assert use_fused_layers(encoder, "fp32") == ""
    assert are_fused(encoder)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    assert any("packed_attention" in reason for reason in counters["graph_break"])  # it is left out
    for batch, right in zip(batches, expected, strict=True):
        assert torch.allclose(encoder.embed(*batch), right, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == compiled
    separate_layers(encoder.model)
    assert not are_fused(encoder)
    assert torch.equal(encoder.embed(*batches[1]), expected[1])


def test_a_copy_of_a_fused_encoder_computes_with_its_own_weights(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    assert use_fused_layers(encoder, "fp32", accepted=True) == ""  # the momentum encoder of a queue is such a copy
    copied = copy.deepcopy(encoder, {id(encoder.tokenizer): encoder.tokenizer})
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    batch = pack([[2, 5, 6, 3]])
    assert not torch.allclose(copied.embed(*batch), encoder.embed(*batch), atol=0.01)
    separate_layers(encoder.model)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda *_, **__: 1 / 0, "the probe failed (division by zero)"),
        (lambda call, *args, **kwargs: 1.1 * call(*args, **kwargs), "a probe found other states than without them"),
    ],
)
def test_layers_that_the_compiler_gets_wrong_are_not_used(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, forward: Any, reason: str
) -> None:
    encoder = load_encoder(tiny)

    def wrong(layer: nn.Module, **_: Any) -> None:
        def computed(*args: Any, **kwargs: Any) -> Tensor:
            return forward(layer._call_impl, *args, **kwargs)  # type: ignore[no-any-return]

        layer._compiled_call_impl = computed

    monkeypatch.setattr(nn.Module, "compile", wrong)
    assert use_fused_layers(encoder, "fp32") == reason
    assert not are_fused(encoder)
    assert use_fused_layers(load_encoder(tiny, packed=False), "fp32") == "this encoder's batches are not packed"


def test_an_encoder_that_was_fused_before_is_not_where_the_settings_do_not_say_so(tiny: Path) -> None:
    encoder = load_encoder(tiny)
    assert use_fused_layers(encoder, "fp32", accepted=True) == ""
    encoder.flash = nn.functional.scaled_dot_product_attention  # any function
    assert choose_kernels(encoder, make_config({"data": "text.txt", "kernels": "off"})) == "off"
    assert not are_fused(encoder)
    assert encoder.flash is None


def test_without_a_gpu_the_option_is_refused(text: Path, tiny: Path, tmp_path: Path) -> None:
    settings = {"data": str(text), "model": str(tiny), "output": str(tmp_path / "run"), "kernels": "compile"}
    with pytest.raises(InputError, match="--kernels compile is for a CUDA GPU, not cpu"):
        train(make_config(settings | {"device": "cpu"}))
    assert not (tmp_path / "run").exists()

"""Encoders computed by kernels: the states and gradients of the present computation, in every way it is used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simcse_train.data.batches import two_views
from simcse_train.encoders.acceptance import use_kernels
from simcse_train.encoders.compiled import stack
from simcse_train.encoders.compiled.buffers import Gradients
from simcse_train.encoders.compiled.stack import padded_tokens
from simcse_train.encoders.dropout import Dropout, noise_of_share
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.head import projection_head
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.packing import pack
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Rows
from simcse_train.randomness import seeded
from simcse_train.training.step import forward_backward, share_of
from tests.encoders.compiled.conftest import make_larger_family

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra")
SENTENCES = ["a man", "the cat runs in the park", "a dog", "a woman sings on the hill", "the big red dog , the cat ."]


@contextmanager
def without_dropout(encoder: Encoder) -> Iterator[None]:
    """Let an encoder be in training mode and drop nothing."""
    layered = encoder.stack
    assert layered is not None
    tables, layers = layered.tables, layered.layers
    layered.tables = replace(tables, dropout=0.0)
    layered.layers = [replace(layer, dropout=(0.0, 0.0, 0.0)) for layer in layers]
    modules = [module for module in encoder.modules() if isinstance(module, Dropout)]
    before = [module.p for module in modules]
    for module in modules:
        module.p = 0.0
    yield
    layered.tables, layered.layers = tables, layers
    for module, p in zip(modules, before, strict=True):
        module.p = p


def gradients(encoder: Encoder, batch: tuple[Tensor, Tensor], *, kernels: bool) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    encoder.train(kernels)  # the present computation has no dropout in evaluation mode
    embeddings = encoder(*batch)
    (embeddings * torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)).sum().backward()
    return embeddings.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_those_of_the_present_computation(family: str, pooling: str, tmp_path: Path) -> None:
    encoder = load_encoder(make_larger_family(family, tmp_path), pooling=pooling)
    assert use_kernels(encoder, "fp32") == ""
    batch = pack(encoder.tokenizer.tokenize(SENTENCES, 40))
    with without_dropout(encoder):
        found, found_gradients = gradients(encoder, batch, kernels=True)
        expected, expected_gradients = gradients(encoder, batch, kernels=False)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.equal(found, expected)  # or the kernels were not used
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert torch.allclose(found_gradients[name], gradient, atol=1e-5 * float(gradient.norm()) + 1e-5), name


def test_kernels_are_used_in_training_alone_and_with_dropout(small: Path) -> None:
    encoder = load_encoder(small)
    batch = pack(encoder.tokenizer.tokenize(SENTENCES, 40))
    before = encoder.embed(*batch)
    assert use_kernels(encoder, "fp32") == ""
    assert torch.equal(encoder.embed(*batch), before)
    encoder.train()
    with seeded(1):
        first, second = encoder.embed(*batch), encoder.embed(*batch)
    with seeded(1):
        assert torch.equal(encoder.embed(*batch), first)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_micro_batches_give_the_gradients_of_the_undivided_loss(small: Path, first_only: bool, precision: str) -> None:
    encoder = load_encoder(small, pooling="cls" if first_only else "mean").train()
    encoder.head = projection_head(encoder.hidden_size, seed=0)
    assert use_kernels(encoder, precision) == ""
    rows = encoder.tokenizer.tokenize(SENTENCES, 16)
    batch = two_views(rows, np.arange(len(rows)))
    autocast = partial(torch.autocast, "cpu", torch.bfloat16) if precision == "bf16" else nullcontext
    known, noise = Rows(batch.views, batch.texts), partial(seeded, 3, 7)
    loss = forward_backward(encoder, NTXent(0.2), batch.parts(2), known, noise, autocast, lambda loss: loss)
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    parts = []
    for part, (tokens, lengths) in enumerate(batch.parts(2)):  # all of them alive at once
        with seeded(3, 7, part), autocast():
            parts.append(encoder(tokens, lengths))
    expected = NTXent(0.2).loss(torch.cat(parts), known)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, atol=1e-5 * float(parameter.grad.norm()) + 1e-7), name


def test_a_weight_changed_between_the_passes_and_a_second_backward_pass_are_refused(small: Path) -> None:
    encoder = load_encoder(small).train()
    assert use_kernels(encoder, "fp32") == ""
    batch = pack(encoder.tokenizer.tokenize(SENTENCES, 40))
    states = encoder.states(*batch)
    states.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        states.sum().backward()
    states = encoder.states(*batch)
    model: Any = encoder.model
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


def test_a_token_and_a_position_without_an_embedding_are_refused(small: Path) -> None:
    encoder = load_encoder(small).train()
    assert use_kernels(encoder, "fp32") == ""
    tables = encoder.stack.tables if encoder.stack is not None else None
    assert tables is not None
    for wrong in (-1, tables.words.num_embeddings):
        with pytest.raises(IndexError, match=f"{wrong}.* embeddings"):
            encoder.states(torch.tensor([2, wrong, 3]), torch.tensor([3]))
    longer = tables.positions.num_embeddings + 1
    with pytest.raises(IndexError, match=f"{longer - 1} of {longer - 1} embeddings"):
        encoder.states(torch.full((longer,), 5), torch.tensor([longer]))


def test_memory_of_inference_mode_can_be_trained_in(small: Path) -> None:
    encoder = load_encoder(small).train()
    assert use_kernels(encoder, "fp32") == ""
    batch = pack(encoder.tokenizer.tokenize(SENTENCES, 40))
    encoder.stack.pool._free.clear()  # type: ignore[union-attr]
    with torch.inference_mode():
        encoder.states(*batch)
    encoder.states(*batch).sum().backward()


def held(encoder: Encoder) -> list[int]:
    """Return the bytes of each set of buffers that is free."""
    assert encoder.stack is not None
    return [sum(t.numel() * t.element_size() for t in b._held.values()) for b in encoder.stack.pool._free]


def test_memory_is_used_again_and_is_linear_in_the_tokens(small: Path) -> None:
    encoder = load_encoder(small).train()
    assert use_kernels(encoder, "fp32") == ""
    encoder.stack.pool._free.clear()  # type: ignore[union-attr]
    token = encoder.tokenizer.tokenize(["a"], 3)[0][1]
    sizes = {}
    for length in (8, 32, 64):
        tokens, lengths = pack([[token] * length] * (64 // length))
        encoder.stack.pool._free.clear()  # type: ignore[union-attr]
        for _ in range(3):
            encoder.states(tokens, lengths).sum().backward()
            with torch.no_grad():
                encoder.states(tokens, lengths)
        assert len(held(encoder)) == 1
        sizes[length] = held(encoder)[0]
    assert sizes[64] < 1.5 * sizes[8]
    first, second = encoder.states(tokens, lengths), encoder.states(tokens, lengths)  # both alive
    assert held(encoder) == []
    del first, second
    assert len(held(encoder)) == 2


@pytest.mark.parametrize("first_only", [False, True])
def test_rows_after_the_last_token_change_nothing(
    tmp_path: Path, first_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(make_larger_family("bert", tmp_path), pooling="cls" if first_only else "mean")
    assert use_kernels(encoder, "bf16") == ""
    token = encoder.tokenizer.tokenize(["a"], 3)[0][1]
    large, small = pack([[token] * 40] * 4), pack(encoder.tokenizer.tokenize(SENTENCES * 2 + SENTENCES[-1:], 40))
    assert padded_tokens(len(small[0]), torch.bfloat16) > len(small[0])
    found = []
    with without_dropout(encoder), torch.autocast("cpu", torch.bfloat16):
        for added in (True, False):
            encoder.stack.pool._free.clear()  # type: ignore[union-attr]
            gradients(encoder, large, kernels=True)  # which leaves its own values in the memory
            (buffers,) = encoder.stack.pool._free  # type: ignore[union-attr]
            for memory in buffers._held.values():
                memory.fill_(math.nan)
            if not added:
                monkeypatch.setattr(stack, "padded_tokens", lambda tokens, precision: tokens)
            found.append(gradients(encoder, small, kernels=True))
    (states, given), (expected, expected_gradients) = found
    assert torch.allclose(states, expected, atol=2e-2)
    for name, gradient in expected_gradients.items():
        assert (given[name] - gradient).norm() <= 2e-2 * gradient.norm() + 1e-4, name


def test_numbers_of_tokens_are_few_in_bfloat16_and_exact_in_float32() -> None:
    rooms = {tokens: padded_tokens(tokens, torch.bfloat16) for tokens in range(1, 5000)}
    assert all(tokens <= room <= tokens * 17 / 16 + 1 for tokens, room in rooms.items())
    assert len({room for tokens, room in rooms.items() if 2048 < tokens <= 4096}) == 16
    assert padded_tokens(3433, torch.float32) == 3433


def test_a_gradient_stays_as_it_is_in_later_steps(small: Path) -> None:
    encoder = load_encoder(small).train()
    assert use_kernels(encoder, "fp32") == ""
    batch = pack(encoder.tokenizer.tokenize(SENTENCES, 40))
    weight = dict(encoder.model.named_parameters())["encoder.layer.0.output.dense.weight"]
    encoder(*batch).sum().backward()
    kept = weight.grad
    assert kept is not None
    values = kept.clone()
    encoder.zero_grad()
    encoder(*batch).square().sum().backward()
    assert weight.grad is not None
    assert torch.equal(kept, values)
    assert not torch.equal(kept, weight.grad)


def test_memory_of_a_gradient_is_used_again_when_no_view_of_it_is_left() -> None:
    memory = Gradients()
    gradient = memory.get(4, 8)
    address, part = gradient.data_ptr(), gradient[1:]
    del gradient
    assert memory.get(4, 8).data_ptr() != address
    del part
    assert memory.get(4, 8).data_ptr() == address


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_shares_of_a_batch_have_the_noise_of_the_batch(pooling: str, tmp_path: Path) -> None:
    encoder = load_encoder(make_larger_family("bert", tmp_path), pooling=pooling).train()
    assert use_kernels(encoder, "fp32") == ""
    tokens, lengths = pack(encoder.tokenizer.tokenize(SENTENCES, 40))
    with seeded(3):
        whole = encoder(tokens, lengths)
    weights = torch.linspace(-1, 1, whole.numel()).view_as(whole)
    (whole * weights).sum().backward()
    expected = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    found = []
    for rows in (slice(0, 2), slice(2, 5)):
        share = share_of(lengths, rows)
        with seeded(3), noise_of_share(share):
            found.append(encoder(tokens[share.tokens], lengths[rows]))
        (found[-1] * weights[rows]).sum().backward()
    assert torch.allclose(torch.cat(found), whole, atol=1e-5)
    for name, p in encoder.named_parameters():
        if name in expected:
            assert p.grad is not None
            assert torch.allclose(p.grad, expected[name], atol=1e-4 * float(expected[name].norm()) + 1e-6), name

"""Decide whether the kernels compute an encoder's layers in training, and say why not.

They do for a known family on a CPU, if they compile and give the states and gradients of the present computation:
exactly the same in float32, up to rounding; in bfloat16, no farther from float32 than that computation is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from simcse_train.encoders.compiled.build import CannotCompile
from simcse_train.encoders.compiled.families import embed_tokens, read_layers, unsupported
from simcse_train.encoders.compiled.library import library
from simcse_train.encoders.compiled.stack import Stack
from simcse_train.encoders.encoder import Encoder, first_position
from simcse_train.encoders.packing import pack, positions
from simcse_train.encoders.probing import LONG, SHORT
from simcse_train.randomness import seeded

LENGTH = 150  # tokens of the probe's longest sentence: more than two of attention's blocks of queries
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}  # of a norm, relative
AS_FAR = 2.0  # times the distance of the present computation from float32


def obstacle(encoder: Encoder, precision: str) -> str:
    """Return why the kernels cannot compute an encoder's layers, as far as that is known without trying; else ""."""
    if encoder.device.type != "cpu" or precision not in PRECISIONS:
        return "the kernels are for a CPU in fp32 or bf16"
    if not encoder.packed:
        return "this encoder's batches are not packed"
    return unsupported(encoder.model)


def use_kernels(encoder: Encoder, precision: str, accepted: str = "") -> str:
    """Let the kernels compute an encoder's layers in training; return why not, or nothing if they do.

    `accepted` is the name of the kernels with which the run began: these are not tried again. The probe depends on the
    weights, and a resumed run whose weights fail it would no longer end with the bits of an undisturbed one.
    """
    encoder.stack = None
    if reason := obstacle(encoder, precision):
        return reason
    try:
        stack = Stack(read_layers(encoder.model))
        found = "" if library().name == accepted else _difference(encoder, stack, PRECISIONS[precision])
    except CannotCompile as error:
        return str(error)
    except Exception as error:  # whatever a model raises whose parts are not those of its family
        return f"the probe failed ({' '.join(str(error).split())[:200]})"
    if not found:
        encoder.stack = stack
    return found


def _difference(encoder: Encoder, stack: Stack, precision: torch.dtype) -> str:
    """Return in what the kernels differ from the present computation, without dropout; nothing where they do not."""
    length = min(LENGTH, encoder.max_positions)
    batch = pack(encoder.tokenizer.tokenize([*SHORT, LONG * 4, LONG], length))
    places = positions(batch[1], len(batch[0])) + first_position(encoder.model)
    training = encoder.training
    encoder.eval()
    try:
        for first_only in {False, encoder.first_only}:

            def present(first_only: bool = first_only) -> Tensor:
                return encoder.states(*batch, first_only=first_only).float()

            def kernels(first_only: bool = first_only) -> Tensor:
                states = embed_tokens(encoder.model, batch[0], places)
                return stack(states, batch[1], first_only=first_only, training=False)

            expected, usual, found = (
                _states_and_gradients(encoder, stack, compute, used)
                for compute, used in ((present, torch.float32), (present, precision), (kernels, precision))
            )
            most = max(float(tensor.norm()) for tensor in expected[1:])
            for number, (right, now, new) in enumerate(zip(expected, usual, found, strict=True)):
                allowed = AS_FAR * (now - right).norm() + TOLERANCE[precision] * (right.norm() + 0.01 * most)
                if not (new - right).norm() <= allowed:  # also where it is not a number
                    return f"a probe found other {'gradients' if number else 'states'} than without them"
    finally:
        encoder.train(training)
    return ""


def _states_and_gradients(
    encoder: Encoder, stack: Stack, compute: Callable[[], Tensor], precision: torch.dtype
) -> Sequence[Tensor]:
    """Return the states that a computation gives, and the gradients of a random sum of them."""
    parameters = [parameter for layer in stack.layers for parameter in layer.parameters()]
    embeddings: Any = encoder.model.embeddings
    parameters += embeddings.LayerNorm.parameters()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        states = compute()
    with seeded(0):
        total = (states * torch.randn(states.shape)).sum()
    return states.detach(), *torch.autograd.grad(total, [p for p in parameters if p.requires_grad])

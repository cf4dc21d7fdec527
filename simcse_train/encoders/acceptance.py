"""Decide whether faster ways of computing an encoder are used in training, and say why not.

They are if they give the states and gradients of the present computation, which is found by trying: in float32 exactly
the same, up to rounding; in half precision, no farther from float32 than the present computation is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simcse_train.encoders import flash, fusion
from simcse_train.encoders.compiled.build import CannotCompile
from simcse_train.encoders.compiled.families import read_layers, read_tables, unsupported
from simcse_train.encoders.compiled.library import library
from simcse_train.encoders.compiled.stack import Stack
from simcse_train.encoders.encoder import Encoder, first_position, mode
from simcse_train.encoders.packing import pack, positions
from simcse_train.encoders.probing import LONG, SHORT
from simcse_train.errors import one_line
from simcse_train.randomness import seeded

LENGTH = 150  # tokens of the probe's longest sentence: more than two of attention's blocks of queries
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.02}  # of a norm, relative
AS_FAR = 2.0  # times the distance of the present computation from float32

# Tokens (total,), lengths (rows,), and whether only first tokens are wanted -> states (total or rows, hidden).
States = Callable[[Tensor, Tensor, bool], Tensor]


def obstacle(encoder: Encoder, precision: str) -> str:
    """Return why the kernels cannot compute an encoder's layers, as far as that is known without trying; else ""."""
    if encoder.device.type != "cpu" or precision not in ("fp32", "bf16"):
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
        stack = Stack(read_tables(encoder.model), read_layers(encoder.model))
        found = "" if library().name == accepted else _difference_of_kernels(encoder, stack, PRECISIONS[precision])
    except CannotCompile as error:
        return str(error)
    except Exception as error:  # whatever a model raises whose parts are not those of its family
        return f"the probe failed ({one_line(error)})"
    if not found:
        encoder.stack = stack
    return found


def use_flash(encoder: Encoder, precision: str, accepted: str = "") -> str:
    """Let flash-attention compute an encoder's attention on a GPU; return why not, or nothing if it does.

    `accepted` is the name of the library with which the run began; see `use_kernels`.
    """
    encoder.flash = None
    if not encoder.packed:
        return "this encoder's batches are not packed"
    if precision == "fp32":
        return f"{flash.LIBRARY} computes in bf16 and fp16 alone"
    found = flash.installed()
    if isinstance(found, str):
        return found
    name, kernel = found

    def with_flash(tokens: Tensor, lengths: Tensor, first_only: bool) -> Tensor:
        encoder.flash = kernel
        try:
            return encoder.states(tokens, lengths, first_only=first_only)
        finally:
            encoder.flash = None

    if name != accepted and (reason := _objection(encoder, with_flash, precision)):
        return reason
    encoder.flash = kernel
    return ""


def use_fused_layers(encoder: Encoder, precision: str, accepted: bool = False) -> str:
    """Let torch.compile compute an encoder's layers; return why not, or nothing if it does.

    `accepted` says whether the run began so; see `use_kernels`. Attention must have been chosen before.
    """

    def with_fusion(tokens: Tensor, lengths: Tensor, first_only: bool) -> Tensor:
        fusion.fuse_layers(encoder.model)
        try:
            return encoder.states(tokens, lengths, first_only=first_only)
        finally:
            fusion.separate_layers(encoder.model)

    fusion.separate_layers(encoder.model)
    if not encoder.packed:
        return "this encoder's batches are not packed"
    if not accepted and (reason := _objection(encoder, with_fusion, precision)):
        return reason
    fusion.fuse_layers(encoder.model)
    return ""


def _objection(encoder: Encoder, other: States, precision: str) -> str:
    """Return what speaks against another computation of a whole encoder, nothing where it may be used."""
    try:
        return difference(encoder, _present(encoder), other, list(encoder.model.parameters()), PRECISIONS[precision])
    except Exception as error:  # whatever a library raises for this GPU, these heads or this model
        return f"the probe failed ({one_line(error)})"


def _difference_of_kernels(encoder: Encoder, stack: Stack, precision: torch.dtype) -> str:
    def kernels(tokens: Tensor, lengths: Tensor, first_only: bool) -> Tensor:
        places = positions(lengths, len(tokens)) + first_position(encoder.model)
        return stack(tokens, places, lengths, first_only=first_only, training=False)

    # The gradient of the words would cost a matrix of the size of the vocabulary; it comes from the same sums.
    return difference(encoder, _present(encoder), kernels, stack.parameters()[1:], precision)


def _present(encoder: Encoder) -> States:
    return lambda tokens, lengths, first_only: encoder.states(tokens, lengths, first_only=first_only)


def difference(
    encoder: Encoder, present: States, other: States, parameters: Sequence[Tensor], precision: torch.dtype
) -> str:
    """Return in what another computation differs from the present one, without dropout; nothing where it does not.

    `parameters` are those whose gradients are compared. Both compute in a precision, the present one also in float32.
    """
    length = min(LENGTH, encoder.max_positions)
    batch = pack(encoder.tokenizer.tokenize([*SHORT, LONG * 4, LONG], length), encoder.device)
    with mode(encoder, training=False):
        for first_only in {False, encoder.first_only}:
            expected, usual, found = (
                _states_and_gradients(states, (*batch, first_only), parameters, used)
                for states, used in ((present, torch.float32), (present, precision), (other, precision))
            )
            most = max(float(tensor.norm()) for tensor in expected[1:])
            for number, (right, now, new) in enumerate(zip(expected, usual, found, strict=True)):
                allowed = AS_FAR * (now - right).norm() + TOLERANCE[precision] * (right.norm() + 0.01 * most)
                if not (new - right).norm() <= allowed:  # also where it is not a number
                    return f"a probe found other {'gradients' if number else 'states'} than without them"
    return ""


def _states_and_gradients(
    states: States, batch: tuple[Tensor, Tensor, bool], parameters: Sequence[Tensor], precision: torch.dtype
) -> Sequence[Tensor]:
    """Return the states that a computation gives, and the gradients of a random sum of them, 0 where there are none."""
    half = precision != torch.float32
    with torch.enable_grad(), torch.autocast(batch[0].device.type, precision if half else torch.bfloat16, enabled=half):
        found = states(*batch).float()
    with seeded(0):
        total = (found * torch.randn(found.shape).to(found.device)).sum()
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return found.detach(), *torch.autograd.grad(total, trained, allow_unused=True, materialize_grads=True)

"""Who is compared, and what all of them have in common.

Each contender is one way to train. The rows of sentence-transformers add one switch after another, so that the table
shows what each switch gains. Nothing here trains; see `ours` and `peer`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec

from simcse_train.errors import InputError

PEER, OURS = "sentence-transformers", "simcse-train"
WARMUP = 20  # steps that are not timed: until then memory is still taken from the system


@dataclass(frozen=True)
class Contender:
    """One way to train, and the switches that it uses."""

    name: str
    trainer: str  # PEER or OURS
    precision: str = "fp32"
    sorted: bool = False  # batches of similar length
    one_pass: bool = False  # both views in one forward pass
    workers: int = 0  # processes that tokenise and collate while a step runs
    compiled: bool = False  # torch.compile
    flash: bool = False  # flash attention, to which sentence-transformers gives batches without padding
    packed: bool = False  # this program's batches without padding
    kernels: bool = False  # this program's compiled kernels, on a GPU those of flash attention


@dataclass(frozen=True)
class Job:
    """What all contenders have in common in a round."""

    model: str
    text: str
    steps: int
    batch_size: int
    max_length: int
    device: str
    threads: int
    seed: int = 0
    warmup: int = WARMUP


def contenders(precision: str, device: str, cores: int) -> list[Contender]:
    """Return sentence-transformers, if it is installed, with one more switch in each row, and this program."""
    found: list[Contender] = []
    if find_spec("sentence_transformers"):
        found.append(Contender("peer", PEER))
        if precision != "fp32":
            found.append(replace(found[-1], name="peer-half", precision=precision))
        found.append(replace(found[-1], name="peer-sorted", sorted=True))
        found.append(replace(found[-1], name="peer-one-pass", one_pass=True))
        found.append(replace(found[-1], name="peer-workers", workers=max(1, min(8, cores // 2))))
        # On a CPU torch.compile gained nothing and took a minute to compile; --contenders peer-compiled measures it.
        found.append(replace(found[-1], name="peer-compiled", compiled=True))
        if device == "cuda" and find_spec("flash_attn"):
            # Its batches have no padding, so sorting gains nothing, and it cannot put both views of a batch together.
            plain = replace(found[-1], compiled=False, sorted=False, one_pass=False)
            found.append(replace(plain, name="peer-flash", flash=True))
    found.append(Contender("padded", OURS, precision, one_pass=True))
    found.append(replace(found[-1], name="packed", packed=True))
    if device == "cpu" or find_spec("flash_attn"):  # whose kernels are used on a GPU
        found.append(replace(found[-1], name="kernels", kernels=True))
    if device == "cuda":
        found.append(replace(found[-1], name="compiled", kernels=True, compiled=True))
    return found


def chosen_contenders(names: str | None, precision: str, device: str) -> list[Contender]:
    """Return the contenders with these comma-separated names; raises `InputError` if a name is unknown."""
    known = {contender.name: contender for contender in contenders(precision, device, os.cpu_count() or 1)}
    if names is None:
        return [contender for contender in known.values() if device == "cuda" or not contender.compiled]
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"--contenders {unknown[0]}: there is no such row here. The rows are {', '.join(known)}.")
    return [known[name] for name in wanted]


def label(contender: Contender) -> str:
    """Return the name of a row: sentence-transformers as it ships, or the switch that the row adds."""
    added = {
        "peer": "sentence-transformers, as shipped",
        "peer-half": f"  + {contender.precision}",
        "peer-sorted": "  + sorted batches",
        "peer-one-pass": "  + one pass",
        "peer-workers": f"  + {contender.workers} data loader worker" + "s" * (contender.workers > 1),
        "peer-compiled": "  + torch.compile",
        "peer-flash": "  flash attention, unpadded",
        "padded": "simcse-train, padded",
        "packed": "simcse-train, packed",
        "kernels": "simcse-train",
        "compiled": "simcse-train, torch.compile",
    }
    return added[contender.name]

"""Attention by flash-attention's kernels on a GPU, where that library is installed (Dao 2023, arXiv 2307.08691).

They read each sentence where it stands among the packed tokens, so that nothing is padded, and they draw dropout
themselves. The library is used if it gives the states and gradients of the present computation on this machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

import torch
from torch import Tensor

from simcse_train.encoders.packing import Packing
from simcse_train.errors import one_line

LIBRARY = "flash-attn"
HALF = (torch.bfloat16, torch.float16)  # all that the kernels compute in


@functools.cache
def installed() -> tuple[str, Callable[..., Tensor]] | str:
    """Return the library's name with its version, and its function for packed sentences; or why it cannot be used."""
    try:
        return f"{LIBRARY} {version(LIBRARY)}", import_module("flash_attn").flash_attn_varlen_func
    except ImportError as error:  # of which a missing package is one, and one that was built for another torch
        return f"{LIBRARY} is not installed, or not for this torch ({one_line(error)})"


def fits(query: Tensor, packing: Packing, window: int | None, causal: bool) -> bool:
    """Return whether the kernel of a packing can compute this attention.

    A query alone in its row counts as the last token to the kernel, not as the first, which only matters where a token
    does not see all others.
    """
    sees_all = window is None and not causal
    return packing.kernel is not None and query.dtype in HALF and (packing.states is None or sees_all)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    dropout: float,
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> Tensor:
    """Return the attention (1, total, heads, size) within each sentence of a packed row; parameters as in attention.py.

    query: (1, heads, total, size), or with `rows` in place of `total` where first tokens alone ask.
    """
    assert packing.kernel is not None
    rows, longest = packing.padded.shape
    alone = packing.states is not None
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))  # (tokens, heads, size)
    distance = -1 if window is None else window - 1  # the kernel's window holds its end; -1 stands for no window
    attended: Tensor = packing.kernel(
        queries,
        keys,
        values.to(queries.dtype),
        torch.arange(rows + 1, dtype=torch.int32, device=query.device) if alone else packing.bounds,
        packing.bounds,
        1 if alone else longest,
        longest,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=causal,
        window_size=(distance, distance),
    )
    return attended[None]

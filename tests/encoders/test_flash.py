"""Attention by flash-attention's kernels.

The library needs a GPU. A function that does in torch what the library's documentation says stands in for it, installed
as a package of its name where that matters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simcse_train.encoders import flash
from simcse_train.encoders.acceptance import use_flash
from simcse_train.encoders.attention import packed_attention
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.packing import packing

DOCUMENTED = """
import torch


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1),
):
    assert q.dtype == k.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16)
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    found = torch.zeros(q.shape, dtype=torch.float32)
    bounds = [cu.tolist() for cu in (cu_seqlens_q, cu_seqlens_k)]
    parts = [[slice(*pair) for pair in zip(ends[:-1], ends[1:])] for ends in bounds]
    for rows, columns in zip(*parts):
        queries, keys, values = (
            part.float().repeat_interleave(q.shape[1] // part.shape[1], 1).transpose(0, 1)
            for part in (q[rows], k[columns], v[columns])
        )
        assert queries.shape[1] <= max_seqlen_q and keys.shape[1] <= max_seqlen_k
        # Query i stands at the place i + seqlen_k - seqlen_q of the keys, and sees those from there - left to + right.
        place = torch.arange(queries.shape[1])[:, None] + keys.shape[1] - queries.shape[1]
        distance = torch.arange(keys.shape[1]) - place
        seen = distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        left, right = window_size
        seen &= (distance >= -left) if left >= 0 else True
        seen &= (distance <= right) if right >= 0 and not causal else True
        scores = queries @ keys.transpose(1, 2) * (softmax_scale or q.shape[-1] ** -0.5)
        probabilities = torch.nn.functional.dropout(scores.masked_fill(~seen, -torch.inf).softmax(-1), dropout_p)
        found[rows] = (probabilities @ values).transpose(0, 1)
    return found.to(q.dtype)
"""


def documented() -> Callable[..., Tensor]:
    space: dict[str, Callable[..., Tensor]] = {}
    exec(DOCUMENTED, space)
    return space["flash_attn_varlen_func"]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Install a package of the library's name with this code."""

    def write(code: str) -> None:
        (tmp_path / "flash_attn").mkdir()
        (tmp_path / "flash_attn/__init__.py").write_text(code)
        (tmp_path / "flash_attn-9.8.dist-info").mkdir()
        (tmp_path / "flash_attn-9.8.dist-info/METADATA").write_text(
            "Metadata-Version: 2.1\nName: flash_attn\nVersion: 9.8\n"
        )
        flash.installed.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    yield write
    sys.modules.pop("flash_attn", None)
    flash.installed.cache_clear()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 4])
def test_the_kernel_is_given_the_sentences_that_padded_attention_sees(window: int | None, causal: bool) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1, 7, 4])
    query, key, value = (torch.randn(1, heads, 12, 8).bfloat16() for heads in (4, 2, 2))

    def attended(kernel: Callable[..., Tensor] | None, dtype: torch.dtype) -> Tensor:
        layout = packing(lengths, kernel=kernel)
        queries, keys, values = (part.to(dtype) for part in (query, key, value))
        found, _ = packed_attention(
            torch.nn.Module(),
            queries,
            keys,
            values,
            None,
            packing=layout,
            sliding_window=window,
            is_causal=causal,
            scaling=0.7,
        )
        return found

    calls = []

    def counted(*args: object, **kwargs: object) -> Tensor:
        calls.append(args)
        return documented()(*args, **kwargs)

    expected = attended(None, torch.float32)
    assert torch.allclose(attended(counted, torch.bfloat16).float(), expected, atol=0.02)
    assert len(calls) == 1
    assert torch.equal(attended(counted, torch.float32), expected)  # which the library cannot compute
    assert len(calls) == 1


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_library_is_used_where_it_is_installed_and_agrees(
    tiny: Path, pooling: str, install: Callable[[str], None]
) -> None:
    encoder = load_encoder(tiny, pooling=pooling)
    assert use_flash(encoder, "bf16").startswith("flash-attn is not installed")
    install(DOCUMENTED)
    assert use_flash(encoder, "fp32") == "flash-attn computes in bf16 and fp16 alone"
    assert encoder.flash is None
    assert use_flash(encoder, "bf16") == ""
    assert encoder.flash is not None
    assert flash.installed() == ("flash-attn 9.8", encoder.flash)
    assert use_flash(load_encoder(tiny, packed=False), "bf16") == "this encoder's batches are not packed"


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        ("found[rows] = ", "found[rows] = 1.1 * ", "a probe found other states"),
        ("(probabilities @ values)", "(probabilities @ values).detach()", "a probe found other gradients"),
        (
            "    found = torch",
            "    raise RuntimeError('no kernel for this GPU')\n    found = torch",
            "no kernel for this GPU",
        ),
        ("import torch\n", "import torch\nraise ImportError('undefined symbol')\n", "undefined symbol"),
    ],
)
def test_a_library_that_does_not_agree_is_not_used(
    tiny: Path, install: Callable[[str], None], right: str, wrong: str, reason: str
) -> None:
    assert DOCUMENTED.count(right) == 1
    install(DOCUMENTED.replace(right, wrong))
    encoder = load_encoder(tiny)
    assert reason in use_flash(encoder, "bf16")
    assert encoder.flash is None

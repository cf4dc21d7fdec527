"""Each kernel against the same computation in PyTorch, and its gradients against autograd's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from simcse_train.encoders.compiled.add_norm import AddNorm, States
from simcse_train.encoders.compiled.attention import Attention, layout_of
from simcse_train.encoders.compiled.buffers import Buffers
from simcse_train.encoders.compiled.embedding import Embedding
from simcse_train.encoders.compiled.families import Layer, Tables
from simcse_train.encoders.compiled.library import Library
from simcse_train.encoders.compiled.work import Work

few = settings(max_examples=12, deadline=None)
PRECISIONS = st.sampled_from([torch.float32, torch.bfloat16])
PROBABILITIES = st.sampled_from([0.0, 0.1, 0.7])


def close(found: Tensor, expected: Tensor, precision: torch.dtype) -> bool:
    """Return whether the rounding of a precision explains the difference."""
    tolerance = 2e-5 if precision == torch.float32 else 2e-2
    return bool((found.float() - expected).norm() <= tolerance * expected.norm() + 1e-6)


def work_of(kernels: Library, precision: torch.dtype, seed: int | None = 3) -> Work:
    return Work(kernels, Buffers(), precision, seed)


def random(*shape: int, precision: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(precision)


@given(rows=st.integers(1, 40), width=st.integers(1, 12), affine=st.booleans(), p=PROBABILITIES, precision=PRECISIONS)
@few
def test_add_norm(kernels: Library, rows: int, width: int, affine: bool, p: float, precision: torch.dtype) -> None:
    torch.manual_seed(rows)
    width *= 32
    norm = torch.nn.LayerNorm(width, eps=1e-5)
    norm.weight.data, norm.bias.data = random(width), random(width)
    product, bias, x = random(rows, width, precision=precision), random(width), random(rows, width)
    gamma, beta = (random(width), random(width)) if affine else (None, None)
    gradient, more = random(rows, width), random(rows, width, precision=precision)
    out = torch.empty(rows, width)
    with torch.no_grad():
        one = AddNorm(work_of(kernels, precision), (2, 1), norm, p)
        states = one.forward(product, bias, States(x.to(precision), x, gamma, beta), out)
        of_residual, of_product, (of_gamma, of_beta, of_bias) = one.backward(gradient, more)
    kept = (of_product != 0) | (of_residual == 0)
    assert p > 0 or kept.all()
    factor = kept / (1 - round(p * 2**16) / 2**16)

    leaves = [
        t.clone().requires_grad_()
        for t in (product.float(), bias, x if gamma is None or beta is None else x * gamma + beta)
    ]
    expected = layer_norm((leaves[0] + leaves[1]) * factor + leaves[2], (width,), norm.weight, norm.bias, 1e-5)
    expected.backward(gradient + more.float())
    assert close(out, expected.detach(), torch.float32)
    assert torch.equal(states.rounded, out.to(precision))
    assert torch.allclose(states.exact * norm.weight + norm.bias, out, atol=1e-5)
    for found, leaf in zip((of_product, of_bias, of_residual), leaves, strict=True):
        assert leaf.grad is not None
        assert close(found, leaf.grad, precision if found is of_product else torch.float32)
    assert norm.weight.grad is not None and norm.bias.grad is not None
    assert close(of_gamma, norm.weight.grad, torch.float32)
    assert close(of_beta, norm.bias.grad, torch.float32)


@given(
    tokens=st.lists(st.integers(0, 8), min_size=1, max_size=60),
    width=st.integers(1, 6),
    projected=st.sampled_from([0, 64]),
    types=st.booleans(),
    padding=st.sampled_from([None, 0, 3]),
    sparse=st.booleans(),
    p=PROBABILITIES,
    precision=PRECISIONS,
)
@few
def test_embedding(
    kernels: Library,
    tokens: list[int],
    width: int,
    projected: int,
    types: bool,
    padding: int | None,
    sparse: bool,
    p: float,
    precision: torch.dtype,
) -> None:
    torch.manual_seed(len(tokens))
    width *= 32
    count, rows = len(tokens), len(tokens) + 3
    words = torch.nn.Embedding(9, width, padding_idx=padding, sparse=sparse)
    tables = Tables(
        words,
        positions=torch.nn.Embedding(5, width),
        token_types=torch.nn.Embedding(2, width) if types else None,
        norm=torch.nn.LayerNorm(width, eps=1e-5),
        dropout=p,
        projection=torch.nn.Linear(width, projected) if projected else None,
    )
    with torch.no_grad():
        tables.norm.weight.copy_(random(width))
        tables.norm.bias.copy_(random(width))
    index, places = torch.tensor(tokens), torch.arange(count) % 5
    hidden = projected or width
    gradient, more = random(rows, hidden), random(rows, hidden, precision=precision)
    gradient[count:], more[count:] = 0, 0
    with torch.no_grad():
        one = Embedding(work_of(kernels, precision), tables, index, places, rows)
        states = one.forward()
        exact, rounded, before_projection = states.exact.clone(), states.rounded.clone(), one._states(width)[1].clone()
        found = one.backward(gradient, more)
    assert not exact[count:].any() and torch.equal(exact.to(precision), rounded)

    summed = words(index) + tables.positions(places)
    if tables.token_types is not None:
        summed = summed + tables.token_types(torch.zeros_like(index))
    kept = before_projection[:count] != 0
    assert p > 0 or kept.all()
    expected = tables.norm(summed) * kept / (1 - round(p * 2**16) / 2**16)
    if tables.projection is not None:
        expected = tables.projection(expected)
    expected.backward((gradient + more.float())[:count])
    tolerance = precision if projected else torch.float32
    assert close(exact[:count], expected.detach(), tolerance)
    assert len(found) == len(tables.parameters())
    for of_kernel, parameter in zip(found, tables.parameters(), strict=True):
        assert parameter.grad is not None and of_kernel.is_sparse == parameter.grad.is_sparse
        assert close(of_kernel.to_dense(), parameter.grad.to_dense(), tolerance)


def test_rows_are_summed_by_groups(kernels: Library) -> None:
    matrix, out = torch.arange(5 * 32.0).view(5, 32), torch.empty(2, 32)
    order, ends = torch.tensor([4, 0, 1, 3]), torch.tensor([1, 4])
    kernels.run("sum_rows", torch.float32, width=32, groups=2, order=order, ends=ends, matrix=matrix, out=out)
    assert torch.equal(out, torch.stack([matrix[4], matrix[0] + matrix[1] + matrix[3]]))


@given(rows=st.integers(1, 40), width=st.integers(1, 12), precision=PRECISIONS)
@few
def test_gelu(kernels: Library, rows: int, width: int, precision: torch.dtype) -> None:
    torch.manual_seed(rows)
    width *= 32
    product, bias = 3 * random(rows, width, precision=precision), random(width)
    gradient = random(rows, width, precision=precision)
    leaf = (product.float() + bias).requires_grad_()
    expected = gelu(leaf)
    expected.backward(gradient.float())
    out, of_bias, work = torch.empty_like(product), torch.empty(width), work_of(kernels, precision)
    work.run("gelu_forward", rows=rows, width=width, product=product, bias=bias, out=out)
    work.run(
        "gelu_backward",
        rows=rows,
        width=width,
        gradient=gradient,
        derivative=product,
        partial=work.partial(width),
        bias_gradient=of_bias,
    )
    assert leaf.grad is not None
    assert close(out, expected.detach(), precision)
    assert close(gradient, leaf.grad, precision)
    assert close(of_bias, leaf.grad.sum(0), precision)


def test_gelu_of_large_values_is_that_of_pytorch(kernels: Library) -> None:
    values = torch.tensor([0.0, 88.0, -88.0, 1e4, -1e4, 1e30, -1e30, 3.0])
    product, out = values.repeat(4)[None].clone(), torch.empty(1, 32)
    work_of(kernels, torch.float32).run(
        "gelu_forward", rows=1, width=32, product=product, bias=torch.zeros(32), out=out
    )
    assert torch.allclose(out[0], gelu(values).repeat(4), rtol=1e-6, atol=0)
    assert torch.equal(product[0, :7], torch.tensor([0.5, 1, 0, 1, 0, 1, 0]))


@given(rows=st.integers(1, 300), width=st.integers(1, 6), precision=PRECISIONS)
@few
def test_transposed_matrices(kernels: Library, rows: int, width: int, precision: torch.dtype) -> None:
    width *= 32
    matrix, work = random(rows, width, precision=precision), work_of(kernels, precision)
    out, out_float = torch.empty(width, rows, dtype=precision), torch.empty(width, rows)
    work.run("transpose_states", rows=rows, width=width, matrix=matrix, out=out)
    work.run("transpose_to_float", rows=rows, width=width, matrix=matrix, out=out_float)
    assert torch.equal(out, matrix.t())
    assert torch.equal(out_float, matrix.t().float())


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 96), (96, 32)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_weight(
    kernels: Library, outputs: int, inputs: int, precision: torch.dtype, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simcse_train.encoders.compiled.work.has_amx", lambda: amx)
    torch.manual_seed(0)
    gradient, states = random(50, outputs, precision=precision), random(50, inputs, precision=precision)
    found = work_of(kernels, precision).weight_gradient(gradient, states)
    assert found.dtype == torch.float32
    assert close(found, gradient.float().t() @ states.float(), precision)


def test_arguments_of_other_names_than_the_kernels_are_refused(kernels: Library) -> None:
    given = {"rows": 1, "width": 32, "matrix": torch.zeros(1, 32), "out": torch.zeros(32, 1)}
    for wrong in (given | {"height": 1}, {name: value for name, value in given.items() if name != "width"}):
        with pytest.raises(TypeError, match=r"Transpose: .*(height|width)"):
            kernels.run("transpose_states", torch.float32, **wrong)


def attention_of(
    kernels: Library, lengths: Sequence[int], heads: int, size: int, p: float, first: bool, precision: torch.dtype
) -> Attention:
    hidden = heads * size
    query, key, value = (torch.nn.Linear(hidden, hidden) for _ in range(3))
    norm = torch.nn.LayerNorm(hidden)
    layer = Layer(query, key, value, query, norm, query, query, norm, (p, 0.0, 0.0), heads)
    for part in (query, key, value):
        torch.nn.init.normal_(part.weight, std=hidden**-0.5)
        part.weight.data = part.weight.data.to(precision).float()
    weight = torch.cat([query.weight, key.weight, value.weight]).detach().to(precision)
    return Attention(work_of(kernels, precision), 4, layer, weight, layout_of(torch.tensor(lengths), first_only=first))


def factors_of(attention: Attention, states: Tensor) -> list[Tensor]:
    """Return what each probability is multiplied by (heads, queries, tokens), for each sentence."""
    layout, heads = attention.layout, attention.layer.heads
    hidden = states.shape[1]
    size = hidden // heads
    found = []
    for row, length in enumerate(layout.lengths.tolist()):
        probabilities = torch.zeros(heads, int(layout.query_lengths[row]), length)
        for begin in range(0, length, size):  # values that are unit vectors give the probabilities
            values = torch.zeros(len(states), heads, size)
            for place in range(begin, min(length, begin + size)):
                values[int(layout.starts[row]) + place, :, place - begin] = 1
            out = torch.empty(int(layout.query_lengths.sum()), hidden)
            equal = torch.zeros(len(states), hidden)  # queries and keys: all probabilities are 1 / length
            arguments = attention._arguments(attention._memory("unused", *attention._sizes(states)))
            arguments |= {name: torch.zeros(hidden) for name in ("query_bias", "key_bias", "value_bias")}
            arguments |= {"query": equal, "key": equal, "value": values, "query_stride": hidden, "key_stride": hidden}
            attention.work.kernels.run("attention_forward", torch.float32, out=out, **arguments)
            at = int(layout.query_starts[row])
            chosen = out[at : at + int(layout.query_lengths[row])].view(-1, heads, size).transpose(0, 1)
            probabilities[:, :, begin : begin + size] = chosen[:, :, : length - begin]
        found.append(probabilities * length)
    return found


@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    heads=st.integers(1, 3),
    size=st.sampled_from([16, 32, 48, 64]),
    p=PROBABILITIES,
    first=st.booleans(),
    precision=PRECISIONS,
)
@few
def test_attention(
    kernels: Library, lengths: list[int], heads: int, size: int, p: float, first: bool, precision: torch.dtype
) -> None:
    torch.manual_seed(sum(lengths))
    attention = attention_of(kernels, lengths, heads, size, p, first, precision)
    layer, hidden = attention.layer, heads * size
    states = random(sum(lengths), hidden, precision=precision)
    gradient = random(len(lengths) if first else sum(lengths), hidden, precision=precision)
    factors = factors_of(attention, states)
    assert all(((f * (1 - p) - 1).abs() < 1e-3).logical_or(f == 0).all() for f in factors)
    with torch.no_grad():
        found = attention.forward(states).clone()
        of_states, of_projections = attention.backward(states, gradient)

    leaf = states.float().requires_grad_()
    expected = []
    for row, sentence in zip(factors, leaf.split(lengths), strict=True):
        queries = sentence[:1] if first else sentence
        query, key, value = (
            part(given).view(len(given), heads, size).transpose(0, 1)
            for part, given in ((layer.query, queries), (layer.key, sentence), (layer.value, sentence))
        )
        probabilities = (query @ key.transpose(1, 2) * size**-0.5).softmax(-1) * row
        expected.append((probabilities @ value).transpose(0, 1).reshape(-1, hidden))
    torch.cat(expected).backward(gradient.float())
    assert close(found, torch.cat(expected).detach(), precision)
    total = of_states[-1].float()
    if first:
        total = total.index_add(0, attention.layout.starts, of_states[0].float())
    assert leaf.grad is not None
    assert close(total, leaf.grad, precision)
    parts = (layer.query, layer.key, layer.value)
    for part, weight, bias in zip(parts, of_projections[0::2], of_projections[1::2], strict=True):
        assert part.weight.grad is not None and part.bias.grad is not None
        largest = max(1.0, float(gradient.float().norm()))  # the gradient of the key's bias is 0 but for rounding
        assert (weight - part.weight.grad).norm() <= 3e-2 * part.weight.grad.norm() + 1e-5 * largest
        assert (bias - part.bias.grad).norm() <= 3e-2 * part.bias.grad.norm() + 1e-2 * largest


def test_what_is_not_a_number_stays_so_in_its_own_sentence(kernels: Library) -> None:
    for precision in (torch.float32, torch.bfloat16):
        attention = attention_of(kernels, [5, 70, 3], 2, 16, 0.0, False, precision)
        states = random(78, 32, precision=precision)
        states[40, 3] = math.nan
        with torch.no_grad():
            found = attention.forward(states)
        assert found[5:75].isnan().all()
        assert found[:5].isfinite().all() and found[75:].isfinite().all()
        product = random(3, 64, precision=precision)
        product[1, 7] = math.inf
        one = AddNorm(work_of(kernels, precision, None), (0, 1), torch.nn.LayerNorm(64), 0.1)
        with torch.no_grad():
            states = one.forward(product, torch.zeros(64), States(product, random(3, 64))).rounded
        assert states[1].isnan().any() and states[0::2].isfinite().all()


def test_bfloat16_is_rounded_as_pytorch_rounds_it(kernels: Library) -> None:
    torch.manual_seed(0)
    values = torch.randint(-(2**31), 2**31, (3200,)).to(torch.int32).view(torch.float32)
    values[:6] = torch.tensor([math.inf, -math.inf, math.nan, 1.00390625, 1.01171875, 3.4e38])  # two ties, an overflow
    values = torch.where(values.abs() < 1e-37, 1.0, values)  # the processor's instruction rounds denormals to 0
    norm = torch.nn.LayerNorm(3200)
    norm.weight.data, norm.bias.data = torch.zeros(3200), values  # the result is the bias
    one = AddNorm(work_of(kernels, torch.bfloat16, None), (0, 1), norm, 0.0)
    with torch.no_grad():
        found = one.forward(random(1, 3200).bfloat16(), torch.zeros(3200), States(values, random(1, 3200))).rounded[0]
    expected = values.bfloat16()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()], expected[~found.isnan()])

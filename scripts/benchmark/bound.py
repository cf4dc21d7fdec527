"""The bound: how many sentences per second the machine could reach if it only multiplied matrices.

The floating-point operations that the real tokens of the text need, divided by the rate at which the machine multiplies
matrices of the model's own shapes. That rate is measured like a contender, in turn with the others. Embeddings, norms,
dropout, softmax, the loss, the head and the optimiser are not counted, and attention is taken to run at the rate of the
large products, so no program reaches 100 % of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch

Products = Counter[tuple[int, int, int]]  # (m, k, n) of each product, with the number of times it occurs


def products(tokens: int, rows: int, *, layers: int, hidden: int, inner: int, cls: bool) -> Products:
    """Return the products of states and weights in a forward pass.

    tokens: number of real tokens in `rows` sentences. With `cls` the last layer needs keys and values of all tokens,
    but query, output projection and feed-forward of `[CLS]` alone. The products inside attention, of states with
    states, are left out.
    """
    found: Products = Counter()
    for layer in range(layers):
        queries = rows if cls and layer == layers - 1 else tokens
        found[tokens, hidden, hidden] += 2  # key and value
        found[queries, hidden, hidden] += 2  # query and output projection
        found[queries, hidden, inner] += 1
        found[queries, inner, hidden] += 1
    return found


def product_flops(counts: Products) -> int:
    """Return the floating-point operations of these products with their backward passes.

    A product (m, k) @ (k, n) takes 2 m k n, and its backward pass twice that: once for the gradient of each factor.
    """
    return 3 * sum(2 * m * k * n * count for (m, k, n), count in counts.items())


def training_flops(lengths: Sequence[int], *, layers: int, hidden: int, inner: int, cls: bool) -> int:
    """Return the operations of a forward and a backward pass over sentences of these lengths, without padding.

    Counted are the encoder layers of a BERT: the products with weights and the two of attention (scores and weighted
    sum). `cls` as in `products`.
    """
    linear = product_flops(products(sum(lengths), len(lengths), layers=layers, hidden=hidden, inner=inner, cls=cls))
    attention = sum(4 * hidden * (length * length * (layers - cls) + length * cls) for length in lengths)
    return linear + 3 * attention


def multiply(counts: Products, precision: str, device: str, step_done: Callable[[], None]) -> None:
    """Compute the products of a step and of its backward pass again and again; call `step_done` after each time."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    factors: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for (m, k, n), count in counts.items():
        states, weight, gradient = (torch.randn(size, device=device, dtype=dtype) for size in ((m, k), (n, k), (m, n)))
        factors += [(count, states, weight.T), (count, gradient, weight), (count, gradient.T, states)]
    while True:
        for count, left, right in factors:
            for _ in range(count):
                torch.mm(left, right)
        step_done()

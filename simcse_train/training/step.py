"""The gradient of one step, on one process or on many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from simcse_train import distributed
from simcse_train.encoders.dropout import Share, noise_of_share
from simcse_train.encoders.encoder import Encoder, input_embeddings
from simcse_train.objectives.objective import Objective, Rows

# Seeds the dropout noise of a part of the batch, for as long as the block lasts. A second number is the first row of a
# share of the part that has noise of its own.
Noise = Callable[..., AbstractContextManager[None]]


@dataclass(frozen=True)
class Piece:
    """Rows of a part of the batch that one process embeds at once: the whole part, or a share of it."""

    part: int
    rows: slice


def forward_backward(
    encoder: Encoder,
    objective: Objective,
    parts: Sequence[tuple[Tensor, Tensor]],
    rows: Rows,
    noise: Noise,
    autocast: Callable[[], AbstractContextManager[None]],
    scale: Callable[[Tensor], Tensor],
) -> Tensor:
    """Add the gradient of the batch's loss to the parameters' gradients; return the loss, a scalar.

    parts: tokens (total,) and lengths (rows,) of each part of the batch. The loss is computed once, on the embeddings
    of all parts, and each part carries its own slice of the gradient back to the parameters (gradient caching, Gao et
    al. 2021, arXiv 2101.06983, section 3.2). All parts but the last are embedded a second time, under the same noise,
    so that only one of them is in memory with its graph. The sum is the gradient of the undivided batch. `scale`
    multiplies the loss, as float16 needs.

    Several processes are given the same batch. Each embeds its pieces of it, all compute the loss of all embeddings,
    and the gradients, which must be zero before, are summed over the processes.
    """
    pieces = divide([len(lengths) for _, lengths in parts], rows.views, distributed.world_size())
    own = pieces[distributed.rank()]

    def embed(piece: Piece) -> Tensor:  # (rows of the piece, hidden)
        tokens, lengths = parts[piece.part]
        seed: tuple[int, ...] = (piece.part,)
        share = None
        if piece.rows != slice(0, len(lengths)):
            share = share_of(lengths, piece.rows)
            tokens, lengths = tokens[share.tokens], lengths[share.rows]
            if not encoder.packed or tokens.device.type != "cpu":  # where not all noise is drawn by `drop`
                seed, share = (piece.part, piece.rows.start), None
        with noise(*seed), noise_of_share(share), autocast():
            embeddings: Tensor = encoder(tokens, lengths)
            return embeddings

    with torch.no_grad():
        embedded = [embed(piece) for piece in own[:-1]]
    embedded += [embed(piece) for piece in own[-1:]]  # with its graph
    nothing = torch.zeros(0, encoder.hidden_size, device=encoder.device).float()  # as an encoder's embeddings are
    mine = [piece.detach() for piece in embedded] or [nothing]
    counts = [sum(piece.rows.stop - piece.rows.start for piece in of_process) for of_process in pieces]
    embeddings = distributed.gather_rows(torch.cat(mine), counts).requires_grad_()  # (N * V, hidden)
    loss = objective.loss(embeddings, rows)
    scale(loss).backward()
    assert embeddings.grad is not None
    first = sum(counts[: distributed.rank()])
    gradients = embeddings.grad[first : first + counts[distributed.rank()]].split([len(piece) for piece in embedded])
    if embedded:
        embedded[-1].backward(gradients[-1])
    for piece, gradient in zip(own[:-1], gradients[:-1], strict=True):
        embed(piece).backward(gradient)
    if distributed.world_size() > 1:
        sum_gradients(encoder, torch.cat([tokens for tokens, _ in parts]))
    return loss.detach()


def divide(parts: Sequence[int], views: int, processes: int) -> list[list[Piece]]:
    """Return the pieces of each process; parts: rows of each part. They are in the order of the batch.

    A process gets whole parts where there are as many parts as processes. Otherwise processes share parts by
    sentences, evenly; where there are fewer sentences than processes, some get nothing.
    """
    if len(parts) >= processes:
        bounds = [process * len(parts) // processes for process in range(processes + 1)]
        return [
            [Piece(part, slice(0, parts[part])) for part in range(bounds[process], bounds[process + 1])]
            for process in range(processes)
        ]
    sentences = sum(parts) // views
    cuts = [process * sentences // processes * views for process in range(processes + 1)]
    starts = [sum(parts[:part]) for part in range(len(parts))]
    return [
        [
            Piece(part, slice(max(cuts[process], start) - start, min(cuts[process + 1], start + size) - start))
            for part, (start, size) in enumerate(zip(starts, parts, strict=True))
            if max(cuts[process], start) < min(cuts[process + 1], start + size)
        ]
        for process in range(processes)
    ]


def share_of(lengths: Tensor, rows: slice) -> Share:
    """Return what some rows are of a part with these lengths (rows,)."""
    ends = [0, *lengths.cumsum(0).tolist()]
    return Share(rows, slice(ends[rows.start], ends[rows.stop]), (len(lengths), ends[-1], int(lengths.max())))


def sum_gradients(encoder: Encoder, tokens: Tensor) -> None:
    """Replace the gradient of each parameter by its sum over all processes; tokens: those of the whole batch.

    Of the word embeddings, by far the largest matrix of a small encoder, only the rows of these tokens are moved: all
    others are zero. A parameter without a gradient on any process is left without.
    """
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    has = torch.tensor([float(p.grad is not None) for p in trained], device=encoder.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    table = input_embeddings(encoder.model)
    # Padding may have a gradient, too, where a model does not mask it.
    seen = torch.cat([tokens, tokens.new_tensor([encoder.tokenizer.padding_id])]).unique()
    moved = [g[seen] if table is not None and p is table.weight else g for p, g in zip(trained, gradients, strict=True)]
    distributed.sum_in_place([has, *moved])
    for parameter, gradient, values, count in zip(trained, gradients, moved, has.tolist(), strict=True):
        if values is not gradient:
            gradient[seen] = values
        parameter.grad = gradient if count else None

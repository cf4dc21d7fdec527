from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simcse_train import distributed, launcher
from simcse_train.config import make_config
from simcse_train.data.batches import Batch, _batch, two_views
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.head import projection_head
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError
from simcse_train.objectives.infonce import InfoNCE
from simcse_train.objectives.objective import Objective
from simcse_train.objectives.registry import OBJECTIVES, make_objective
from simcse_train.randomness import seeded
from simcse_train.training.step import divide, forward_backward
from tests.launch import run
from tests.objectives.rows import known_rows

SENTENCES = (
    "a man", "the cat runs in the park", "a dog", "the cat runs in the park", "a woman sings on the hill", "red hill",
    "the big dog plays in a small park .",
)  # fmt: skip

Gradients = dict[str, Tensor]


def gradients(encoder: Encoder, objective: Objective, batch: Batch, size: int | None) -> Gradients:
    rows = known_rows(len(batch.sentences), views=batch.views, texts=batch.texts, hidden=32, similar_above=0.9)
    encoder.zero_grad(set_to_none=True)
    noise = partial(seeded, 3, 7)
    loss = forward_backward(encoder, objective, batch.parts(size), rows, noise, nullcontext, lambda loss: loss)
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return found | {"loss": loss}


def cases(tiny: Path) -> dict[str, Gradients]:
    """Return the gradients of each objective, batch and way to divide it, in float64."""
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    found: dict[str, Gradients] = {}
    for pooling in ("cls", "mean"):
        encoder = load_encoder(tiny, pooling=pooling)
        encoder.head = projection_head(32, seed=0) if pooling == "cls" else None
        encoder.double().train()
        tokens = encoder.tokenizer.tokenize(SENTENCES, 16)
        batch, short = two_views(tokens, np.arange(7)), two_views(tokens[:2], np.arange(2))
        triples = _batch([row for row in tokens for _ in range(3)], np.arange(7), 3, "cpu", np.repeat(np.arange(7), 3))
        for name in OBJECTIVES:
            objective = make_objective(make_config({"data": "x", "objective": name, "temperature": 0.2}))
            for size in (None, 1, 3):
                found[f"{name} {pooling} {size}"] = gradients(encoder, objective, batch, size)
            found[f"{name} {pooling} short"] = gradients(encoder, objective, short, None)
        found[f"triples {pooling}"] = gradients(encoder, InfoNCE(0.2), triples, 4)
    padded = load_encoder(tiny, pooling="mean", packed=False).double().eval()  # its noise depends on the processes
    found["padded"] = gradients(padded, InfoNCE(0.2), batch, None)
    return found


def write_gradients(tiny: Path, out: Path) -> None:
    with distributed.connected(str):
        found = cases(tiny)
    torch.save(found, out / f"{launcher.rank()}.pt")


@pytest.fixture(scope="module")
def expected(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Gradients]:
    """The gradients that a single process computes."""
    folder = tmp_path_factory.mktemp("one")
    assert run(1, write_gradients, tiny, folder) == [0]
    found: dict[str, Gradients] = torch.load(folder / "0.pt")
    return found


@pytest.mark.parametrize("processes", [2, 4])
def test_the_gathered_gradient_is_that_of_a_single_process(
    expected: dict[str, Gradients], tiny: Path, tmp_path: Path, processes: int
) -> None:
    assert run(processes, write_gradients, tiny, tmp_path) == [0] * processes
    for rank in range(processes):
        found: dict[str, Gradients] = torch.load(tmp_path / f"{rank}.pt")
        assert len(found) == len(expected) == 2 * (4 * len(OBJECTIVES) + 1) + 1
        for case, tensors in expected.items():
            assert found[case].keys() == tensors.keys(), case
            largest = max(float(tensor.abs().max()) for tensor in tensors.values())
            for name, tensor in tensors.items():
                assert tensor.dtype == torch.float64
                difference = float((found[case][name] - tensor).abs().max())
                assert difference <= 1e-6 * max(largest, 1e-3), (case, name, difference)


@given(parts=st.lists(st.integers(1, 9), min_size=1, max_size=12), views=st.integers(2, 3), processes=st.integers(1, 9))
def test_the_pieces_of_all_processes_are_the_batch_in_its_order(parts: list[int], views: int, processes: int) -> None:
    rows = [views * part for part in parts]
    pieces = divide(rows, views, processes)
    assert len(pieces) == processes
    covered = [(piece.part, row) for of_one in pieces for piece in of_one for row in range(*piece.rows.indices(99))]
    assert covered == [(part, row) for part, count in enumerate(rows) for row in range(count)]
    counts = [sum(piece.rows.stop - piece.rows.start for piece in of_one) for of_one in pieces]
    assert all(count % views == 0 for count in counts)
    if len(parts) < processes:
        assert max(counts) - min(counts) <= views  # shared evenly
    else:
        assert all(piece.rows == slice(0, rows[piece.part]) for of_one in pieces for piece in of_one)


def agree(out: Path) -> None:
    with distributed.connected(str):
        rank = distributed.rank()
        flag = torch.tensor([float("nan") if rank == 1 else 1.0, 2.0])
        distributed.sum_in_place([flag, large := torch.full((3_000_000, 3), float(rank)), torch.zeros(0)])
        found = {
            "highest": distributed.highest(rank, -rank),
            "collected": distributed.collect({"rank": rank}),
            "from main": distributed.from_main(lambda: f"process {rank}"),
            "rows": distributed.gather_rows(torch.full((rank, 2), float(rank)), [0, 1, 2]).tolist(),
            "sum": [str(flag[0].item()), flag[1].item(), large.unique().tolist()],
        }
    (out / f"{rank}.json").write_text(json.dumps(found))


def test_processes_agree_gather_and_sum(tmp_path: Path) -> None:
    assert run(3, agree, tmp_path) == [0, 0, 0]
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "highest": [2, 0],
            "collected": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            "from main": "process 0",
            "rows": [[1, 1], [2, 2], [2, 2]],
            "sum": ["nan", 6, [3]],  # not finite on one is not finite on all
        }


def test_a_single_process_is_left_alone() -> None:
    tensor = torch.ones(2, 3)
    with distributed.connected(str):
        assert distributed.world_size() == 1
        assert distributed.is_main()
        assert distributed.highest(4, 2) == [4, 2]
        assert distributed.collect("x") == ["x"]
        assert distributed.from_main(lambda: "y") == "y"
        assert distributed.gather_rows(tensor, [2]) is tensor
        distributed.sum_in_place([tensor])
        distributed.wait()
    assert torch.equal(tensor, torch.ones(2, 3))


def fail_in_one(out: Path, kind: Any) -> None:
    try:
        with distributed.connected(lambda: "Advice."):
            if distributed.rank() == 1:
                raise kind("What is wrong.")
            distributed.wait()
    except Exception as error:
        (out / f"{launcher.rank()}").write_text(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize(("kind", "name"), [(InputError, "InputError"), (ValueError, "TrainingError")])
def test_an_error_on_one_process_is_an_error_on_all(tmp_path: Path, kind: type[Exception], name: str) -> None:
    assert run(3, fail_in_one, tmp_path, kind) == [0, 0, 0]
    assert (tmp_path / "1").read_text() == f"{kind.__name__}: What is wrong."
    for rank in (0, 2):
        text = (tmp_path / str(rank)).read_text()
        assert text.startswith(f"{name}: Process 1 of 3 (on ")
        assert "What is wrong." in text

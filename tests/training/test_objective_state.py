from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.registry import OBJECTIVES
from simcse_train.training.start import resume, train
from tests.training.test_loop import settings


class Counting:
    """NT-Xent that counts the steps; the count is its state."""

    needs: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.inner = NTXent(0.05)
        self.steps = torch.zeros(1)

    def loss(self, *arguments: Any) -> Tensor:
        return self.inner.loss(*arguments)

    def state(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.steps = tensors["steps"]

    def after_step(self, *_: Any) -> None:
        self.steps += 1


def test_an_objective_learns_of_every_step_and_its_state_survives_a_resume(
    text: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Counting] = []

    def make(*_: Any) -> Counting:
        made.append(Counting())
        return made[-1]

    monkeypatch.setitem(OBJECTIVES, "ntxent", make)
    train(settings(text, tiny, tmp_path / "run", max_steps=4, objective="ntxent"))
    resume(tmp_path / "run", {"max_steps": 6})
    assert [objective.steps.item() for objective in made if objective.steps] == [4, 6]

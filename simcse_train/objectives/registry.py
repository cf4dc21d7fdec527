"""The objectives by name. A new one is a file beside this one, a line here, and its name in `TrainConfig.objective`."""

from __future__ import annotations

from collections.abc import Callable

from simcse_train.config import TrainConfig
from simcse_train.objectives.infonce import InfoNCE
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Objective

OBJECTIVES: dict[str, Callable[[TrainConfig], Objective]] = {
    "ntxent": lambda config: NTXent(config.temperature),
    "infonce": lambda config: InfoNCE(config.temperature),
}


def make_objective(config: TrainConfig) -> Objective:
    """Return the objective that the settings name, with its settings."""
    return OBJECTIVES[config.objective](config)

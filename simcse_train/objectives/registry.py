"""The objectives by name. A new one is a file beside this one, a line here, and its name in `TrainConfig.objective`."""

from __future__ import annotations

from collections.abc import Callable

from simcse_train.config import TrainConfig, objective_setting
from simcse_train.objectives.debiased import Debiased
from simcse_train.objectives.infonce import InfoNCE
from simcse_train.objectives.neighbours import Neighbours
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Objective
from simcse_train.objectives.queue import Queue
from simcse_train.objectives.relational import Relational
from simcse_train.objectives.soft import Soft


def _temperature(config: TrainConfig) -> float:
    return objective_setting(config, "temperature")


def _from_start(kind: type[Relational] | type[Soft], config: TrainConfig) -> Objective:
    return kind(
        _temperature(config),
        objective_setting(config, "start_temperature"),
        objective_setting(config, "start_weight"),
        smoothed=objective_setting(config, "neighbours") > 0,
    )


OBJECTIVES: dict[str, Callable[[TrainConfig], Objective]] = {
    "ntxent": lambda config: NTXent(_temperature(config)),
    "infonce": lambda config: InfoNCE(_temperature(config)),
    "debiased": lambda config: Debiased(
        _temperature(config), objective_setting(config, "tau_plus"), objective_setting(config, "beta")
    ),
    "soft": lambda config: _from_start(Soft, config),
    "relational": lambda config: _from_start(Relational, config),
    "neighbours": lambda config: Neighbours(_temperature(config)),
    "queue": lambda config: Queue(_temperature(config), config.queue_size or 5 * config.batch_size // 2),
}


def make_objective(config: TrainConfig) -> Objective:
    """Return the objective that the settings name, with its settings."""
    return OBJECTIVES[config.objective](config)

"""What may change when a run is resumed, and what that risks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcse_train.config import TrainConfig, make_config, option
from simcse_train.data import hub
from simcse_train.errors import InputError
from simcse_train.evaluation.diagnosis import harmless_rate, was_tuned
from simcse_train.runs.folder import STANDARD_INPUT
from simcse_train.training.optimizer import peak_rate
from simcse_train.training.plan import absolute, lasting

# What may change when a run is resumed; every other setting decides which run it is.
CHANGEABLE = (
    "data",
    "eval",
    "pairs",
    "epochs",
    "max_steps",
    "save_every",
    "save_minutes",
    "keep",
    "log_every",
    "track",
)
LENGTHS = ("epochs", "max_steps")
# Whose `auto` the program replaces by what it finds.
FOUND = ("objective", "pooling", "projection", "device", "precision", "kernels")


def changed(config: TrainConfig, changes: Mapping[str, Any], from_file: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return the settings of a resumed run; raises `InputError` for a change that would make it another run.

    The settings that began the run may be given again, as `from_file`: what they leave to the program is no change, nor
    is a length that the run was raised above since.
    """
    old = config.model_dump()
    outgrown = {name for name in LENGTHS if (old[name] or 0) > ((from_file or {}).get(name) or math.inf)}
    changes = {name: value for name, value in (from_file or {}).items() if name not in outgrown} | dict(changes)
    changes = {name: value for name, value in changes.items() if not (value == "auto" and name in FOUND)}
    given = make_config({**old, **changes}).model_dump(include=set(changes))  # with the types of the settings
    # Of what may change, only --save-minutes has a None that says something: no longer by the clock.
    changes = {name: value for name, value in given.items() if value is not None or name == "save_minutes"}
    if "model" in changes and absolute(changes["model"]) == config.model:
        changes["model"] = config.model
    for name, value in changes.items():
        # A text or pairs may move, but not be added: they decide what is trained on and which step is the best.
        added = name in ("data", "eval", "pairs") and not old[name]
        if (name not in CHANGEABLE or added) and value != old[name]:
            raise InputError(
                f"{option(name)} {value} differs from the run's own {old[name]}, and would make it another run. Leave "
                "it out to continue, or start a new run without --resume."
            )
    for name in LENGTHS:
        if changes.get(name) is not None and old[name] is not None and changes[name] < old[name]:
            raise InputError(f"{option(name)} can only be raised when a run is resumed; it was {old[name]}.")
    is_longer = changes.get("max_steps", config.max_steps) != config.max_steps
    if config.max_steps and not is_longer and changes.get("epochs", old["epochs"]) != old["epochs"]:
        raise InputError(
            f"--epochs {changes['epochs']} has no effect, since --max-steps {config.max_steps} decides how long the "
            "run is. Raise that."
        )
    allowed = {name: value for name, value in changes.items() if name in CHANGEABLE}
    if "data" in allowed:
        kept = next((entry for entry in config.data if Path(entry).name == STANDARD_INPUT), None)
        if kept is None and "-" in allowed["data"]:
            raise InputError("--data -: the run did not read standard input. Name the place of its text instead.")
        # A text of the hub goes on in the revision that the run began with, if none is given.
        pinned = {hub.without_revision(entry): entry for entry in config.data if entry.startswith(hub.PREFIX)}
        allowed["data"] = [kept if entry == "-" else pinned.get(entry) or lasting(entry) for entry in allowed["data"]]
    for name in ("eval", "pairs"):
        if name in allowed:
            allowed[name] = absolute(allowed[name])
    return make_config({**old, **allowed})


def risk_of_more_steps(config: TrainConfig, total: int, first: Mapping[str, float]) -> str:
    """Return what a resumed run risks in `total` steps, more than it began with; nothing where its rate suits them.

    first: the measures of step 0.
    """
    rate = peak_rate(config)
    harmless = harmless_rate(was_tuned(first), first.get("hardness", 1.0), total)
    if config.objective != "ntxent" or rate <= harmless:
        return ""
    return (
        f"The run was begun with fewer steps, and keeps its learning rate of {rate:g}. In {total:,} steps at this rate "
        "an encoder that was tuned for sentences may unlearn on a general text what it was tuned for. A new run with "
        f"--max-steps {total} and --learning-rate {harmless:g} avoids that."
    )


def without_own_folder(settings: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Return settings without the folder of the run, where it is that of this run."""
    is_own = Path(str(settings.get("output", "/"))).expanduser().resolve() == run.resolve()
    return {name: value for name, value in settings.items() if name != "output" or not is_own}

"""One typed, validated description of a run.

A `TrainConfig` is what the command line, a YAML file and Python all become before anything is read or computed. The defaults are
those of the paper for unsupervised BERT (Gao, Yao & Chen 2021, appendix A).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

STARTER = "starter"


class InputError(Exception):
    """What the user gave can't be used; the message is one paragraph that names it and the way out."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


Texts = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Unit = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class TrainConfig(BaseModel):
    """Every setting of a training run; the names are those of the command line's options."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    data: Texts
    text_column: str | None = None
    model: str = STARTER
    output: str | None = None
    epochs: Count = 1
    max_steps: Count | None = None
    batch_size: Annotated[int, Field(ge=2)] = 64
    micro_batch_size: Count | None = None
    learning_rate: Positive = 3e-5
    warmup_ratio: Unit = 0.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_length: Annotated[int, Field(ge=3)] = 32
    temperature: Positive = 0.05
    dropout: Unit | None = None
    pooling: Literal["auto", "cls", "mean"] = "auto"
    objective: Literal["ntxent", "infonce"] = "ntxent"
    max_grad_norm: Positive = 1.0
    projection: Literal["auto", "on", "off"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    eval: str | None = None
    eval_every: Count = 250
    save_every: Count = 500
    save_minutes: Positive | None = None
    keep: Count = 2
    log_every: Count = 10


def option(field: str) -> str:
    """Return the command line's name of a setting: `max_steps` is `--max-steps`."""
    return "--" + field.replace("_", "-")


def _explain(error: ValidationError) -> str:
    """Say in one sentence what pydantic found wrong first."""
    found = error.errors()[0]
    field = str(found["loc"][0]) if found["loc"] else "settings"
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field.replace("-", "_"), TrainConfig.model_fields, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"The settings are {', '.join(TrainConfig.model_fields)}."
        return f"There is no setting {field!r}. {hint}"
    if found["type"] == "missing":
        return f"{option(field)} is missing: name the text to learn from, for example {option(field)} corpus.txt."
    return f"{option(field)} {found['input']}: {found['msg'][0].lower()}{found['msg'][1:]}."


def make_config(settings: Mapping[str, Any], source: str | None = None) -> TrainConfig:
    """Validate settings.

    Raises `InputError` with the option, the value and what is allowed; `source` names the file they come from.
    """
    try:
        return TrainConfig(**settings)
    except ValidationError as error:
        raise InputError((f"{source}: " if source else "") + _explain(error)) from None


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file, checking the names but not yet whether they are complete.

    Raises `InputError` if the file can't be read, is no mapping, or holds a key that no setting has.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror or error}. Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(settings, dict):
        raise InputError(f"--config {path} must hold settings, one 'name: value' a line.")
    make_config({"data": "-", **settings}, source=f"--config {path}")
    return settings


def config_yaml(config: TrainConfig) -> str:
    """Return the settings as YAML, `output` left out so that repeating a run makes a folder of its own."""
    settings = config.model_dump(exclude={"output"})
    head = "# Every setting of this run. To repeat it: simcse-train --config THIS_FILE\n"
    return head + yaml.safe_dump(settings, sort_keys=False)  # escaped: YAML folds U+0085 and its like

"""The settings of a run as a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from simcse_train.config import TrainConfig, make_config
from simcse_train.errors import InputError


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file; their names are checked, not yet whether they are complete.

    Raises `InputError` if the file cannot be read, is not a mapping, has a key that is no setting, or one twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        settings, keys = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror or error}. Check the path.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2026-02-30 is a ValueError
        raise InputError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(settings, dict) or not isinstance(keys, yaml.MappingNode):
        raise InputError(f"--config {path} must hold settings, one 'name: value' per line.")
    first: dict[str, int] = {}  # the line of each key
    for key, _ in keys.value:  # YAML itself takes the last value in silence
        name, line = str(key.value), key.start_mark.line + 1
        if name in first:
            raise InputError(f"--config {path}, line {line}: {name!r} stands in line {first[name]}, too. Keep one.")
        first[name] = line
    settings = {str(name): value for name, value in settings.items()}  # YAML has keys that are numbers, or nothing
    make_config({"data": "-", **settings}, source=f"--config {path}")
    return settings


def config_yaml(config: TrainConfig) -> str:
    """Return the settings as YAML, without `output`, so that repeating a run makes a new folder."""
    settings = config.model_dump(exclude={"output"})
    head = "# Every setting of this run. To repeat it: simcse-train --config THIS_FILE\n"
    # In ASCII with escapes: YAML folds U+0085 and similar characters.
    return head + yaml.safe_dump(settings, sort_keys=False)

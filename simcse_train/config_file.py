"""The settings of a run as a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from simcse_train.config import TrainConfig, make_config
from simcse_train.errors import InputError, one_line

NOT_TEXT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):
    """Reads values as text, as the command line does: to YAML itself `kernels: off` is a Boolean."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name and the type are those of yaml)
        first: [(tag, pattern) for tag, pattern in resolvers if tag in NOT_TEXT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a YAML file holds, which need not be complete, with the types of `TrainConfig`.

    Raises `InputError` if the file cannot be read, is not a mapping, or has a key that is no setting, or one twice, or
    a value that is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        settings, keys = yaml.load(text, _Loader), yaml.compose(text, _Loader)
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror or error}. Check the path.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--config {path} is not valid YAML: {one_line(error)}.") from None
    if not isinstance(settings, dict) or not isinstance(keys, yaml.MappingNode):
        raise InputError(f"--config {path} must hold settings, one 'name: value' per line.")
    first: dict[str, int] = {}  # the line of each key
    for key, _ in keys.value:  # YAML itself takes the last value in silence
        name, line = str(key.value), key.start_mark.line + 1
        if name in first:
            raise InputError(f"--config {path}, line {line}: {name!r} stands in line {first[name]}, too. Keep one.")
        first[name] = line
    settings = {str(name): value for name, value in settings.items()}  # a key may be nothing
    return make_config(settings, source=f"--config {path}", complete=False).model_dump(include=set(settings))


def config_yaml(config: TrainConfig) -> str:
    """Return the settings as YAML, without `output`, so that repeating a run makes a new folder."""
    settings = config.model_dump(exclude={"output"})
    head = "# Every setting of this run. To repeat it: simcse-train --config THIS_FILE\n"
    # In ASCII with escapes: YAML folds U+0085 and similar characters.
    return head + yaml.safe_dump(settings, sort_keys=False)

from __future__ import annotations

import re

import pytest
from pydantic.fields import FieldInfo

from simcse_train.cli.app import app
from simcse_train.config import TrainConfig, choices, option
from tests.cli.test_commands import run


@pytest.fixture
def sections(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The help text under each heading, with line breaks and repeated spaces made one space."""
    assert run("--help") == 0
    parts = re.split(r"^(\w+):\n", capsys.readouterr().out, flags=re.MULTILINE)
    return {heading: " ".join(text.split()) for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("name", TrainConfig.model_fields)
def test_help_shows_every_setting_in_its_group_with_choices_and_default(name: str, sections: dict[str, str]) -> None:
    field = TrainConfig.model_fields[name]
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    section = sections[str(extra["group"])]
    group = [other for other, f in TrainConfig.model_fields.items() if _group(f) == extra["group"]]
    following = [*(option(other) for other in group[group.index(name) + 1 :]), None][0]
    assert f"{option(name)} " in section
    shown = section.split(f"{option(name)} ", 1)[1].split(f" {following} ")[0]
    assert shown.startswith("|".join(choices(field)) or str(extra["metavar"]))
    assert str(field.description).split(",")[0].split(" --")[0] in shown
    if extra["auto"]:
        assert f"[default: {extra['auto']}]" in shown
    elif not field.is_required() and field.default is not None:
        assert f"[default: {field.default}]" in shown


def _group(field: FieldInfo) -> object:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    return extra["group"]


def test_help_lists_the_commands_apart_from_the_settings(sections: dict[str, str]) -> None:
    assert {"export", "evaluate", "encode"} <= set(sections["Commands"].split())


def test_help_shows_the_summary_of_every_command_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("--help") == 0
    shown = capsys.readouterr().out.split("Commands:\n")[1].splitlines()
    summaries = dict(line.split(maxsplit=1) for line in shown)
    assert set(summaries) == {command.name for command in app.registered_commands}
    assert not [summary for summary in summaries.values() if summary.endswith("...") or len(summary) > 60]

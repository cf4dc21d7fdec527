"""The tour of the code in CONTRIBUTING.md agrees with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "simcse_train"
TOUR = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Tour of the code\n")[1].split("\n## ")[0]
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]
SUB_PACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
# What the right column of the table names: `data/files.py`, or `json_records.py` beside a file of its folder.
NAMED = re.findall(r"`([\w/.]+(?:/|\.py|\.j2))`", "".join(re.findall(r"^\|[^|]*\|(.*)\|$", TOUR, flags=re.MULTILINE)))


def test_the_tour_lists_the_layers_of_the_import_rules_in_their_order() -> None:
    block = TOUR.split("```\n")[1]
    tour = [set(re.split(r" \| |, ", re.split(r" {2,}|$", line)[0])) for line in block.splitlines()]
    layers = [set(re.split(r" [|:] ", layer.replace("simcse_train.", ""))) for layer in LAYERS["layers"]]
    assert tour == layers


def test_the_import_rules_name_every_sub_package_and_module() -> None:
    layers = set(re.findall(r"simcse_train\.(\w+)", " ".join(LAYERS["layers"])))
    assert layers == SUB_PACKAGES | {path.stem for path in PACKAGE.glob("[!_]*.py")}


def test_the_table_has_a_row_for_every_sub_package() -> None:
    assert not SUB_PACKAGES - {path.split("/")[0] for path in NAMED if "/" in path}


def test_the_table_names_files_that_exist() -> None:
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]
    assert not [path for path in NAMED if not any((folder / path).exists() for folder in folders)]

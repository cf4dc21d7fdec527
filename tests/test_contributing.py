"""The tour of the code in CONTRIBUTING.md names files that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("cli", "training", "evaluation", "search", "export", "report", "data", "objectives", "runs", "encoders")


def test_every_module_that_the_tour_names_exists() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [path for path in re.findall(r"`(\w+/\w*(?:\.py)?)`", tour) if path.split("/")[0] in PACKAGES]
    assert len(named) > 25
    missing = [path for path in named if "NAME" not in path and not (ROOT / "simcse_train" / path).exists()]
    assert not missing


def test_the_tour_names_every_sub_package() -> None:
    tour = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = [path.parent.name for path in (ROOT / "simcse_train").glob("*/__init__.py")]
    assert found
    assert not [name for name in found if not re.search(rf"\b{name}\b", tour)]

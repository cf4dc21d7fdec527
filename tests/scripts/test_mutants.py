"""The list of deliberate faults, and the script that tries them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.mutants import ROOT, Mutant, hunt, misplaced, read_mutants

MUTANTS = read_mutants()
PACKAGES = sorted(path.parent.name for path in ROOT.glob("simcse_train/*/__init__.py"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_every_fault_can_still_be_applied_at_one_place_and_its_tests_exist(mutant: Mutant) -> None:
    assert misplaced(ROOT, mutant) is None


def test_no_fault_stands_twice() -> None:
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_faults_reach_every_sub_package(package: str) -> None:
    assert any(mutant.file.startswith(f"simcse_train/{package}/") for mutant in MUTANTS)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fault_that_no_test_notices_is_reported_and_one_that_is_noticed_is_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, content in {
        "simcse_train/__init__.py": "",
        "simcse_train/sums.py": "def add(a, b):\n    return a + b\n\n\ndef double(a):\n    return 2 * a\n",
        "tests/test_sums.py": "from simcse_train.sums import add, double\n\n\n"
        "def test_add():\n    assert add(2, 3) == 5\n\n\ndef test_double():\n    assert double(0) == 0\n",
        "pyproject.toml": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    noticed = Mutant("subtracts", "simcse_train/sums.py", "a + b", "a - b", ["tests/test_sums.py"])
    survivor = Mutant("triples", "simcse_train/sums.py", "2 * a", "3 * a", ["tests/test_sums.py"])
    moved = Mutant("is elsewhere", "simcse_train/sums.py", "a * b", "a / b", ["tests/test_sums.py"])
    assert hunt(tmp_path, [noticed]) == []
    assert hunt(tmp_path, [noticed, survivor, moved]) == [
        "simcse_train/sums.py: triples",
        "simcse_train/sums.py: is elsewhere",
    ]
    assert "a + b" in (tmp_path / "simcse_train" / "sums.py").read_text()  # the copy was changed, not the tree
    (tmp_path / "tests" / "test_sums.py").write_text("def test_wrong():\n    assert False\n")
    assert "FAILED tests/test_sums.py::test_wrong" in " ".join(hunt(tmp_path, [noticed]))
    capfd.readouterr()

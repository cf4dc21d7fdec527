"""Apply deliberate faults one at a time and report those that no test notices.

    python scripts/mutants.py              all faults of scripts/mutants.toml
    python scripts/mutants.py pruning      those whose description, file or tests contain the word

Each fault replaces a text that occurs exactly once in a file. It is applied to a copy of the tree in a temporary
folder, and the tests that should notice it are run there. Before that they are run once without any fault, since a test
that always fails notices nothing. The exit status is 1 if a fault survives, if its tests cannot be run, or if they fail
without it. `fsync` is not covered: that data reaches the disk can only be tested by cutting the power.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

ROOT = Path(__file__).parent.parent
COPIED = ("simcse_train", "tests", "scripts", "examples", "configs", "pyproject.toml", "README.md")
# Imported once, before the processes that run the tests are forked: importing takes longer than most of the tests.
HEAVY = ("accelerate", "hypothesis", "pytest", "scipy.stats", "torch", "transformers")
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-W", "ignore::pytest.PytestAssertRewriteWarning")
LIMIT_S = 900  # a fault that makes a test hang is noticed too
UNFAULTED_LIMIT_S = 3600  # all the tests of all the faults, one after another
LOG = "pytest.log"  # what the last run of tests printed, in the copy of the tree
PASSED, FAILED = 0, 1  # pytest's exit statuses; others say that the tests could not be run


class Mutant(NamedTuple):
    """A deliberate fault: `new` instead of `old` in `file`, and the tests that should notice it."""

    fault: str
    file: str
    old: str
    new: str
    tests: list[str]


def read_mutants(root: Path = ROOT) -> list[Mutant]:
    """Return the faults listed in scripts/mutants.toml."""
    listed = tomllib.loads((root / "scripts" / "mutants.toml").read_text(encoding="utf-8"))
    return [Mutant(**entry) for entry in listed["mutant"]]


def misplaced(root: Path, mutant: Mutant) -> str | None:
    """Return why a fault cannot be applied to the tree at `root`, or None if it can."""
    path = root / mutant.file
    found = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
    if found != 1:
        return f"{mutant.file} holds {mutant.old!r} {found} times, not once"
    if mutant.old == mutant.new:
        return f"{mutant.file}: {mutant.old!r} is replaced by itself"
    missing = [test for test in mutant.tests if not (root / test.split("::")[0]).exists()]
    return f"{missing[0]} does not exist" if missing else None


def run_tests(root: Path, tests: Sequence[str], limit_s: float = LIMIT_S) -> int:
    """Run tests in the tree at `root` in a process of their own; return pytest's exit status, or 1 after the limit."""
    process = get_context("fork").Process(target=_pytest, args=(root, list(tests)))
    process.start()
    process.join(limit_s)
    if process.is_alive():
        _end(process)
        return FAILED
    return int(process.exitcode or 0)


def _end(process: ForkProcess) -> None:
    process.kill()
    process.join()


def _pytest(root: Path, tests: list[str]) -> None:
    import pytest

    os.chdir(root)
    sys.path[:0] = [str(root)]
    os.environ["PYTHONPATH"] = str(root)
    # A compiled module is taken for its source's if size and second of change agree, which they may for two faults.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for name in [name for name in sys.modules if name.split(".")[0] in ("simcse_train", "tests", "scripts")]:
        del sys.modules[name]
    log = os.open(root / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(log, "w")  # else it is that of a pytest around this process
    status = int(pytest.main([*OPTIONS, *tests]))
    sys.stdout.flush()
    os._exit(status)


def survives(root: Path, mutant: Mutant) -> bool:
    """Return whether the tests pass although the tree at `root` has the fault; the file is restored.

    Raises `RuntimeError` if the fault cannot be applied or its tests cannot be run.
    """
    if reason := misplaced(root, mutant):
        raise RuntimeError(reason)
    path = root / mutant.file
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        status = run_tests(root, mutant.tests)
    finally:
        path.write_text(original, encoding="utf-8")
    if status not in (PASSED, FAILED):
        raise RuntimeError(f"pytest ended with status {status} on {' '.join(mutant.tests)}")
    return status == PASSED


def copy_tree(root: Path, target: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy(root / name, target / name)


def hunt(root: Path, mutants: Sequence[Mutant]) -> list[str]:
    """Try faults on a copy of the tree, print the result of each, and return a line for each that is not noticed."""
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_tree(root, copy)
        if run_tests(copy, _without_repetition(mutants), UNFAULTED_LIMIT_S) != PASSED:
            lines = (copy / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
            return [f"The tests do not pass without a fault: {line}" for line in lines[-20:]]
        for number, mutant in enumerate(mutants, start=1):
            try:
                result = "SURVIVES" if survives(copy, mutant) else "noticed"
            except RuntimeError as error:
                result = f"NOT TRIED ({error})"
            typer.echo(f"{number:>3}/{len(mutants)}  {result:<9}  {mutant.file}: {mutant.fault}")
            if result != "noticed":
                problems.append(f"{mutant.file}: {mutant.fault}")
    return problems


def _without_repetition(mutants: Sequence[Mutant]) -> list[str]:
    """Return the tests of all faults, each once: not those of a file or folder that is named itself."""
    named = {test for mutant in mutants for test in mutant.tests}
    return sorted(
        test for test in named if not any(test.startswith((f"{other}::", f"{other}/")) for other in named - {test})
    )


def main(word: Annotated[str, typer.Argument(help="Try only faults that contain this word.")] = "") -> None:
    """Try the faults and exit with status 1 if any survives."""
    mutants = [m for m in read_mutants() if word in f"{m.fault} {m.file} {' '.join(m.tests)}"]
    if not mutants:
        typer.echo(f"No fault contains {word!r}.", err=True)
        raise typer.Exit(2)
    for module in HEAVY:
        importlib.import_module(module)
    problems = hunt(ROOT, mutants)
    typer.echo(f"{len(mutants)} faults. " + ("All are noticed." if not problems else "Not noticed or not tried:"))
    for problem in problems:
        typer.echo(problem)
    raise typer.Exit(bool(problems))


if __name__ == "__main__":
    typer.run(main)

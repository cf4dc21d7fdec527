"""The wheel that is published works where no source of the package is: installed alone, it trains and exports."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("simcse_train", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, folder: Path) -> str:
    """Run a command outside the checkout, without the Python path of this process; return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**inherited, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that the checkout keeps no build folder."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", copy, folder=folder)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with the wheel; what the package depends on comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", folder=folder)
    python = folder / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, wheel, folder=folder)
    # Folders named in a .pth file come last on the path, and .pth files inside them are not read. An editable install
    # of the package in this environment is such a file, so the package can come from the wheel alone.
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env"), "platbase": str(folder / "env")}))
    shared = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()])
    (own / "dependencies.pth").write_text("".join(f"{path}\n" for path in shared))
    return folder / "env"


def test_the_wheel_alone_trains_and_exports(environment: Path, text: Path, tmp_path: Path) -> None:
    where = run(
        environment / "bin" / "python", "-c", "import simcse_train; print(simcse_train.__file__)", folder=tmp_path
    )
    assert Path(where.strip()).is_relative_to(environment)
    command = environment / "bin" / "simcse-train"
    options = ("--max-steps", "2", "--batch-size", "8", "--precision", "fp32", "--device", "cpu")
    printed = run(command, "--data", text, "--output", tmp_path / "run", *options, folder=tmp_path)
    assert "step      2" in printed
    run(command, "export", tmp_path / "run", tmp_path / "encoder", folder=tmp_path)
    assert (tmp_path / "encoder" / "model.safetensors").stat().st_size > 1_000_000  # of the starter inside the wheel
    assert "simcse-train" in (tmp_path / "encoder" / "README.md").read_text()  # from the model card inside the wheel

"""Print how long a run takes from the command to its first step, with an empty cache and with a full one.

    python -m scripts.measure_start --data wikipedia.txt

The first time, the text is tokenised and the kernels are compiled; later both come from the cache. Beside it stands
what no run can do without: Python importing torch and transformers.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from simcse_train.runs.metrics import read_metrics


def seconds_of_imports() -> float:
    """Return how long a process takes that imports what an encoder needs, and does nothing else."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, transformers.modeling_utils"], check=True)
    return time.perf_counter() - began


def seconds_to_first_step(data: Path, model: str, cache: Path, run: Path) -> float:
    """Return how long a run takes from the start of its process to the log of its first step."""
    command = [sys.executable, "-m", "simcse_train", "--data", str(data), "--model", model, "--output", str(run)]
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "--max-steps", "2", "--log-every", "1"],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stderr=subprocess.DEVNULL,
    ) as process:
        while not any(line["step"] == 1 for line in read_metrics(run)):
            if process.poll() is not None:
                raise SystemExit(f"The run ended before its first step: {' '.join(command)}")
            time.sleep(0.02)
        return time.perf_counter() - began


def main(
    data: Annotated[Path, typer.Option(help="A text.")],
    model: Annotated[str, typer.Option(help="The encoder.")] = "starter",
    rounds: Annotated[int, typer.Option(help="Starts with a full cache.")] = 5,
) -> None:
    """Measure."""
    typer.echo(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {model}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds_of_imports()  # the files of both libraries are read from the disk once
        first = seconds_to_first_step(data, model, folder / "cache", folder / "first")
        typer.echo(f"first start: {first:.1f} s")
        imports, starts = [], []
        for number in range(rounds):
            imports.append(seconds_of_imports())
            starts.append(seconds_to_first_step(data, model, folder / "cache", folder / str(number)))
    typer.echo(f"later starts: {median(starts):.1f} s (median of {rounds}; {min(starts):.1f} to {max(starts):.1f})")
    typer.echo(f"imports of torch and transformers alone: {median(imports):.1f} s")


if __name__ == "__main__":
    typer.run(main)

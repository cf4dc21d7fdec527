"""Measure how the resident memory of a training run grows, and which settings bound it.

    python scripts/measure_memory.py --data corpus.txt

Each setting trains an encoder in a process of its own with one thread. Printed are its resident memory at some steps,
in MiB, and the processor time per step, which a busy machine changes less than the time on the clock. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

# What each name adds to the environment of the run. oneDNN and ideep, the layer between it and torch, each keep a
# compiled matrix product per shape, 1,024 of them by default; the rest are settings of glibc's allocator.
DEFAULTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}
VARIANTS: dict[str, dict[str, str]] = {
    "as shipped": {},
    "1,024 shapes": DEFAULTS,
    "256 shapes": {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"},
    "64 shapes": {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"},
    "64 shapes in ideep alone": {**DEFAULTS, "LRU_CACHE_CAPACITY": "64"},
    "64 shapes in oneDNN alone": {**DEFAULTS, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"},
    "one arena": {**DEFAULTS, "MALLOC_ARENA_MAX": "1"},
    "mmap from 4 MB": {**DEFAULTS, "MALLOC_MMAP_THRESHOLD_": "4000000"},
}


def measure(
    data: Path, model: str, steps: list[int], precision: str, environment: dict[str, str]
) -> Iterator[tuple[int, float]]:
    """Train the encoder; yield at each step asked for the resident memory in MiB and the processor time in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = {
            "data": data,
            "model": model,
            "output": run,
            "max-steps": steps[-1] + 2,
            "precision": precision,
            "log-every": 1,
            "eval-every": 10 * steps[-1],
            "save-every": 10 * steps[-1],
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        process = subprocess.Popen(
            [sys.executable, "-m", "simcse_train", *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stderr=subprocess.DEVNULL,
        )
        for step in steps:
            while _last_step(run / "metrics.jsonl") < step:
                if process.poll() is not None:
                    raise SystemExit(f"The run ended with status {process.returncode} before step {step}.")
                time.sleep(0.05)
            yield _resident(process.pid), _processor_seconds(process.pid)
        process.wait()


def _last_step(metrics: Path) -> int:
    if not metrics.exists():
        return 0
    lines = metrics.read_bytes().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) // 1024


def _processor_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main(
    data: Annotated[Path, typer.Option(help="Text to train on.")],
    model: Annotated[str, typer.Option(help="The encoder.")] = "starter",
    steps: Annotated[str, typer.Option(help="Steps at which memory is measured.")] = "50,200,500,1000",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto.")] = "auto",
    only: Annotated[str, typer.Option(help="Names of the settings to try, with semicolons.")] = ";".join(VARIANTS),
    rounds: Annotated[int, typer.Option(help="How often each setting is measured, in turn.")] = 1,
) -> None:
    """Print one line per setting: resident memory at the steps, and processor time per step."""
    at = [int(step) for step in steps.split(",")]
    typer.echo(f"{'setting':<28}" + "".join(f"{f'step {step}':>11}" for step in at) + f"{'ms a step':>11}")
    for name in only.split(";") * rounds:
        typer.echo(f"{name:<28}", nl=False)
        seconds = []
        for resident, now in measure(data, model, at, precision, VARIANTS[name]):
            typer.echo(f"{resident:>11,}", nl=False)
            seconds.append(now)
        typer.echo(f"{1000 * (seconds[-1] - seconds[0]) / (at[-1] - at[0]):>11.1f}")


if __name__ == "__main__":
    typer.run(main)

"""Measure memory and processor time from the command to the first step, for texts of growing length.

    python scripts/measure_corpus.py --lines 100000,20000000

Each text is made of numbered copies of the example sentences, so that no two lines are equal. Printed are the peak of
the resident memory of a process that tokenises the text and takes one step, and its processor time. Linux and macOS.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = Path(__file__).parent.parent / "examples" / "sentences.txt"


def write_text(path: Path, lines: int) -> None:
    """Write so many different lines."""
    sentences = EXAMPLES.read_text(encoding="utf-8").splitlines()
    with path.open("w", encoding="utf-8") as stream:
        for start in range(0, lines, len(sentences)):
            chosen = sentences[: lines - start]
            stream.write("".join(f"{sentence} {start}\n" for sentence in chosen))


def measure(lines: int, objective: str) -> tuple[float, float, float]:
    """Return the peak of resident memory in MiB, processor seconds, and seconds by the clock."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        write_text(text, lines)
        command = [sys.executable, "-m", "simcse_train", "--data", str(text), "--output", f"{folder}/run"]
        command += ["--max-steps", "1", "--objective", objective, "--device", "cpu", "--precision", "fp32"]
        began = time.monotonic()
        process = subprocess.Popen(
            command, env={**os.environ, "XDG_CACHE_HOME": folder}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the run on {lines:,} lines failed")
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return used.ru_maxrss * unit / 2**20, used.ru_utime + used.ru_stime, time.monotonic() - began


def main(
    lines: Annotated[str, typer.Option(help="Numbers of lines, separated by commas.")] = "100000,1000000",
    objective: Annotated[str, typer.Option(help="Of the step; relational also embeds a bank.")] = "ntxent",
) -> None:
    """Print a row for each length of the text."""
    print("     lines  peak MiB  processor s  clock s")
    for count in map(int, lines.split(",")):
        peak, used, clock = measure(count, objective)
        print(f"{count:10}  {peak:8.0f}  {used:11.0f}  {clock:7.0f}")


if __name__ == "__main__":
    typer.run(main)

"""Print how fast a file is encoded, beside `SentenceTransformer.encode`, in turn.

    python -m scripts.measure_encode ENCODER --data ../shared/data/corpora/wikipedia-en.txt.xz

Both get the same lines and sort them by length themselves. The peer runs with each batch size that is given, in float32
and with its weights in bfloat16; this program with `encode --precision fp32` and `bf16`, reading and writing included.
Processor seconds are of all threads: compare these where the machine is shared.
"""

from __future__ import annotations

import itertools
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from sentence_transformers import SentenceTransformer

from simcse_train import load_encoder
from simcse_train.cli.app import import_quietly
from simcse_train.data.files import open_file
from simcse_train.data.source import named
from simcse_train.data.texts import read_texts
from simcse_train.encoders.saving import save_encoder
from simcse_train.search.encode import CHUNK, encode_file


def first_lines(path: Path, count: int) -> list[str]:
    """Return the first lines of a text that are not empty."""
    with open_file(path) as raw:
        filled = (line for line in read_texts(raw, named(path)) if line.strip())
        return list(itertools.islice(filled, count))


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call takes, by the clock and of the processor."""
    began, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - used


def main(
    encoder: Annotated[str, typer.Argument(help="An encoder.")],
    data: Annotated[Path, typer.Option(help="A text.")],
    lines: Annotated[int, typer.Option(help=f"Lines to encode; kernels compute {CHUNK} or more.")] = 100_000,
    batch_sizes: Annotated[str, typer.Option(help="Of the peer, separated by commas.")] = "32,64,128,256",
    precisions: Annotated[str, typer.Option(help="Separated by commas.")] = "fp32,bf16",
    rounds: Annotated[int, typer.Option(help="Passes over all rows, in turn.")] = 3,
) -> None:
    """Print a row for each setting."""
    import_quietly()
    sentences = first_lines(data, lines)
    typer.echo(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {encoder}")
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
        loaded = load_encoder(encoder)
        save_encoder(loaded, folder / "encoder")  # the peer knows no name that is this program's own
        for precision in precisions.split(","):
            peer = SentenceTransformer(str(folder / "encoder"), device="cpu", model_kwargs={"dtype": dtypes[precision]})
            for size in map(int, batch_sizes.split(",")):
                calls[f"sentence-transformers {precision} batch {size}"] = partial(
                    peer.encode, sentences, batch_size=size, show_progress_bar=False
                )
            calls[f"simcse-train {precision}"] = partial(
                encode_file, loaded, str(folder / "in.txt"), folder / "rows.npy", precision=precision
            )
        found: dict[str, list[tuple[float, float]]] = {label: [] for label in calls}
        for _ in range(rounds):
            for label, call in calls.items():
                found[label].append(timed(call))
    typer.echo(f"{'':44}sentences/s  sentences/processor s")
    for label, times in found.items():
        clock, processor = (len(sentences) / median(column) for column in zip(*times, strict=True))
        typer.echo(f"{label:44}{clock:11.1f}  {processor:21.1f}")


if __name__ == "__main__":
    typer.run(main)

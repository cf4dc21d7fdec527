"""Print how long a search and a report take on a text of a million sentences.

    python -m scripts.measure_million --data ../shared/data/corpora/wikipedia-en.txt.xz

The text is numbered copies of the lines of --data. A run of two steps is trained on it, so that there is something to
report. The sentences are searched by random vectors of the encoder's size in place of their embeddings, which would
take long to compute: the time of a search does not depend on the values.
"""

from __future__ import annotations

import itertools
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.lib.format import open_memmap

from simcse_train import TrainConfig, load_encoder, train
from simcse_train.cli.app import import_quietly
from simcse_train.data.corpus import open_corpus
from simcse_train.data.files import open_file
from simcse_train.data.source import named
from simcse_train.data.texts import read_texts
from simcse_train.report.page import write_report
from simcse_train.search.search import SearchedText, search

QUERIES = 20
CHUNK = 65_536


def write_copies(source: Path, target: Path, count: int) -> None:
    """Write the lines of a text again and again, numbered, until there are enough."""
    with open_file(source) as raw:
        lines = [line.strip() for line in read_texts(raw, named(source)) if line.strip()]
    with target.open("w", encoding="utf-8") as stream:
        for number, line in zip(range(count), itertools.cycle(lines), strict=False):
            stream.write(f"{line} {number // len(lines)}\n")


def random_embeddings(path: Path, rows: int, hidden: int) -> torch.Tensor:
    """Return random rows of length 1 in a file that is mapped as the cache's embeddings are."""
    generator = np.random.default_rng(0)
    out = open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, hidden))
    for start in range(0, rows, CHUNK):
        block = generator.standard_normal((min(CHUNK, rows - start), hidden), dtype=np.float32)
        out[start : start + CHUNK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    out.flush()
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def main(
    data: Annotated[Path, typer.Option(help="A text.")],
    model: Annotated[str, typer.Option(help="The encoder.")] = "starter",
    sentences: Annotated[int, typer.Option(help="Sentences of the text.")] = 1_000_000,
) -> None:
    """Measure."""
    import_quietly()
    typer.echo(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {model}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_copies(data, folder / "text.txt", sentences)
        config = TrainConfig(data=[str(folder / "text.txt")], model=model, output=str(folder / "run"), max_steps=2)
        train(config)
        began = time.perf_counter()
        write_report([folder / "run"])
        typer.echo(f"report: {time.perf_counter() - began:.2f} s")
        encoder = load_encoder(model)
        corpus = open_corpus(config.data, None, encoder.tokenizer, encoder.max_length)
        began = time.perf_counter()
        corpus = open_corpus(config.data, None, encoder.tokenizer, encoder.max_length)
        typer.echo(f"second start, {len(corpus):,} sentences: {time.perf_counter() - began:.2f} s")
        text = SearchedText(corpus, random_embeddings(folder / "rows.npy", len(corpus), encoder.hidden_size))
        took = []
        for number in range(QUERIES):
            began = time.perf_counter()
            search(encoder, text, [f"query number {number}"], 5)
            took.append(time.perf_counter() - began)
        typer.echo(f"a query: median {median(took):.2f} s, slowest {max(took):.2f} s of {QUERIES}")


if __name__ == "__main__":
    typer.run(main)

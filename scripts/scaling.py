"""Measure how training scales with processes on this machine, and project it to many GPUs.

    python scripts/scaling.py --data examples/sentences.txt

Trains the same run with 1, 2, ... processes of one thread each, and prints sentences a second, the bytes that a step
moves, and the times of what every process does by itself whatever their number: reading the batch and computing the
loss of all embeddings. The projection is arithmetic on these figures and on the bandwidths that are given as options.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from simcse_train.config import make_config
from simcse_train.data.batches import Batches
from simcse_train.data.cache import tokenised_folder
from simcse_train.data.corpus import Corpus, open_corpus
from simcse_train.encoders.encoder import Encoder, input_embeddings
from simcse_train.encoders.loading import load_encoder
from simcse_train.objectives.ntxent import NTXent
from simcse_train.objectives.objective import Rows
from simcse_train.runs.metrics import read_metrics
from simcse_train.training.plan import make_batches
from simcse_train.training.texts import Texts

BYTES = 4  # of a float32 number
LENGTH = 32


@dataclass(frozen=True)
class Work:
    """What a step of one process costs, apart from the encoder."""

    gradients: int  # numbers that are summed: all parameters but the word embeddings
    row: int  # numbers of one word embedding
    words: float  # different tokens for each sentence of a batch
    hidden: int
    read: float  # processor seconds to read a sentence and make it two rows of a batch


def work_of(encoder: Encoder, batches: Batches, batch_size: int) -> Work:
    """Measure on batches of the text."""
    table = input_embeddings(encoder.model)
    embeddings = table.weight.numel() if table is not None else 0
    total = sum(parameter.numel() for name, parameter in encoder.named_parameters() if "pooler" not in name)
    count = min(20, batches.per_epoch)
    began = time.process_time()
    found = [batches.at(step) for step in range(count)]
    read = (time.process_time() - began) / (count * batch_size)
    words = statistics.mean(len(batch.tokens.unique()) / len(batch.sentences) for batch in found)
    return Work(total - embeddings, encoder.token_size, words, encoder.hidden_size, read)


def moved(work: Work, sentences: int, processes: int) -> tuple[float, float]:
    """Return the bytes that each process sends in a step: gathering embeddings, and summing gradients in a ring."""
    share = (processes - 1) / processes
    values = work.gradients + work.words * sentences * work.row
    return share * 2 * sentences * work.hidden * BYTES, 2 * share * values * BYTES


def loss_seconds(sentences: int, hidden: int) -> float:
    """Return the processor seconds of the loss and its gradient for a batch of so many sentences, on this machine."""
    embeddings = torch.randn(2 * sentences, hidden, requires_grad=True)
    rows = Rows(2, torch.arange(2 * sentences) // 2)
    times = []
    for _ in range(3):
        began = time.process_time()
        NTXent(0.05).loss(embeddings, rows).backward()
        times.append(time.process_time() - began)
    return min(times)


def speed(data: Path, model: str, processes: int, batch_size: int, steps: int, folder: Path) -> float:
    """Return the sentences a second of a run, the median over its later steps; one thread for each process."""
    run = folder / f"run-{processes}"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "simcse_train", "--data", str(data), "--model", model]
    command += ["--objective", "ntxent", "--batch-size", str(batch_size), "--max-steps", str(steps), "--log-every", "1"]
    command += ["--output", str(run), "--eval-every", "1000000", "--precision", "fp32", "--device", "cpu"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    speeds = [line["sentences_per_second"] for line in read_metrics(run) if "loss" in line]
    return float(statistics.median(speeds[len(speeds) // 4 :]))


def projection(work: Work, per_gpu: int, gpu_speed: float, inside: float, between: float) -> str:
    """Return the table for 8, 64 and 512 GPUs, each with `per_gpu` sentences of the batch.

    gpu_speed: sentences a second of one GPU; inside, between: gigabytes a second within a machine of 8 and between.
    """
    lines = ["GPUs  batch   compute ms  move ms  read ms  loss matrix GiB  efficiency"]
    for gpus in (8, 64, 512):
        sentences = gpus * per_gpu
        gathered, summed = moved(work, sentences, gpus)
        bandwidth = inside if gpus <= 8 else between
        compute, move = per_gpu / gpu_speed, (gathered + summed) / (bandwidth * 1e9)
        read = work.read * sentences  # every process reads the whole batch
        matrix = (2 * sentences) ** 2 * BYTES / 2**30
        efficiency = compute / (compute + move + read)
        numbers = f"{1e3 * compute:11.1f}  {1e3 * move:7.1f}  {1e3 * read:7.1f}  {matrix:15.2f}  {efficiency:10.0%}"
        lines.append(f"{gpus:4}  {sentences:5}  {numbers}")
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="Text to train on.")],
    model: Annotated[str, typer.Option(help="Encoder.")] = "starter",
    batch_size: Annotated[int, typer.Option(help="Sentences in a batch.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 20,
    most: Annotated[int, typer.Option(help="Largest number of processes.")] = 2,
    gpu_speed: Annotated[float, typer.Option(help="Assumed sentences a second of one GPU.")] = 5000,
    inside: Annotated[float, typer.Option(help="Assumed gigabytes a second between GPUs of a machine.")] = 300,
    between: Annotated[float, typer.Option(help="Assumed gigabytes a second between machines, for each GPU.")] = 25,
) -> None:
    """Print measured and projected scaling."""
    torch.set_num_threads(1)
    encoder = load_encoder(model)
    corpus: Corpus = open_corpus([str(data)], None, encoder.tokenizer, LENGTH)
    config = make_config({"data": str(data), "batch_size": batch_size})
    work = work_of(encoder, make_batches(config, encoder, Texts(corpus, None, None)), batch_size)
    folder = tokenised_folder(corpus.fingerprint, encoder.tokenizer, LENGTH)
    disk = sum(path.stat().st_size for path in folder.iterdir()) / len(corpus)
    print(
        f"{torch.get_num_threads()} thread a process, {os.cpu_count()} cores, {os.getloadavg()[0]:.1f} processes busy"
    )
    alone = 0.0
    with tempfile.TemporaryDirectory() as place:
        for processes in range(1, most + 1):
            found = speed(data, model, processes, batch_size, steps, Path(place))
            alone = alone or found
            gathered, summed = moved(work, batch_size, processes)
            print(
                f"{processes} processes: {found:.0f} sentences/s, {found / alone:.2f} times one; each sends "
                f"{gathered / 1e3:.0f} kB of embeddings and {summed / 1e6:.1f} MB of gradients a step"
            )
    print(f"reading: {1e6 * work.read:.1f} us a sentence of the batch, on every process")
    for sentences in (64, 512, 2048):
        print(f"loss of {sentences} sentences: {1e3 * loss_seconds(sentences, work.hidden):.1f} ms, on every process")
    print(f"disk: {disk:.0f} bytes a sentence, {disk:,.0f} GB for a billion")
    print(f"projected, {batch_size} sentences for each GPU of {gpu_speed:.0f} sentences/s:")
    print(projection(work, batch_size, gpu_speed, inside, between))
    for gpus in (8, 64, 512):
        print(f"a billion sentences on {gpus} GPUs at full efficiency: {1e9 / gpu_speed / gpus / 3600:.1f} hours")


if __name__ == "__main__":
    typer.run(main)

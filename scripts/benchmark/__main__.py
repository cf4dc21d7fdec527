"""Measure this program beside sentence-transformers and the bound: a table, one JSON file and one picture.

    pip install -c constraints.txt -e ".[bench]"
    python -m scripts.benchmark --data wikipedia.txt.xz --shape mini

All contenders start from the same weights and learn from the same sentences, cut at the same length, in batches of
the same size. In each round every contender is a new process (see `turns`). After its warm-up steps it takes one step
at a time, in turn with the others and with the matrix products of the bound, so that all of them meet the same state
of the machine. All processes of a round are in memory at once; --contenders chooses fewer.

Sentences per second are the sentences of the text, not their two views. Memory is the peak of the process, and of the
GPU where there is one, without data loader workers.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer

from scripts.benchmark.bound import Products, product_flops, products, training_flops
from scripts.benchmark.contenders import OURS, WARMUP, Contender, Job, chosen_contenders
from scripts.benchmark.inputs import SHAPES, make_model, read_sentences
from scripts.benchmark.machine import machine, machine_line
from scripts.benchmark.ours import train_ours
from scripts.benchmark.peer import train_peer
from scripts.benchmark.plot import plot
from scripts.benchmark.summary import goals, goals_of, profile_table, summarize, table
from scripts.benchmark.turns import ContenderFailed, Report, Running, Turn, multiply_in_turn, train
from simcse_train.errors import InputError

# Every contender's process imports this file. A module that only one of them needs is imported where it is used, so
# that it does not count in the peak memory of the others.

PROFILED = 5  # steps
BOUND = "bound"


@dataclass
class Measured:
    """What all rounds gave."""

    rounds: dict[str, list[list[Report]]] = field(default_factory=dict)  # of each contender: its steps by round
    products: list[list[Report]] = field(default_factory=list)  # the same for the bound
    failures: dict[str, str] = field(default_factory=dict)  # why a contender has no figures


def measure_round(
    compared: Sequence[Contender], job: Job, counts: Products, precision: str, folder: Path, measured: Measured
) -> None:
    """Run one round and add what it gave to `measured`; raises `ContenderFailed` if the bound cannot be measured."""
    running: dict[str, Running] = {}

    def attempt(name: str, action: Callable[[], Report | None]) -> list[Report]:
        try:
            report = action()
        except ContenderFailed as error:
            running.pop(name).end()
            if name == BOUND:
                raise
            measured.failures[name] = str(error)
            return []
        return [] if report is None else [report]

    try:
        # One after another, and each is stopped when it has warmed up.
        running[BOUND] = Running(multiply_in_turn, counts, precision, job=job)
        attempt(BOUND, running[BOUND].wait_until_ready)
        for contender in compared:
            if contender.name not in measured.failures:
                running[contender.name] = _start(contender, job, folder)
                attempt(contender.name, running[contender.name].wait_until_ready)
        reports: dict[str, list[Report]] = {name: [] for name in running}
        for step in range(job.steps):
            names = list(running)
            first = step % len(names)  # each is the first as often as the others
            for name in names[first:] + names[:first]:
                process = running[name]
                reports[name] += attempt(name, lambda process=process: process.take(Turn()))  # type: ignore[misc]
    finally:
        for process in running.values():
            process.end()
    measured.products.append(reports.pop(BOUND))
    for name, steps in reports.items():
        measured.rounds.setdefault(name, []).append(steps)
    for name in measured.failures:
        measured.rounds.pop(name, None)


def profile(contender: Contender, job: Job, folder: Path) -> Report:
    """Return the report of some steps under the profiler, in a process of their own."""
    process = _start(contender, job, folder)
    try:
        process.wait_until_ready()
        return process.take(Turn(min(PROFILED, job.steps), profile=True))
    finally:
        process.end()


def _start(contender: Contender, job: Job, folder: Path) -> Running:
    work = train_ours if contender.trainer == OURS else train_peer
    return Running(train, work, contender, folder / f"{contender.name}-{job.seed}", job=job)


@dataclass(frozen=True)
class Settings:
    """What the user asked for, with every auto replaced."""

    shape: str
    data: Path
    pooling: str
    steps: int
    rounds: int
    batch_size: int
    max_length: int
    threads: int
    device: str
    precision: str
    output: Path


def benchmark(settings: Settings, compared: Sequence[Contender]) -> dict[str, str]:
    """Measure, print, write the JSON file and the picture; return the failures by contender."""
    data, steps, size, precision = settings.data, settings.steps, settings.batch_size, settings.precision
    sentences = read_sentences(data, (WARMUP + steps) * size)
    settings.output.mkdir(parents=True, exist_ok=True)
    # For the processes of the contenders: as many threads for tokenizers as for torch, no hub, no progress bars.
    os.environ |= {"RAYON_NUM_THREADS": str(settings.threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    # A killed process leaves its semaphores to the resource tracker of multiprocessing, which then prints a warning.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    described = machine(settings.device, settings.threads)
    measured = Measured()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        text, model = folder / "text.txt", folder / "model"
        text.write_text("\n".join(sentences) + "\n", encoding="utf-8")
        sizes, lengths = make_model(settings.shape, settings.pooling, settings.max_length, model, sentences)
        job = Job(str(model), str(text), steps, size, settings.max_length, settings.device, settings.threads)
        mean_length = statistics.mean(lengths)
        weights = "its own weights" if settings.shape == "starter" else "random weights, 30,522 tokens"
        layers = f"{sizes['layers']} layers of {sizes['hidden']}"
        typer.echo(f"{settings.shape}: {layers}, {settings.pooling} pooling, {weights}; batches of {size}")
        cut = f"{mean_length:.1f} tokens each (cut at {settings.max_length})"
        typer.echo(f"{data.name}: the first {len(sentences):,} distinct sentences, {cut}")
        typer.echo(machine_line(described, precision))

        cls = settings.pooling == "cls"
        flops_per_sentence = 2 * training_flops(lengths, **sizes, cls=cls) / len(lengths)  # two views
        counts = products(round(2 * size * mean_length), 2 * size, **sizes, cls=cls)
        for number in range(settings.rounds):
            measure_round(compared, replace(job, seed=number), counts, precision, folder, measured)
            summary = summarize(
                compared, measured.rounds, measured.products, size, product_flops(counts), flops_per_sentence
            )
            speeds = "  ".join(f"{name} {row['median']:.1f}" for name, row in summary["rows"].items())
            typer.echo(f"after round {number + 1} of {settings.rounds}: bound {summary['bound']:.1f}  {speeds}")
        ours = next((c for c in reversed(compared) if c.packed and c.name not in measured.failures), None)
        operators = profile(ours, replace(job, seed=settings.rounds), folder).operators if ours else ()

    typer.echo("\n" + table(compared, summary, measured.failures))
    cost, rate = flops_per_sentence / 1e9, statistics.median(summary["products_per_second"]) / 1e9
    per_sentence = f"{cost:.2f} GFLOP per sentence (two views, forward and backward)"
    typer.echo(f"bound: {per_sentence} at {rate:,.0f} GFLOP/s in {precision}")
    typer.echo("\n" + goals(summary, goals_of(described["capabilities"])))
    if operators:
        typer.echo("\nThe time of a step (simcse-train, a run of its own under the profiler)")
        typer.echo(profile_table(operators))
    target = settings.output / f"{settings.shape}-{data.name.split('.')[0]}"
    record = {
        "shape": {"name": settings.shape, **sizes, "pooling": settings.pooling},
        "text": {"name": data.name, "sentences": len(sentences), "mean_tokens": mean_length},
        "settings": {
            "steps": steps,
            "warmup": WARMUP,
            "batch_size": size,
            "max_length": settings.max_length,
            "precision": precision,
        },
        "machine": described,
        "contenders": [asdict(contender) for contender in compared],
        "rounds": {name: [[asdict(r) for r in steps] for steps in each] for name, each in measured.rounds.items()},
        "product_rounds": [[asdict(report) for report in steps] for steps in measured.products],
        "failures": measured.failures,
        "flops_per_sentence": flops_per_sentence,
        **summary,
        "goals": goals_of(described["capabilities"]),
        "profile": operators,
    }
    target.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    title = f"SimCSE training of a BERT with {sizes['layers']} layers of {sizes['hidden']}"
    subtitle = f"{data.name}, {mean_length:.1f} tokens a sentence, batches of {size}, {settings.pooling} pooling\n"
    subtitle += machine_line(described, precision)
    plot(compared, summary, title, subtitle, target.with_suffix(".png"))
    typer.echo(f"\n{target}.json and .png")
    return measured.failures


def main(
    data: Annotated[Path, typer.Option(help="Text to learn from, as simcse-train takes it.")],
    shape: Annotated[str, typer.Option(help="starter, mini (6 x 384) or base (12 x 768).")] = "mini",
    pooling: Annotated[
        str, typer.Option(help="cls, mean, or auto: mean for the starter, else cls, as in the paper.")
    ] = "auto",
    steps: Annotated[int, typer.Option(min=1, help=f"Timed steps of a round, after {WARMUP} that are not.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="How often every contender starts anew.")] = 3,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    max_length: Annotated[int, typer.Option(min=3)] = 32,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each contender (default: torch's own choice).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or fp16: of this program, and of the peer from peer-half on.")
    ] = "auto",
    contenders: Annotated[
        str | None, typer.Option(help="Only these rows, separated by commas, such as peer,kernels.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file and the picture.")] = Path("runs/benchmark"),
) -> None:
    """Measure the speed of this program beside sentence-transformers and beside what the machine could do."""
    from simcse_train.training.plan import find_device, find_precision  # the program's own choice is measured

    try:
        for option, value, known in (
            ("--shape", shape, tuple(SHAPES)),
            ("--pooling", pooling, ("auto", "cls", "mean")),
            ("--device", device, ("auto", "cpu", "cuda")),
            ("--precision", precision, ("auto", "fp32", "bf16", "fp16")),
        ):
            if value not in known:
                raise InputError(f"{option} {value} must be one of {', '.join(known)}.")
        if not find_spec("matplotlib"):
            raise InputError('The picture needs matplotlib: pip install -c constraints.txt -e ".[bench]"')
        device = find_device(device)
        settings = Settings(
            shape=shape,
            data=data,
            pooling={"auto": "mean" if shape == "starter" else "cls"}.get(pooling, pooling),
            steps=steps,
            rounds=rounds,
            batch_size=batch_size,
            max_length=max_length,
            threads=threads or torch.get_num_threads(),
            device=device,
            precision=find_precision(precision, device),
            output=output,
        )
        failures = benchmark(settings, chosen_contenders(contenders, settings.precision, device))
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

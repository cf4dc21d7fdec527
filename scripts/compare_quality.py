"""Print whether this program and sentence-transformers' own SimCSE recipe learn equally well.

    pip install -c constraints.txt -e ".[bench]"
    python scripts/compare_quality.py --data ../shared/data --steps 100

Both start from the same weights, learn from the same sentences for the same number of steps with the same settings
(batch 64, rate 3e-5 falling linearly to 0, max length 32, gradient norm 1), and are scored on STS-B test by the same
function. sentence-transformers trains with `MultipleNegativesRankingLoss` at scale 20 on pairs of a sentence and
itself, this program with `--objective infonce --projection off`. The order of the data and the dropout noise differ,
so several seeds are needed. This program is measured with packed batches, on compiled kernels where they fit, with the
same without kernels, and with padded batches. These draw other noise and must end within the spread of the seeds; their
losses are printed by quarters of the run, as the range over the seeds. `--trainers` chooses fewer.

The data folder holds `corpora/wikipedia-en.txt.xz` (a sentence per line) and `sts/STSBenchmark/sts-test.csv`.
"""

from __future__ import annotations

import itertools
import lzma
import platform
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import numpy as np
import torch
import typer
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from simcse_train import load_encoder, train
from simcse_train.cli.app import import_quietly
from simcse_train.config import make_config
from simcse_train.data.pairs import read_pairs
from simcse_train.encoders.loading import STARTER_FOLDER
from simcse_train.evaluation.sts import similarity_score
from simcse_train.runs.metrics import read_metrics

PEER = "sentence-transformers"
OURS: dict[str, dict[str, Any]] = {
    "simcse-train": {"packed": True, "kernels": "auto"},
    "without-kernels": {"packed": True, "kernels": "off"},
    "padded": {"packed": False, "kernels": "off"},
}
TRAINERS = (PEER, *OURS)
QUARTERS = 4


def with_sentence_transformers(model: Path, sentences: list[str], steps: int, seed: int, folder: Path) -> Path:
    """Train with the recipe of sentence-transformers and return the folder of the saved model."""
    encoder = SentenceTransformer(str(model), device="cpu")
    evaluated_length, encoder.max_seq_length = encoder.max_seq_length, 32
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=64,
        learning_rate=3e-5,
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    dataset = Dataset.from_dict({"anchor": sentences, "positive": sentences})
    loss = MultipleNegativesRankingLoss(encoder, scale=20.0)
    SentenceTransformerTrainer(model=encoder, args=arguments, train_dataset=dataset, loss=loss).train()
    encoder.max_seq_length = evaluated_length
    encoder.save(str(folder / "peer"))
    return folder / "peer"


def with_this_program(
    model: Path, text: Path, steps: int, seed: int, folder: Path, *, packed: bool, kernels: str
) -> tuple[Path, list[float]]:
    """Train with this program on the same objective; return the run folder and the mean loss of each quarter."""
    settings = {"data": str(text), "model": str(model), "output": str(folder), "max_steps": steps, "seed": seed}
    settings |= {"objective": "infonce", "projection": "off", "kernels": kernels, "log_every": 1}
    run = train(make_config(settings), load_encoder(model, packed=packed)).folder
    losses = [line["loss"] for line in read_metrics(run) if "loss" in line]
    return run, [float(np.mean(part)) for part in np.array_split(losses, QUARTERS)]


def main(
    data: Annotated[Path, typer.Option(help="Folder with corpora/wikipedia-en.txt.xz and sts/STSBenchmark.")],
    model: Annotated[Path, typer.Option(help="Starting weights.")] = STARTER_FOLDER,
    steps: int = 100,
    sentences: int = 20_000,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "1,2,3,4,5",
    trainers: Annotated[str, typer.Option(help=f"Some of {', '.join(TRAINERS)}, separated by commas.")] = ",".join(
        TRAINERS
    ),
) -> None:
    """Compare what this program and sentence-transformers learn."""
    import_quietly()
    chosen_trainers = trainers.split(",")
    if unknown := [trainer for trainer in chosen_trainers if trainer not in TRAINERS]:
        typer.echo(f"--trainers {unknown[0]} must be one of {', '.join(TRAINERS)}.", err=True)
        raise typer.Exit(2)
    pairs = read_pairs(data / "sts/STSBenchmark/sts-test.csv")
    with lzma.open(data / "corpora/wikipedia-en.txt.xz", "rt", encoding="utf-8", newline="\n") as stream:
        chosen = [line.strip() for line in itertools.islice(stream, sentences)]
    start = similarity_score(load_encoder(model), pairs)
    typer.echo(
        f"{platform.machine()}, {torch.get_num_threads()} threads, {steps} steps of 64, STS-B test before {start:.2f}"
    )
    scores: dict[str, list[float]] = {trainer: [] for trainer in chosen_trainers}
    losses: dict[str, list[list[float]]] = {trainer: [] for trainer in chosen_trainers if trainer != PEER}
    with tempfile.TemporaryDirectory() as name:
        text = Path(name) / "text.txt"
        text.write_text("\n".join(chosen) + "\n", encoding="utf-8")
        for seed in map(int, seeds.split(",")):
            folder = Path(name) / str(seed)
            folder.mkdir()
            for trainer, values in scores.items():
                if trainer == PEER:
                    path = with_sentence_transformers(model, chosen, steps, seed, folder)
                else:
                    path, quarters = with_this_program(model, text, steps, seed, folder / trainer, **OURS[trainer])
                    losses[trainer].append(quarters)
                values.append(similarity_score(load_encoder(path), pairs) or 0.0)
            typer.echo(
                f"seed {seed}  " + "  ".join(f"{trainer} {values[-1]:.3f}" for trainer, values in scores.items())
            )
    for trainer, values in scores.items():
        spread = f"{stdev(values):.3f}" if len(values) > 1 else "unknown"
        span = f"range {min(values):.3f} to {max(values):.3f}"
        typer.echo(f"{trainer:<22} mean {mean(values):.3f}  standard deviation {spread}  {span}")
    for trainer, runs in losses.items():
        ranges = ", ".join(f"{min(quarter):.3g} to {max(quarter):.3g}" for quarter in zip(*runs, strict=True))
        typer.echo(f"{trainer:<22} loss by quarters of the run: {ranges}")
    for first, second in itertools.combinations(scores, 2):
        typer.echo(
            f"difference of the means of {first} and {second}: {abs(mean(scores[first]) - mean(scores[second])):.3f}"
        )


if __name__ == "__main__":
    typer.run(main)

"""Print what the bundled encoder scores, alone and after SimCSE: the figures of its README.

    pip install -c constraints.txt -e ".[bench]"
    python scripts/measure_starter.py --data ../shared/data --runs runs/starter

Trains once for each seed on Wikipedia with the program's defaults (runs that exist already are read, not repeated),
then on the example text with the quickstart's settings. STS-B test is scored at the checkpoint of 100,032 sentences
and at the end. For the quickstart it also prints the share of the time, without imports, that the training steps
took.

The data folder holds `corpora/wikipedia-en.txt.xz` (a sentence per line) and `sts/STSBenchmark/` with dev and test.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import numpy as np
import torch
import typer
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from simcse_train import load_encoder, train
from simcse_train.cli.app import import_quietly
from simcse_train.config import make_config
from simcse_train.config_file import read_settings
from simcse_train.data.pairs import Pair, read_pairs
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import STARTER_FOLDER
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.evaluation.sts import similarity_score, spearman
from simcse_train.export.folder import choose_checkpoint
from simcse_train.runs.checkpoint import load_state
from simcse_train.runs.folder import checkpoint_path, checkpoints
from simcse_train.runs.metrics import read_metrics

STEPS, HUNDRED_THOUSAND = 2000, 1563  # steps of 64 sentences; the second is 100,032 sentences


def tfidf_score(pairs: list[Pair]) -> float:
    """Return Spearman x 100 of TF-IDF cosines."""
    vectorizer = TfidfVectorizer().fit([sentence for pair in pairs for sentence in pair[:2]])
    first, second = (vectorizer.transform([pair[i] for pair in pairs]) for i in (0, 1))
    cosines = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    return spearman(cosines, np.array([pair.score for pair in pairs])) or 0.0


def random_encoder(seed: int) -> Encoder:
    """Return an encoder of the starter's shape and tokenizer with random weights."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(AutoConfig.from_pretrained(STARTER_FOLDER))
    return Encoder(model, SentenceTokenizer(AutoTokenizer.from_pretrained(STARTER_FOLDER)), "mean", 64)


def score(path: Path | str, pairs: list[Pair]) -> float:
    """Return an encoder's Spearman x 100."""
    return similarity_score(load_encoder(path), pairs) or 0.0


def seconds_in_steps(run: Path) -> float:
    """Return the seconds that the logged steps of a run took, from its sentences per second."""
    state = load_state(checkpoints(run)[-1])
    size = state.config().batch_size
    epoch = [min(size, state.sentences - start) for start in range(0, state.sentences - 1, size)]  # size of each batch
    seconds, done = 0.0, 0
    for record in read_metrics(run):
        if "sentences_per_second" in record:
            sentences = sum(epoch[step % len(epoch)] for step in range(done, record["step"]))
            seconds += sentences / record["sentences_per_second"]
            done = record["step"]
    return seconds


def line(name: str, values: list[float]) -> None:
    """Print a row of the table."""
    spread = f" +- {stdev(values):.2f}" if len(values) > 1 else ""
    typer.echo(f"{name:<44}{mean(values):>8.2f}{spread}   " + " ".join(f"{value:.2f}" for value in values))


def main(
    data: Annotated[Path, typer.Option(help="Folder with corpora/wikipedia-en.txt.xz and sts/STSBenchmark.")],
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/starter"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "1,2,3,4,5",
    quickstart_only: Annotated[
        bool, typer.Option(help="Measure the quickstart only, without the Wikipedia runs.")
    ] = False,
) -> None:
    """Measure the bundled encoder."""
    import_quietly()
    numbers = [int(seed) for seed in seeds.split(",")]
    pairs = read_pairs(data / "sts/STSBenchmark/sts-test.csv")
    typer.echo(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, seeds {seeds}")
    typer.echo("STS-B test, Spearman x 100")
    line("TF-IDF cosine", [tfidf_score(pairs)])
    line("random weights", [similarity_score(random_encoder(seed), pairs) or 0.0 for seed in numbers])
    line("starter", [score("starter", pairs)])
    if not quickstart_only:
        hundred, best, final, dev = [], [], [], []
        for seed in numbers:
            folder = runs / f"wiki{seed}"
            if not checkpoint_path(folder, HUNDRED_THOUSAND).is_dir():
                settings = {
                    "data": str(data / "corpora/wikipedia-en.txt.xz"),
                    "eval": str(data / "sts/STSBenchmark/sts-dev.csv"),
                    "output": str(folder),
                    "max_steps": STEPS,
                    "save_every": HUNDRED_THOUSAND,
                    "keep": 5,
                    "seed": seed,
                }
                train(make_config(settings))
            hundred.append(score(checkpoint_path(folder, HUNDRED_THOUSAND), pairs))
            best.append(score(choose_checkpoint(folder, checkpoint_path(folder, HUNDRED_THOUSAND), None), pairs))
            if checkpoint_path(folder, STEPS).is_dir():
                final.append(score(checkpoint_path(folder, STEPS), pairs))
                dev.append(score(folder / "encoder", read_pairs(data / "sts/STSBenchmark/sts-dev.csv")))
        line("after 100,032 sentences of Wikipedia", hundred)
        line("the best of them by STS-B dev", best)
        line("after 2000 steps", final)
        line("STS-B dev, starter", [score("starter", read_pairs(data / "sts/STSBenchmark/sts-dev.csv"))])
        line("STS-B dev, the exported encoder", dev)
    typer.echo("Quickstart, examples/pairs.tsv and uniformity")
    settings = read_settings(Path("configs/quickstart.yaml"))
    for seed in numbers:
        began = time.perf_counter()
        run = train(make_config(settings | {"seed": seed, "output": str(runs / f"quickstart{seed}")}))
        took = time.perf_counter() - began
        changes = [f"{name} {run.before[name]:.4f} -> {run.after[name]:.4f}" for name in ("score", "uniformity")]
        share = seconds_in_steps(run.folder) / took
        changes.append(f"STS-B test {similarity_score(run.encoder, pairs):.2f}")
        changes.append(f"{took:.1f} s, {share:.0%} of it in steps")
        typer.echo(f"seed {seed}: " + ", ".join(changes))


if __name__ == "__main__":
    typer.run(main)

r"""What 200 labelled pairs are worth: train with `--pairs` on pairs of one intent, measure on other questions.

    python scripts/measure_pairs.py --domains ../shared/data/domains --model ENCODER \
        --set epochs=10 learning_rate=1e-4 mask_similar=0.985

Reads DOMAIN-train.tsv.gz and DOMAIN-test.tsv.gz (a label, a tab, a sentence). For each seed it draws the pairs from
the training part, trains, and prints two measures of the test part before and after: how often the nearest other
sentence has the same label, and the share of the ten nearest that has it (both in per cent).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import tempfile
from pathlib import Path

import numpy as np

from simcse_train.config import make_config
from simcse_train.encoders.loading import load_encoder
from simcse_train.evaluation.labels import score_neighbours
from simcse_train.training.start import train


def read(path: Path) -> tuple[list[str], list[str]]:
    """Return the labels and the sentences of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [line.rstrip("\n").split("\t", 1) for line in stream]
    return [label for label, _ in rows], [sentence for _, sentence in rows]


def draw_pairs(labels: list[str], sentences: list[str], count: int, seed: int) -> list[tuple[str, str]]:
    """Return as many pairs of different sentences with one label; each label is as likely as it is frequent."""
    random = np.random.default_rng(seed)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        first, second = random.integers(len(sentences), size=2)
        if labels[first] == labels[second] and sentences[first] != sentences[second]:
            found.append((sentences[first], sentences[second]))
    return found


def main() -> None:
    """Print a line before training and one per seed, then the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=Path, required=True, help="folder with DOMAIN-train.tsv.gz and -test.tsv.gz")
    parser.add_argument("--domain", default="banking77")
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of the training")
    arguments = parser.parse_args()
    train_part, test_part = (
        read(arguments.domains / f"{arguments.domain}-{part}.tsv.gz") for part in ("train", "test")
    )
    labels, sentences = test_part
    before = score_neighbours(load_encoder(arguments.model).encode(sentences), labels)
    print(f"{arguments.domain}, {len(test_part[0]):,} test sentences, {arguments.pairs} pairs of the training part")
    print(f"before        nearest {before[0]:.2f}  precision@10 {before[1]:.2f}", flush=True)
    gains = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pairs.csv"
            with file.open("w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([("anchor", "positive"), *draw_pairs(*train_part, arguments.pairs, seed)])
            settings = {"pairs": str(file), "model": arguments.model, "seed": seed, "output": str(Path(folder) / "run")}
            given = dict(entry.split("=", 1) for entry in arguments.set)
            trained = train(make_config({**settings, **given})).encoder
            after = score_neighbours(trained.encode(sentences), labels)
        gains.append([after[0] - before[0], after[1] - before[1]])
        line = f"nearest {after[0]:.2f} ({gains[-1][0]:+.2f})  precision@10 {after[1]:.2f} ({gains[-1][1]:+.2f})"
        print(f"seed {seed}        {line}", flush=True)
    nearest_gain, precision_gain = np.mean(gains, axis=0)
    print(f"mean gain     nearest {nearest_gain:+.2f}  precision@10 {precision_gain:+.2f}")


if __name__ == "__main__":
    main()

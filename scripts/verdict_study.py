"""Does training help, and does the program say so? Runs of the program with the labelled truth beside its own signals.

    python scripts/verdict_study.py --data ../shared/data --encoder starter --encoder FOLDER --out study.jsonl
    python scripts/verdict_study.py --read study.jsonl

Each run trains without labels on a text, then the truth is measured. On a labelled domain (DOMAIN-train.tsv.gz, the
labels only judge) it is how often the nearest other sentence has the same label, precision@10 and NMI of k-means.
Further texts have labels by the way they were made: five descriptions of one image (captions-en), a hundred successive
entries of a dictionary in the order of meaning (wordnet-definitions, wordnet-headed), forty successive sentences of
film reviews, plays or speeches (movie_reviews, shakespeare, state_union). On Wikipedia the truth is STS-B test.
`DOMAIN:PATTERN` is the part of a domain whose labels match a regular expression, such as `banking77:fee|charge`, a text
about one thing.

A line of the output holds the run, the truth before and after, and what the program measured and said. `weak:ENCODER`
is a copy of an encoder with noise in its weights, `random:ENCODER` one with new weights. Prints two tables: the mean
change of each measure by domain, encoder and objective over the seeds, and how often the verdict is right.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import lzma
import random
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from transformers import AutoModel

from simcse_train.config import make_config
from simcse_train.data.pairs import read_pairs
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.modules import MODULES
from simcse_train.encoders.saving import save_encoder
from simcse_train.evaluation.labels import score_neighbours
from simcse_train.evaluation.sts import similarity_score
from simcse_train.report.verdict import judge
from simcse_train.runs.metrics import read_metrics
from simcse_train.training.start import train

WIKIPEDIA = "wikipedia-en"
CLUSTERINGS = 10
MANY_LABELS = 300  # beyond that, k-means with a cluster a label takes minutes and says little
IMAGES = 29_000  # of captions-en, whose descriptions stand in five passes through the images
# Texts in which a label is a block of successive lines: how many lines to read, how many blocks, lines in each.
BLOCKS: dict[str, tuple[int | None, int, int]] = {
    "wordnet-definitions": (80_000, 100, 100),  # the first are nouns
    "wordnet-headed": (80_000, 100, 100),
    "movie_reviews": (None, 250, 40),
    "state_union": (None, 250, 40),
    "shakespeare": (None, 250, 40),
}
CLEAR = 1.0  # points of mean change from which the truth is clear


def read_text(data: Path, name: str, lines: int) -> tuple[list[str], list[str]]:
    """Return the sentences of a text and their labels, no labels for Wikipedia."""
    if name == WIKIPEDIA:
        return _lines(data / "corpora" / f"{name}.txt.xz", lines), []
    if name == "captions-en":
        passes = np.array(_lines(data / "corpora" / f"{name}.txt.gz"))[: 5 * IMAGES].reshape(5, IMAGES)
        return passes[:, :2000].T.flatten().tolist(), np.arange(2000).repeat(5).astype(str).tolist()
    if name in BLOCKS:
        read, count, size = BLOCKS[name]
        return _blocks(_lines(data / "corpora" / f"{name}.txt.gz", read), count, size)
    domain, _, pattern = name.partition(":")
    rows = [line.split("\t", 1) for line in _lines(data / "domains" / f"{domain}-train.tsv.gz")]
    rows = [row for row in rows if re.search(pattern, row[0])]
    return [sentence for _, sentence in rows], [label for label, _ in rows]


def _lines(path: Path, count: int | None = None) -> list[str]:
    with (lzma.open if path.suffix == ".xz" else gzip.open)(path, "rt", encoding="utf-8") as stream:
        return [line.strip() for line in itertools.islice(stream, count)]


def _blocks(lines: list[str], count: int, size: int) -> tuple[list[str], list[str]]:
    """Return `count` random blocks of successive lines, and the number of its block for each line."""
    blocks = random.Random(0).sample(range(len(lines) // size), count)
    return [lines[block * size + row] for block in blocks for row in range(size)], [
        str(b) for b in blocks for _ in range(size)
    ]


def make_encoder(name: str, folder: Path) -> str:
    """Return the folder of an encoder, made weaker or random where its name says so."""
    kind, _, base = name.rpartition(":")
    if not kind:
        return name
    encoder = load_encoder(base)
    torch.manual_seed(0)
    with torch.no_grad():
        if kind == "random":
            encoder.model = AutoModel.from_config(encoder.model.config)
        else:
            for parameter in encoder.model.parameters():
                if parameter.ndim > 1:
                    parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.5)
    save_encoder(encoder, folder)
    (folder / MODULES).unlink()  # it was not trained for sentences
    return str(folder)


def truth(encoder: Encoder, data: Path, name: str, sentences: list[str], labels: list[str]) -> dict[str, float]:
    """Return the labelled measures, x 100."""
    if name == WIKIPEDIA:
        score = similarity_score(encoder, read_pairs(data / "sts" / "STSBenchmark" / "sts-test.csv"))
        return {"stsb": score or 0.0}
    # Evenly spaced, but a prefix where labels are small: spacing would tear the members of a label apart.
    count = min(4000, len(sentences))
    many = len(set(labels)) > MANY_LABELS
    chosen = np.arange(count) if many else np.linspace(0, len(sentences) - 1, count, dtype=np.int64)
    embeddings, names = encoder.encode([sentences[i] for i in chosen]), [labels[i] for i in chosen]
    found = dict(zip(("nearest", "precision@10"), score_neighbours(embeddings, names), strict=True))
    if len(set(names)) > MANY_LABELS:
        return found
    # One k-means run differs from the next by a point; the mean of several does not.
    runs = (KMeans(len(set(names)), n_init=1, random_state=s).fit_predict(embeddings) for s in range(CLUSTERINGS))
    found["NMI"] = 100 * float(np.mean([normalized_mutual_info_score(names, clusters) for clusters in runs]))
    return found


def study(arguments: argparse.Namespace) -> None:
    """Train all combinations and append a line for each to the output."""
    for name, text in itertools.product(arguments.encoder, arguments.text):
        with tempfile.TemporaryDirectory() as folder:
            model = make_encoder(name, Path(folder) / "model")
            sentences, labels = read_text(arguments.data, text, arguments.lines)
            corpus = Path(folder) / "corpus.txt"
            corpus.write_text("".join(" ".join(s.split()) + "\n" for s in sentences), encoding="utf-8")
            before = truth(load_encoder(model), arguments.data, text, sentences, labels)
            for objective, seed in itertools.product(arguments.objective, arguments.seeds):
                settings: dict[str, Any] = {"data": str(corpus), "model": model, "seed": seed, "objective": objective}
                settings["output"] = f"{folder}/{objective}-{seed}"
                if arguments.max_steps:
                    settings["max_steps"] = arguments.max_steps
                given = dict(entry.split("=", 1) for entry in arguments.set)
                run = train(make_config({**settings, **given}))
                line = {
                    "encoder": Path(name).name,
                    "text": text,
                    "objective": objective,
                    "seed": seed,
                    **given,
                    "truth_before": before,
                    "truth_after": truth(run.encoder, arguments.data, text, sentences, labels),
                    "measured": [entry for entry in read_metrics(run.folder) if "uniformity" in entry],
                }
                last = load_encoder(sorted((run.folder / "checkpoints").iterdir())[-1])
                line["truth_last"] = truth(last, arguments.data, text, sentences, labels)
                with arguments.out.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
                print(json.dumps({k: v for k, v in line.items() if k != "measured"}), flush=True)


def report(lines: list[dict[str, Any]]) -> None:
    """Print both tables: the encoder that a run exports, and the verdict on its last step."""
    lines = [{**line, "text": line["text"].replace("|", "\\|")} for line in lines]  # it ends a cell of a table
    groups = defaultdict(list)
    for line in lines:
        groups[line["text"], line["encoder"], line["objective"]].append(line)
    print("| text | encoder | objective | seeds | exported: change of each measure (lowest) | last step |")
    print("|---|---|---|---|---|---|")
    for (text, encoder, objective), runs in groups.items():
        exported, last = (
            ", ".join(
                f"{name} {np.mean(changes):+.2f} ({min(changes):+.2f})"
                for name in runs[0]["truth_before"]
                if (changes := [run[key][name] - run["truth_before"][name] for run in runs])
            )
            for key in ("truth_after", "truth_last")
        )
        print(f"| {text} | {encoder} | {objective} | {len(runs)} | {exported} | {last} |")
    right = clear = 0
    dangerous = []
    print("\n| text | encoder | objective | seed | true change | verdict |\n|---|---|---|---|---|---|")
    for line in lines:
        change = float(np.mean([line["truth_last"][name] - line["truth_before"][name] for name in line["truth_last"]]))
        found = judge(line["measured"][0], line["measured"][-1])
        is_clear = abs(change) > CLEAR
        clear += is_clear
        right += is_clear and found.outcome == ("helped" if change > 0 else "harmed")
        if found.outcome == "helped" and change < -2:
            dangerous.append(line)
        mark = "" if is_clear else " (not clear)"
        print(
            f"| {line['text']} | {line['encoder']} | {line['objective']} | {line['seed']} | {change:+.2f}{mark} | "
            f"{found.outcome} |"
        )
    print(
        f"\nRight in {right} of {clear} clear rows; 'helped' where it fell by more than two points: {len(dangerous)}."
    )


def main() -> None:
    """Run the study, or print the tables of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with corpora, domains and sts")
    parser.add_argument("--encoder", action="append", default=[], help="repeat for several")
    parser.add_argument("--text", nargs="+", default=["banking77", "stackoverflow", WIKIPEDIA])
    parser.add_argument("--objective", nargs="+", default=["auto", "ntxent"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--lines", type=int, default=20_000, help="lines of Wikipedia")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of the training")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path, help="only print the tables of this file")
    arguments = parser.parse_args()
    if not arguments.read:
        study(arguments)
    source = arguments.read or arguments.out
    report([json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main()

"""Semantic textual similarity: the seven STS sets, or a file of labelled pairs.

The score of a set of pairs is Spearman's rank correlation between the cosines of the embeddings and the labels, times
100 (Gao, Yao & Chen 2021, appendix B: no regressor, all subsets of a year concatenated).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from simcse_train.data.files import open_file, read_lines
from simcse_train.data.pairs import Pair, parse_pair, read_pairs
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError

# The subsets of each year (SentEval); a year's score is over all of them together.
SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: a set, its score x 100 (None where the set is missing or can't be ranked), and what is missing."""

    name: str
    score: float | None
    pairs: int
    missing: tuple[str, ...] = ()


def evaluate(encoder: Encoder, data: Path, *, show_progress: bool = False) -> list[Row]:
    """Score an encoder on a file of pairs, or on a folder with the STS sets (all of SentEval's `data/downstream`, or some).

    Raises `InputError` if there is nothing to read.
    """
    if not data.exists():
        raise InputError(f"--data {data}: there is no such file or folder. Check the path.")
    if data.is_file():
        pairs = read_pairs(data)
        return [Row(data.stem, similarity_score(encoder, pairs, show_progress=show_progress), len(pairs))]
    rows = []
    for name, (pairs, missing) in _sts_sets(data).items():
        score = similarity_score(encoder, pairs, show_progress=show_progress) if pairs else None
        rows.append(Row(name, score, len(pairs), missing))
    if not any(row.pairs for row in rows):
        raise InputError(
            f"--data {data} holds none of the STS sets. Give SentEval's data/downstream, a folder with "
            "STSBenchmark/sts-test.csv, or a file of your own pairs."
        )
    scores = [row.score for row in rows if row.score is not None and not row.missing]
    if len(scores) == len(rows):
        rows.append(Row("average", sum(scores) / len(scores), sum(row.pairs for row in rows)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a plain-text table."""
    lines = [f"{'set':<14}{'Spearman x 100':>15}{'pairs':>9}"]
    for row in rows:
        score = "missing" if not row.pairs else "undefined" if row.score is None else f"{row.score:.2f}"
        gaps = f"  without {', '.join(row.missing)}" if row.missing and row.pairs else ""
        lines.append(f"{row.name:<14}{score:>15}{row.pairs:>9}{gaps}")
    if any(row.missing for row in rows):
        lines.append("No average: it is defined over all seven sets.")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> str:
    """Return the rows as one JSON object, by set."""
    return json.dumps({row.name: {k: v for k, v in asdict(row).items() if k != "name"} for row in rows})


def similarity_score(encoder: Encoder, pairs: Sequence[Pair], *, show_progress: bool = False) -> float | None:
    """Return Spearman x 100 of cosines against labels; None where one of them is constant and has no ranks."""
    sentences = list(dict.fromkeys(sentence for pair in pairs for sentence in pair[:2]))
    embeddings = encoder.encode(sentences, show_progress=show_progress)  # normalised: a product is a cosine
    place = {sentence: i for i, sentence in enumerate(sentences)}
    first = embeddings[[place[pair.first] for pair in pairs]]
    second = embeddings[[place[pair.second] for pair in pairs]]
    return spearman((first * second).sum(axis=1), np.array([pair.score for pair in pairs]))


def spearman(predicted: NDArray[np.floating], labels: NDArray[np.floating]) -> float | None:
    """Return Spearman's rank correlation x 100; None if either side is constant or not finite."""
    if len(labels) < 2 or np.ptp(predicted) == 0 or np.ptp(labels) == 0 or not np.isfinite(predicted).all():
        return None
    return float(spearmanr(predicted, labels).statistic) * 100


def _sts_sets(folder: Path) -> dict[str, tuple[list[Pair], tuple[str, ...]]]:
    """Return the pairs of each of the seven sets and the subsets that are missing."""
    sts = folder / "STS" if (folder / "STS").is_dir() else folder
    sets: dict[str, tuple[list[Pair], tuple[str, ...]]] = {}
    for year, subsets in SUBSETS.items():
        pairs: list[Pair] = []
        missing = []
        for subset in subsets:
            sentences = sts / f"{year}-en-test" / f"STS.input.{subset}.txt"
            gold = sts / f"{year}-en-test" / f"STS.gs.{subset}.txt"
            if sentences.is_file() and gold.is_file():
                pairs += _subset(sentences, gold)
            else:
                missing.append(subset)
        sets[year] = (pairs, tuple(missing))
    benchmark = sts / "STSBenchmark" / "sts-test.csv"
    sick = folder / "SICK" / "SICK_test_annotated.txt"
    sets["STS-B"] = (read_pairs(benchmark), ()) if benchmark.is_file() else ([], ("STSBenchmark/sts-test.csv",))
    sets["SICK-R"] = (_sick(sick), ()) if sick.is_file() else ([], ("SICK/SICK_test_annotated.txt",))
    return sets


def _subset(sentences: Path, gold: Path) -> list[Pair]:
    with open_file(sentences) as raw, open_file(gold) as scores:
        texts = [line for _, line in read_lines(raw, sentences)]
        labels = [line for _, line in read_lines(scores, gold)]
    if len(texts) != len(labels):
        raise InputError(
            f"{sentences} has {len(texts)} lines and {gold.name} {len(labels)}; they must match line by line."
        )
    pairs = []
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
        fields = text.split("\t")
        if len(fields) < 2:
            raise InputError(f"{sentences}, line {number} does not hold two sentences with a tab between them.")
        if (pair := parse_pair([fields[0], fields[1], label], gold, number)) is not None:
            pairs.append(pair)
    return pairs


def _sick(path: Path) -> list[Pair]:
    with open_file(path) as raw:
        lines = [(number, line.split("\t")) for number, line in read_lines(raw, path) if line.strip()]
    pairs = [parse_pair(record[1:4], path, number) for number, record in lines[1:] if len(record) >= 4]
    return [pair for pair in pairs if pair is not None]

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

from simcse_train.data.files import is_saved_data_set, one_file
from simcse_train.data.lines import plain_lines
from simcse_train.data.pairs import Pair, Place, parse_pair, read_pairs
from simcse_train.data.source import named
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError
from simcse_train.search.embeddings import encode_together

# The subsets of each year (SentEval); a year's score is over all of them together.
SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
ROUNDING = 1e-6  # cosines that differ by less differ by the rounding of float32 alone: their ranks mean nothing


@dataclass(frozen=True)
class Row:
    """One line of the table.

    A set, its score x 100 (None where the set is missing or can't be ranked), and what is missing.
    """

    name: str
    score: float | None
    pairs: int
    missing: tuple[str, ...] = ()
    reason: str | None = None  # why there is no score, where there are pairs


def evaluate(encoder: Encoder, data: Path, encoding: str | None = None, *, show_progress: bool = False) -> list[Row]:
    """Score an encoder on a file of pairs, or on a folder with the STS sets.

    The folder is SentEval's `data/downstream`, with all sets or some. `encoding` is that of a file of pairs; without
    it, it is told from the text. Raises `InputError` if there is nothing to read, or if the pairs of a file can't be
    ranked.
    """
    if not data.exists():
        raise InputError(f"--data {data}: there is no such file or folder. Check the path.")
    if not data.is_dir() or is_saved_data_set(data):
        pairs = read_pairs(one_file(data, "--data"), "--data", encoding)
        return [_row(encoder, data.stem, pairs, (), show_progress)]
    if encoding is not None:
        raise InputError(
            f"--encoding {encoding}: --data {data} is a folder of STS sets, which are UTF-8. Leave it out."
        )
    rows = [_row(encoder, name, pairs, missing, show_progress) for name, (pairs, missing) in _sts_sets(data).items()]
    if not any(row.pairs for row in rows):
        raise InputError(
            f"--data {data} holds none of the STS sets. Give SentEval's data/downstream, a folder with "
            "STSBenchmark/sts-test.csv (not that folder itself, but the one above it), or a file of your own pairs."
        )
    scores = [row.score for row in rows if row.score is not None and not row.missing]
    if len(scores) == len(rows):
        rows.append(Row("average", sum(scores) / len(scores), sum(row.pairs for row in rows)))
    return rows


def _row(encoder: Encoder, name: str, pairs: list[Pair], missing: tuple[str, ...], show_progress: bool) -> Row:
    score = similarity_score(encoder, pairs, show_progress=show_progress) if pairs else None
    reason = None
    if pairs and score is None:
        equal = len({pair.score for pair in pairs}) < 2
        reason = (
            f"all {len(pairs)} pairs have the same label"
            if equal
            else "the encoder gives all pairs the same cosine, or one that is not a number"
        )
    return Row(name, score, len(pairs), missing, reason)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a plain-text table."""
    lines = [f"{'set':<14}{'Spearman x 100':>15}{'pairs':>9}"]
    for row in rows:
        score = "missing" if not row.pairs else "undefined" if row.score is None else f"{row.score:.2f}"
        gaps = f"  without {', '.join(row.missing)}" if row.missing and row.pairs else ""
        reason = f"  {row.reason}" if row.reason else ""
        lines.append(f"{row.name:<14}{score:>15}{row.pairs:>9}{gaps}{reason}")
    if any(row.missing for row in rows):
        lines.append("No average: it is defined over all seven sets.")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> str:
    """Return the rows as one JSON object, by set."""
    return json.dumps({row.name: {k: v for k, v in asdict(row).items() if k != "name"} for row in rows})


def similarity_score(encoder: Encoder, pairs: Sequence[Pair], *, show_progress: bool = False) -> float | None:
    """Return Spearman x 100 of cosines against labels; None where one of them is constant and has no ranks.

    Every process is given the same pairs, and encodes its share of their sentences.
    """
    sentences = list(dict.fromkeys(sentence for pair in pairs for sentence in pair[:2]))
    embeddings = encode_together(encoder, sentences, show_progress=show_progress)  # of length 1: a product is a cosine
    place = {sentence: i for i, sentence in enumerate(sentences)}
    first = embeddings[[place[pair.first] for pair in pairs]]
    second = embeddings[[place[pair.second] for pair in pairs]]
    return spearman((first * second).sum(axis=1), np.array([pair.score for pair in pairs]))


def spearman(predicted: NDArray[np.floating], labels: NDArray[np.floating]) -> float | None:
    """Return Spearman's rank correlation x 100; None if either side is constant or not finite."""
    if not np.isfinite(predicted).all() or len(labels) < 2 or np.ptp(predicted) < ROUNDING or np.ptp(labels) == 0:
        return None
    from scipy.stats import spearmanr  # its import takes 0.3 s, which a run without labelled pairs need not wait for

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
    sets["STS-B"] = (
        (read_pairs(benchmark, "--data"), ()) if benchmark.is_file() else ([], ("STSBenchmark/sts-test.csv",))
    )
    sets["SICK-R"] = (_sick(sick), ()) if sick.is_file() else ([], ("SICK/SICK_test_annotated.txt",))
    return sets


def _subset(sentences: Path, gold: Path) -> list[Pair]:
    texts, scores = plain_lines(named(sentences)), plain_lines(named(gold))
    if len(texts) != len(scores):
        raise InputError(
            f"--data {sentences} has {len(texts)} lines and {gold.name} {len(scores)}; they must match line by line."
        )
    pairs = []
    for (number, text), (_, label) in zip(texts, scores, strict=True):
        fields = text.split("\t")
        if len(fields) < 2:
            raise named(sentences).error("does not hold two sentences with a tab between them.", number)
        if (pair := parse_pair([fields[0], fields[1], label], Place(named(gold), number))) is not None:
            pairs.append(pair)
    return pairs


def _sick(path: Path) -> list[Pair]:
    """Read SICK: a header, then number, sentence, sentence, relatedness and more, with tabs."""
    pairs = []
    for number, line in plain_lines(named(path))[1:]:
        fields = line.split("\t")
        if len(fields) >= 4 and (pair := parse_pair(fields[1:4], Place(named(path), number))) is not None:
            pairs.append(pair)
    return pairs

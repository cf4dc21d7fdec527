"""The figures of a run in words: what it is about to do, what was measured, and whether training helped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcse_train.config import TrainConfig
from simcse_train.data.cache import Counts
from simcse_train.encoders.encoder import Encoder

MEASURES = ("score", "alignment", "uniformity")


def announcement(
    run: Path, config: TrainConfig, encoder: Encoder, counts: Counts | None, pairs: int, held_out: int, steps: int
) -> list[str]:
    """Return the lines that say, before the first step, what was read and how it will be trained on.

    counts are those of the text, None without one; pairs is the number of training pairs.
    """
    parts = f" in parts of {config.micro_batch_size}" if config.micro_batch_size else ""
    lines = []
    if counts is not None:
        lines.append(
            f"Text: {counts.lines:,} lines, {counts.empty:,} empty and {counts.duplicates:,} duplicates dropped, "
            f"{counts.cut:,} cut at {config.max_length} tokens; {counts.sentences:,} sentences remain, "
            + (f"{held_out} of them held out." if held_out else "too few to hold any out.")
        )
    if pairs:
        batches = (
            "in batches of their own, evenly spread among those of the text" if counts is not None else "and no text"
        )
        lines.append(f"Pairs: {pairs:,}, {batches}; their objective is the paper's supervised one (equation 5).")
    objective = config.objective if counts is not None else "supervised"
    lines += [
        f"Training: {steps:,} steps of {config.batch_size} sentences{parts}, {objective}, {encoder.pooling} "
        f"pooling, {'with' if encoder.head else 'without'} head, {config.precision} on {config.device}, "
        f"{'packed' if encoder.packed else 'padded'} batches. Folder: {run}",
    ]
    if not encoder.packed:
        lines.append(
            "This encoder's attention can't be packed: padding is computed too, which is slower and gives the same "
            "result."
        )
    return lines


def only_measures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what a line of metrics.jsonl says of the encoder: score, alignment and uniformity, where present."""
    return {key: record[key] for key in MEASURES if record.get(key) is not None}


def describe(record: Mapping[str, Any]) -> str:
    """Return the measures of a line of metrics.jsonl in words."""
    digits = {"score": 2, "alignment": 4, "uniformity": 4}
    return "  ".join(f"{key} {value:.{digits[key]}f}" for key, value in only_measures(record).items())


def verdict(before: Mapping[str, float], after: Mapping[str, float], labelled: bool) -> str:
    """Return a sentence on what training did to the encoder; only labelled pairs can tell whether it got better."""
    if "uniformity" not in before or "uniformity" not in after:
        return "The encoder was not measured before training in this run."
    spread = after["uniformity"] - before["uniformity"]
    spread_words = f"Uniformity {'fell' if spread < 0 else 'rose'} by {abs(spread):.3f}"
    if not labelled or "score" not in before or "score" not in after:
        return f"{spread_words}. Only labelled pairs (--eval) can tell whether the encoder got better."
    gain = after["score"] - before["score"]
    if gain > 0:
        return f"{spread_words} and the score rose by {gain:.2f}."
    return (
        f"{spread_words} and the score fell by {-gain:.2f}: training made this encoder worse on the labelled pairs. "
        "Use a stronger --model, or try a lower --learning-rate, fewer steps, or text that is closer to the labelled "
        "pairs."
    )

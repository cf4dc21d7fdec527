"""What was measured -> words: the figures of a moment, and what became of the encoder between two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def only_measures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what a line of metrics.jsonl says of the encoder itself: score, alignment and uniformity, as far as they are there."""
    return {key: record[key] for key in ("score", "alignment", "uniformity") if record.get(key) is not None}


def measures(record: Mapping[str, Any]) -> str:
    """Return the same as words."""
    parts = [f"score {record['score']:.2f}"] if record.get("score") is not None else []
    parts += [f"{key} {record[key]:.4f}" for key in ("alignment", "uniformity") if key in record]
    return "  ".join(parts)


def verdict(before: Mapping[str, float], after: Mapping[str, float], labelled: bool) -> str:
    """Say which of the two is happening to the user: knowledge spread out, or noise (DESIGN: the start matters)."""
    if not before or not after:
        return "What the encoder was before training was not measured in this run."
    spread = after["uniformity"] - before["uniformity"]
    spread_words = f"Uniformity {'fell' if spread < 0 else 'rose'} by {abs(spread):.3f}"
    if not labelled or "score" not in before or "score" not in after:
        return f"{spread_words}. Only labelled pairs (--eval) can tell whether the encoder got better."
    gain = after["score"] - before["score"]
    if gain > 0:
        return f"{spread_words} and the score rose by {gain:.2f}: training spread out what the encoder knows."
    return (
        f"{spread_words} and the score fell by {-gain:.2f}: training spread out noise. Start from a stronger --model, or try a lower "
        "--learning-rate, fewer steps, or text that is closer to the labelled pairs."
    )

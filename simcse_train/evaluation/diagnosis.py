"""What kind of encoder training starts from, and what kind of text it sees: no labels are needed.

The thresholds come from `scripts/verdict_study.py`; docs/questions.md shows the figures behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simcse_train.config import LEARNING_RATE, default_of
from simcse_train.evaluation.geometry import known_agreement, uniformity
from simcse_train.evaluation.hardness import negative_cosines

TUNED = -2.2  # uniformity below which an encoder has been trained to tell sentences apart
CLUSTERED = 0.42  # agreement of clusterings above which a text falls into topics
GENERAL = 0.29  # mean cosine with the most similar of 63 random sentences, below which a text has no common subject
CROWDED = 0.5  # mean cosine of random pairs above which cosines lie close together: the encoder knows low temperatures
LEAST_SPREAD = 0.02  # so that an encoder for which all sentences are one has a temperature, too
SAME_TOPIC = 0.985  # quantile of the cosines above which two pairs of a narrow text often have the same topic
# Steps at the default learning rate after which NT-Xent on a general text makes a tuned encoder unlearn more than it
# learns. The relational objective holds the encoder: on a narrow text it goes on gaining at that rate.
HARMLESS_STEPS = 250
BATCH = 64
MANY_UNKNOWN = 0.2  # share of tokens that a tokenizer does not know above which the encoder is one for other languages


@dataclass(frozen=True)
class Diagnosis:
    """Measures of an encoder on a sample of a text before training, and what follows from them."""

    uniformity: float
    mean_cosine: float  # of random pairs
    hardest_negative: float  # mean cosine of a sentence with the most similar of the others of a batch
    cluster_agreement: float
    others: int = BATCH - 1  # among which the most similar one was looked for
    for_sentences: bool = False  # whether the encoder's own files say that it was trained for sentences

    @property
    def spread(self) -> float:
        """How far cosines lie apart, as a share of the usual: 1, or less where nearly all of them are high."""
        return max(LEAST_SPREAD, 1 - self.mean_cosine) if self.mean_cosine > CROWDED else 1.0

    @property
    def hardness(self) -> float:
        """`hardest_negative` as it would be if the cosines had the usual spread, for which `GENERAL` is."""
        return 1 - (1 - self.hardest_negative) / self.spread

    @property
    def hardest(self) -> str:
        """`hardest_negative` in words, beside its `hardness` where that is another."""
        beside = f", {self.hardness:.2f} if the mean were not {self.mean_cosine:.2f}" if self.spread < 1 else ""
        return f"the most similar of {self.others} random sentences has a cosine of {self.hardest_negative:.2f}{beside}"

    @property
    def is_tuned(self) -> bool:
        """Whether the encoder has been trained for sentences; otherwise it is a plain language model.

        Uniformity alone cannot tell: where all sentences are about one thing, those of a tuned encoder are close, too.
        """
        return self.for_sentences or self.uniformity < TUNED

    @property
    def is_general(self) -> bool:
        """Whether the sentences of a random batch have little in common, so that pushing them apart does no harm."""
        return self.hardness < GENERAL

    @property
    def is_clustered(self) -> bool:
        """Whether the text falls into topics that the encoder already sees."""
        return self.cluster_agreement > CLUSTERED


def unknown_words(share: float) -> str:
    """Return what a share of unknown tokens means."""
    return (
        f"{share:.0%} of the tokens are unknown to the tokenizer of this encoder, which cannot tell such words apart. "
        "Choose a --model for the language of this text."
    )


def diagnose(embeddings: Tensor, *, for_sentences: bool) -> Diagnosis:
    """Return the diagnosis of a random sample; embeddings: (sentences, hidden), normalised, before training.

    for_sentences: whether the encoder's own files say that it was trained for sentences.
    """
    order = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(0)).to(embeddings.device)
    negatives = negative_cosines(embeddings[order], BATCH)  # (anchors, 63)
    return Diagnosis(
        uniformity=uniformity(embeddings),
        mean_cosine=float(negatives.mean()),
        hardest_negative=float(negatives[:, 0].mean()),
        cluster_agreement=known_agreement(embeddings),
        others=negatives.shape[1],
        for_sentences=for_sentences,
    )


def was_tuned(measures: Mapping[str, float]) -> bool:
    """Return whether the encoder with these measures of step 0 was tuned; version 0.1.0 did not log it."""
    return bool(measures.get("tuned", measures.get("uniformity", 0.0) < TUNED))


def harmless_rate(is_tuned: bool, hardness: float, steps: int) -> float:
    """Return the learning rate up to which NT-Xent harms no encoder in so many steps.

    is_tuned, hardness: as in `Diagnosis`. A plain encoder has nothing to unlearn, and on a narrow text harm
    comes from similar negatives rather than from many steps: both have no limit.
    """
    if not is_tuned or hardness >= GENERAL:
        return math.inf
    return float(f"{LEARNING_RATE * min(1.0, HARMLESS_STEPS / max(1, steps)):.2g}")


def recommend(diagnosis: Diagnosis, steps: int) -> tuple[dict[str, Any], str]:
    """Return what suits encoder and text in a run of so many steps at the default rate, as settings, and the reason."""
    settings, reason = _at_its_temperature(diagnosis, *_recommended_objective(diagnosis))
    rate = harmless_rate(diagnosis.is_tuned, diagnosis.hardness, steps)
    if rate < LEARNING_RATE:
        settings["learning_rate"] = rate
        reason += f"; in {steps:,} steps at {LEARNING_RATE:g} it would unlearn what it was tuned for"
    return settings, reason


def _recommended_objective(diagnosis: Diagnosis) -> tuple[dict[str, Any], str]:
    if not diagnosis.is_tuned:
        return {"objective": "ntxent"}, (
            f"the encoder is a plain language model (uniformity {diagnosis.uniformity:.2f}, no sentence-transformers "
            "files)"
        )
    hardest = diagnosis.hardest
    if diagnosis.is_general:
        return {"objective": "ntxent"}, f"the encoder is tuned for sentences and the text is general: {hardest}"
    narrow = f"the encoder is tuned for sentences and the text is narrow: {hardest}"
    agreement = f"clusterings agree to {diagnosis.cluster_agreement:.2f}"
    if diagnosis.is_clustered:
        return {"objective": "relational", "neighbours": 5}, f"{narrow}, and it falls into topics: {agreement}"
    # With half of the loss, as for topics, the bundled encoder lost 0.5 of a point on captions; with a tenth, nothing.
    settings = {"objective": "relational", "neighbours": 0, "start_weight": 0.1}
    return settings, f"{narrow}, without clear topics: {agreement}"


def recommend_for_pairs(diagnosis: Diagnosis) -> tuple[dict[str, Any], str]:
    """Return the objective for a run on training pairs (`--pairs`) alone, as settings, and the reason for it."""
    settings: dict[str, Any] = {"objective": "infonce"}
    reason = "there are only pairs, for which it is the paper's supervised objective"
    if diagnosis.is_tuned and not diagnosis.is_general:
        settings["mask_similar"] = SAME_TOPIC
        reason += ", and sentences of a narrow text that are most similar are rarely negatives"
    return _at_its_temperature(diagnosis, settings, reason)


def _at_its_temperature(diagnosis: Diagnosis, settings: dict[str, Any], reason: str) -> tuple[dict[str, Any], str]:
    """Add low temperatures where all cosines are high: divided by these, the cosines differ as much as usual."""
    if not diagnosis.is_tuned or diagnosis.spread == 1:
        return settings, reason
    objective = settings["objective"]
    for name in ("temperature", "start_temperature") if objective == "relational" else ("temperature",):
        settings[name] = float(f"{default_of(name, objective) * diagnosis.spread:.2g}")
    return settings, (
        f"{reason}; random pairs have a mean cosine of {diagnosis.mean_cosine:.2f}, which asks for low temperatures"
    )

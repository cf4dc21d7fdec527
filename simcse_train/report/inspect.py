"""Before training: what is in a text, what an encoder makes of it, and which settings fit.

All figures but the counts of lines are of a random sample, so that a text of millions of lines takes less than a
minute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from simcse_train.config import option
from simcse_train.data.batches import batches_per_epoch, held_out_sentences
from simcse_train.data.display import shown
from simcse_train.data.sample import LineCounts, sample_text
from simcse_train.encoders.loading import load_encoder
from simcse_train.encoders.tokenizer import SentenceTokenizer
from simcse_train.errors import InputError
from simcse_train.evaluation.diagnosis import (
    CLUSTERED,
    GENERAL,
    MANY_UNKNOWN,
    TUNED,
    Diagnosis,
    diagnose,
    recommend,
    unknown_words,
)
from simcse_train.evaluation.geometry import alignment, embed_views
from simcse_train.evaluation.hardness import (
    GradientShares,
    gradient_shares,
    most_similar_pairs,
    negative_cosines,
    view_cosine,
)
from simcse_train.search.embeddings import embed_rows, require_finite

SAMPLE = 1024  # sentences that are tokenised and embedded
VIEWS = 128  # sentences on which dropout is measured
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5)
DROPOUTS = (0.05, 0.1, 0.2, 0.3)
SHOWN_PAIRS = 8
SHOWN_CHARACTERS = 90  # of each sentence of a pair
NEAR_DUPLICATE = 0.95  # cosine above which two different lines say the same


@dataclass(frozen=True)
class Lengths:
    """Tokens per sentence of the sample, special tokens included, and the share that `--max-length` cuts."""

    median: int
    percentile_95: int
    share_cut: float


@dataclass(frozen=True)
class Inspection:
    """What was found; cosines are those of the encoder before training."""

    counts: LineCounts
    sampled: int
    lengths: Lengths
    unknown: float  # share of the tokens that stand for what the tokenizer does not know
    near_duplicates: float  # share of the sample with another line above NEAR_DUPLICATE
    alignment: float
    diagnosis: Diagnosis
    similar_pairs: list[tuple[float, str, str]]
    temperatures: list[GradientShares]
    dropouts: list[tuple[float, float]]  # rate, cosine between a view and the embedding without noise
    recommended: str  # options of the command line
    reason: str

    @property
    def warns(self) -> bool:
        """Whether plain SimCSE would push similar sentences apart."""
        return self.diagnosis.is_tuned and not self.diagnosis.is_general

    def as_json(self) -> str:
        """Return all of it as one JSON object."""
        return json.dumps({**asdict(self), "warns": self.warns}, ensure_ascii=False)


def inspect_text(
    data: Sequence[str],
    model: str,
    *,
    text_column: str | None = None,
    encoding: str | None = None,
    max_length: int = 32,
    batch_size: int = 64,
    pooling: str = "auto",
) -> Inspection:
    """Inspect a text with an encoder; raises `InputError` if either cannot be read or too few sentences remain."""
    counts, sample = sample_text(data, text_column, SAMPLE, encoding)
    if len(sample) < 2:
        raise InputError(
            f"--data {' '.join(data)} holds no two different sentences, one a line, and that many are needed."
        )
    encoder = load_encoder(model, pooling=pooling)
    rows = encoder.tokenizer.tokenize(sample, min(max_length, encoder.max_positions))
    embeddings = embed_rows(encoder, rows)  # (sampled, hidden)
    require_finite(embeddings.numpy(), sample.__getitem__)
    negatives = negative_cosines(embeddings, batch_size)  # (anchors, batch - 1)
    diagnosis = diagnose(embeddings[:512], for_sentences=encoder.folder.for_sentences)
    pairs = most_similar_pairs(embeddings, batch_size, SHOWN_PAIRS)
    sentences = counts.lines - counts.empty - counts.duplicates
    trained = sentences - len(held_out_sentences(sentences))
    settings, reason = recommend(diagnosis, batches_per_epoch(trained, batch_size))
    return Inspection(
        counts=counts,
        sampled=len(sample),
        lengths=_lengths(encoder.tokenizer, sample, max_length, encoder.max_positions),
        unknown=encoder.tokenizer.unknown_share(rows),
        near_duplicates=_near_duplicates(embeddings),
        alignment=alignment(*embed_views(encoder, rows[:VIEWS])),
        diagnosis=diagnosis,
        similar_pairs=[(pair.cosine, sample[pair.first], sample[pair.second]) for pair in pairs],
        temperatures=[gradient_shares(negatives, temperature) for temperature in TEMPERATURES],
        dropouts=[
            (rate, view_cosine(load_encoder(model, pooling=pooling, dropout=rate), rows[:VIEWS])) for rate in DROPOUTS
        ],
        recommended=" ".join(f"{option(name)} {value}" for name, value in settings.items()),
        reason=reason,
    )


def _lengths(tokenizer: SentenceTokenizer, sample: Sequence[str], max_length: int, longest: int) -> Lengths:
    lengths = np.array([len(row) for row in tokenizer.tokenize(sample, longest)])
    median, percentile_95 = (int(np.percentile(lengths, share)) for share in (50, 95))
    return Lengths(median, percentile_95, float((lengths > max_length).mean()))


def _near_duplicates(embeddings: Tensor) -> float:
    cosines = embeddings @ embeddings.T
    cosines.fill_diagonal_(0)
    return float((cosines.max(dim=1).values > NEAR_DUPLICATE).float().mean())


def as_text(found: Inspection, max_length: int) -> str:
    """Return an inspection as the lines that the command prints."""
    counts, lengths, diagnosis = found.counts, found.lengths, found.diagnosis
    kind = "tuned for sentences" if diagnosis.is_tuned else "a plain language model"
    if diagnosis.for_sentences:
        kind += ", as its sentence-transformers files say"
    lines = [
        f"Text: {counts.lines:,} lines, {counts.empty:,} empty, {counts.duplicates:,} equal to an earlier one. The "
        f"rest is of a sample of {found.sampled:,}.",
        f"Length: {lengths.median} tokens in the median, 95 % have at most {lengths.percentile_95}; "
        f"--max-length {max_length} cuts {lengths.share_cut:.1%}.",
        *([f"Warning: {unknown_words(found.unknown)}"] if found.unknown > MANY_UNKNOWN else []),
        f"Near duplicates: {found.near_duplicates:.1%} have another line with a cosine above {NEAR_DUPLICATE}.",
        f"Encoder: {kind}. Uniformity {diagnosis.uniformity:.2f} (tuned below {TUNED}), cosine of random pairs "
        f"{diagnosis.mean_cosine:.2f}, alignment {found.alignment:.2f}.",
        f"Negatives: {diagnosis.hardest} (general text below {GENERAL:.2f}). Topics: clusterings agree to "
        f"{diagnosis.cluster_agreement:.2f} (clear above {CLUSTERED}).",
        "",
    ]
    if found.warns:
        lines += [
            "Warning: plain SimCSE would push similar sentences apart. The most similar pairs of a random batch:",
            *(
                f"  {cosine:.2f}  {shown(first, SHOWN_CHARACTERS)}\n        {shown(second, SHOWN_CHARACTERS)}"
                for cosine, first, second in found.similar_pairs
            ),
            "",
        ]
    lines += [
        "temperature   share of the negatives' gradient on the hardest 1 % and 10 %",
        *(f"{row.temperature:>11}   {row.hardest_1:>5.0%} {row.hardest_10:>5.0%}" for row in found.temperatures),
        "",
        "dropout   cosine between a view and the embedding without noise",
        *(f"{rate:>7}   {cosine:.3f}" for rate, cosine in found.dropouts),
        "",
        f"Recommended: {found.recommended}, since {found.reason}.",
    ]
    return "\n".join(lines)

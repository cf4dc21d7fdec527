"""The figures of a run in words: what it is about to do, what was measured, and whether training helped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from simcse_train.config import TrainConfig
from simcse_train.data.cache import Counts
from simcse_train.encoders.encoder import Encoder
from simcse_train.evaluation.diagnosis import CLUSTERED, GENERAL, was_tuned
from simcse_train.evaluation.geometry import FEWEST

# The measures of an encoder in the order in which they are shown, with their digits.
MEASURES = {
    "score": 2,
    "alignment": 4,
    "uniformity": 4,
    "neighbours_kept": 2,
    "neighbour_contrast": 3,
    "cluster_agreement": 2,
}

# Known only before training: what kind of text, and what kind of encoder it is.
BEFORE = ("hardness", "tuned")

# Thresholds of the verdict without labels; scripts/verdict_study.py prints how often it is right.
LOST_NEIGHBOURS = 0.7  # fewer neighbours kept than this in a narrow text: the encoder forgot what it knew
KEPT_NEIGHBOURS = 0.78  # more than this where a narrow text's topics became clearer and are still those of before
LOST_EVERYWHERE = 0.35  # the same for a general text, where few sentences have close neighbours to lose
LOST_CONTRAST = -0.05  # relative change of the contrast from which neighbours in a narrow text are lost in the crowd
RISEN_CONTRAST = 0.02  # the same from which topics are learned in a general text, which costs what else sentences say
GAINED_CONTRAST = 0.1  # the same from which the topics of a text that has some are clearer
LOST_ALIGNMENT = 0.4  # two views of a sentence have a cosine below 0.8: dropout alone makes them unlike
RISEN_ALIGNMENT = 0.2  # with more dropout than usual, alignment is high before training too
KEPT_ALIGNMENT = 0.05  # a rise up to this leaves two views as close as they were
GAINED_UNIFORMITY = 0.05
CLEAR_SCORE = 0.25  # a smaller change of the labelled score is noise


class Outcome(StrEnum):
    """What training did to the encoder."""

    HELPED = "helped"
    UNCLEAR = "no clear change"
    HARMED = "harmed"


@dataclass(frozen=True)
class Verdict:
    """An outcome and the reason for it, a sentence without its full stop."""

    outcome: Outcome
    reason: str

    def __str__(self) -> str:
        return f"Verdict: {self.outcome}. {self.reason}."


def judge(before: Mapping[str, float], after: Mapping[str, float]) -> Verdict:
    """Return what training did, from the measures before and after it; labelled pairs decide where both have a score.

    Without labels the verdict is about an encoder that was good before. In a narrow text it says whether the
    neighbourhoods that the encoder saw were lost, kept or sharpened; in a general text whether sentences are spread
    more evenly while two views of one stay close, which goes with a better score (Wang & Isola 2020, section 4), and
    neighbours did not come closer, which goes with a worse one (docs/questions.md). A plain language model can be seen
    to be ruined, but only labels can tell whether it became good.
    """
    if "score" in before and "score" in after:
        return _judge_score(after["score"] - before["score"])
    if "score" in before and "uniformity" in after:
        return Verdict(Outcome.HARMED, "All labelled pairs have the same cosine: the encoder has collapsed")
    for which, found in (("before training in this run", before), ("at this step", after)):
        if not {"alignment", "uniformity", "cluster_agreement"} <= found.keys():
            return Verdict(Outcome.UNCLEAR, f"The encoder was not measured {which}")
    alignment = after["alignment"] - before["alignment"]
    if after["alignment"] > LOST_ALIGNMENT and alignment > RISEN_ALIGNMENT:
        return Verdict(
            Outcome.HARMED,
            f"Two views of a sentence, which differ only by dropout, have moved apart: alignment went from "
            f"{before['alignment']:.2f} to {after['alignment']:.2f}",
        )
    if "neighbours_kept" not in before:
        return Verdict(Outcome.UNCLEAR, f"There were fewer than {FEWEST} sentences to measure, too few to tell")
    uniformity = f"uniformity went from {before['uniformity']:.2f} to {after['uniformity']:.2f}"
    if not was_tuned(before):
        return Verdict(
            Outcome.UNCLEAR,
            f"The encoder was a plain language model before training; {uniformity}. Only labelled pairs (--eval) can "
            "tell whether it became better",
        )
    if not {"neighbours_kept", "neighbour_contrast"} <= after.keys():  # measured after a resume without the start
        return Verdict(Outcome.UNCLEAR, "The neighbours before training were not known when it was measured")
    kept = after["neighbours_kept"]
    general = before.get("hardness", 1.0) < GENERAL
    clustered = before["cluster_agreement"] > CLUSTERED
    if kept < (LOST_EVERYWHERE if general else LOST_NEIGHBOURS):
        return Verdict(
            Outcome.HARMED,
            f"Only {kept:.0%} of the ten nearest neighbours of a sentence are the same as before training",
        )
    had = before["neighbour_contrast"]  # 0 where all sentences have one embedding
    contrast = after["neighbour_contrast"] / had - 1 if had else 0.0
    spread = before["uniformity"] - after["uniformity"] > GAINED_UNIFORMITY
    if general and spread and alignment < KEPT_ALIGNMENT and contrast < RISEN_CONTRAST:
        return Verdict(
            Outcome.HELPED,
            f"The text is general, and its sentences are spread more evenly while two views of one stay close: "
            f"{uniformity}, alignment from {before['alignment']:.2f} to {after['alignment']:.2f}",
        )
    changed = f"the contrast of a sentence's nearest neighbours with all others changed by {contrast:+.0%}"
    if not general and contrast < LOST_CONTRAST:
        return Verdict(Outcome.HARMED, f"Similar sentences were pushed apart: {changed}")
    if clustered and contrast > GAINED_CONTRAST and (general or kept > KEPT_NEIGHBOURS):
        return Verdict(
            Outcome.HELPED, f"The text's topics became clearer: {changed}, and {kept:.0%} of the neighbours are kept"
        )
    return Verdict(
        Outcome.UNCLEAR,
        f"{kept:.0%} of the nearest neighbours are kept; only labelled pairs (--eval) can tell whether the rest are "
        "better",
    )


def judge_run(lines: Iterable[Mapping[str, Any]], step: int) -> Verdict:
    """Return the verdict on a run that logged these lines, and whose encoder is that of a step.

    Where training did not help, that is step 0, and the verdict is on the last step that was measured.
    """
    measured = measures_by_step(lines)
    judged = step or max(measured, default=0)
    if not judged:
        return Verdict(Outcome.UNCLEAR, "Nothing was measured after training began")
    return judge(measured.get(0, {}), measured.get(judged, {}))


def _judge_score(gain: float) -> Verdict:
    if abs(gain) < CLEAR_SCORE:
        return Verdict(Outcome.UNCLEAR, f"The score on the labelled pairs changed by {gain:+.2f}")
    outcome = Outcome.HELPED if gain > 0 else Outcome.HARMED
    return Verdict(outcome, f"The score on the labelled pairs {'rose' if gain > 0 else 'fell'} by {abs(gain):.2f}")


def announcement(
    run: Path,
    config: TrainConfig,
    encoder: Encoder,
    counts: Counts | None,
    pairs: int,
    paired_steps: int,
    held_out: int,
    steps: int,
) -> list[str]:
    """Return the lines that say, before the first step, what was read and how it will be trained on.

    counts are those of the text, None without one; pairs is the number of training pairs, which so many of the steps
    learn from.
    """
    most = max(counts.sentences - held_out if counts is not None else 0, pairs)  # that a batch can have
    size = f"{config.batch_size} sentences" + (f" (here {most}: there are no more)" if most < config.batch_size else "")
    part = config.micro_batch_size
    parts = f" in parts of {part}" if part and part < config.batch_size else ""
    lines = []
    if counts is not None:
        lines.append(
            f"Text: {counts.lines:,} lines, {counts.empty:,} empty and {counts.duplicates:,} duplicates dropped, "
            f"{counts.cut:,} cut at {config.max_length} tokens; {counts.sentences:,} sentences remain, "
            + (f"{held_out} of them held out." if held_out else "too few to hold any out.")
        )
    if pairs:
        batches = (
            f"which {paired_steps:,} of the steps learn, evenly spread among those of the text"
            if counts is not None
            else "and no text"
        )
        lines.append(f"Pairs: {pairs:,}, {batches}; their objective is the paper's supervised one (equation 5).")
    objective = config.objective if counts is not None else "supervised"
    lines += [
        f"Training: {steps:,} step{'s' * (steps != 1)} of {size}{parts}, {objective}, {encoder.pooling} "
        f"pooling, {'with' if encoder.head else 'without'} head, {config.precision} on {config.device}, "
        f"{'packed' if encoder.packed else 'padded'} batches. Folder: {run}",
    ]
    lines += encoder.notes
    return lines


def only_measures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what a line of metrics.jsonl says of the encoder: its measures, where present."""
    return {key: record[key] for key in (*MEASURES, *BEFORE) if record.get(key) is not None}


def measures_by_step(lines: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Return what the lines of metrics.jsonl say of the encoder at each step at which it was measured."""
    return {line["step"]: only_measures(line) for line in lines if "uniformity" in line}


def describe(record: Mapping[str, Any]) -> str:
    """Return the measures of a line of metrics.jsonl in words."""
    found = only_measures(record)
    return "  ".join(
        f"{key.replace('_', ' ')} {found[key]:.{digits}f}" for key, digits in MEASURES.items() if key in found
    )

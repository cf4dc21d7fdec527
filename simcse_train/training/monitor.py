"""What a run logs and measures on its way, which step it would export, and when to stop early."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from simcse_train import distributed
from simcse_train.config import TrainConfig, objective_setting
from simcse_train.data.batches import Batches
from simcse_train.data.pairs import Pair
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError, TrainingError
from simcse_train.evaluation.diagnosis import MANY_UNKNOWN, Diagnosis, diagnose, unknown_words
from simcse_train.evaluation.geometry import (
    FEWEST,
    Space,
    alignment,
    cluster_agreement,
    known_agreement,
    look,
    nearest_rows,
    neighbour_contrast,
    neighbours_kept,
    uniformity,
)
from simcse_train.evaluation.sts import similarity_score
from simcse_train.report.verdict import Outcome, describe, judge
from simcse_train.runs.folder import last_saved
from simcse_train.runs.metrics import log_metrics, read_metrics
from simcse_train.search.embeddings import embed_rows, known_embeddings
from simcse_train.training.readback import Readback

logger = logging.getLogger(__name__)

EPSILON = 1e-8  # AdamW's: it hardly moves a weight whose gradients are far below


@dataclass(frozen=True)
class Best:
    """The step whose encoder is exported: the one with the best score, or without labels the last one not harmed.

    Step 0 is the encoder before training.
    """

    step: int
    score: float | None


@dataclass(frozen=True)
class Before:
    """What a new run knows of the encoder before the first step."""

    embeddings: Tensor  # (sentences, hidden) of what is measured
    cluster_agreement: float  # of these
    diagnosis: Diagnosis  # of a sample of the text


def look_before(encoder: Encoder, batches: Batches) -> Before:
    """Return what is known before training of the sentences that are measured, and of a sample of all.

    Raises `InputError` if all are the same tokens, or an embedding is not finite. Warns of unknown words.
    """
    measured, sample = batches.measured(), batches.sample()
    if len(sample) > 1 and len(set(map(tuple, sample))) == 1:
        raise InputError(
            f"All sentences become the same tokens, {encoder.tokenizer.pretrained.decode(sample[0])[:80]!r}: there "
            "is nothing to tell apart. Choose a --model whose tokenizer knows the language of this text, or a higher "
            "--max-length if its sentences begin alike."
        )
    unknown = encoder.tokenizer.unknown_share(sample)
    if unknown > MANY_UNKNOWN and distributed.is_main():
        logger.warning(unknown_words(unknown))
    of_sample = known_embeddings(encoder, sample)
    diagnosis = diagnose(of_sample, for_sentences=encoder.folder.for_sentences)
    if measured == sample:
        return Before(of_sample, diagnosis.cluster_agreement, diagnosis)
    embeddings = known_embeddings(encoder, measured)
    return Before(embeddings, known_agreement(embeddings), diagnosis)


class Monitor:
    """Writes `metrics.jsonl` and lines on the screen, measures the encoder, and remembers the best step.

    Every process has one, since all embed what is measured; that of the main process alone does the rest.
    """

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        encoder: Encoder,
        measured: Sequence[Sequence[int]],
        labelled_pairs: list[Pair] | None,
        total: int,
        before: Before | None = None,
    ) -> None:
        """Measure `measured`, token ids of sentences; `before` is what is known of step 0."""
        self.run, self.config, self.encoder, self.total = run, config, encoder, total
        self.measured, self.labelled_pairs, self._known = measured, labelled_pairs, before
        self.best: Best | None = None
        self.without_improvement = 0  # evaluations in a row
        self._before: dict[str, Any] = {}  # what was measured at step 0
        self._nearest: Tensor | None = None  # (sentences, 10): nearest sentences at step 0
        self._spaces: dict[int, Space] = {}  # at step 0 and the best step, as far as this process has measured them
        self._warned = False  # of harm
        self._warned_of_rest = False
        self._results: list[Readback] = []  # since the last logged line
        self._sentences, self._seconds = 0, 0.0
        self._bar: tqdm[Any] | None = None
        self._is_main = distributed.is_main()

    def after_step(
        self, step: int, epoch: float, result: Readback, rate: float, sentences: int, seconds: float
    ) -> bool:
        """Count a step, log and measure where that is due; return whether the encoder is the best so far."""
        self._results.append(result)
        self._sentences += sentences
        self._seconds += seconds
        if self._bar is None:
            hidden = None if self._is_main else True
            self._bar = tqdm(total=self.total, initial=step - 1, desc="train", unit="step", disable=hidden)
        self._bar.update()
        record: dict[str, Any] = {}
        if self.is_logged(step):
            record = {
                "epoch": round(epoch, 4),
                "loss": sum(result.loss for result in self._results) / len(self._results),
                "learning_rate": rate,
                "sentences_per_second": round(self._sentences / self._seconds, 1),
            }
            self._bar.set_postfix_str(f"loss {record['loss']:.4f}, {record['sentences_per_second']:.0f} sentences/s")
            self._warn_of_rest(step)
            self._results, self._sentences, self._seconds = [], 0, 0.0
        if self.is_measured(step):
            return self.measure(step, record)
        if record and self._is_main:
            log_metrics(self.run, step, record)
        return False

    def is_logged(self, step: int) -> bool:
        """Return whether this step is one whose loss is logged, with those since the last."""
        return step % self.config.log_every == 0 or step == self.total

    def is_measured(self, step: int) -> bool:
        """Return whether the encoder is measured after this step."""
        return step % self.config.eval_every == 0 or step == self.total

    def measure(self, step: int, logged: dict[str, Any] | None = None) -> bool:
        """Measure the encoder and log that with what is `logged` at this step; return whether it is the best so far.

        All processes embed, each a share; the main process measures, logs and knows the best. Raises `TrainingError` if
        the embeddings are not finite.
        """
        known = self._known if step == 0 else None  # a run that goes on from a later step knows nothing of it
        space = look(self.encoder, self.measured, known.embeddings if known else None)
        if not space.embeddings.isfinite().all():  # its weights can be finite, and so large that its states are not
            raise TrainingError(
                f"Step {step}: the embeddings of the held-out sentences are not finite. {last_saved(self.run)} Try a "
                "lower --learning-rate, a higher --temperature, or --precision fp32."
            )
        score = similarity_score(self.encoder, self.labelled_pairs) if self.labelled_pairs is not None else None
        if not self._is_main:
            return False
        nearest = nearest_rows(space.embeddings)
        if step == 0:
            self._nearest = nearest
        record: dict[str, Any] = {
            **(logged or {}),
            "alignment": alignment(*space.views),
            "uniformity": uniformity(space.embeddings),
            "cluster_agreement": known.cluster_agreement if known else cluster_agreement(space.embeddings),
        }
        if self._nearest is not None and len(self.measured) >= FEWEST:
            record["neighbours_kept"] = neighbours_kept(self._nearest, nearest)
            record["neighbour_contrast"] = neighbour_contrast(space.embeddings, self._nearest)
        if self.labelled_pairs is not None:
            record["score"] = score
        if known:
            record["hardness"] = known.diagnosis.hardness  # says what kind of text it is
            record["tuned"] = known.diagnosis.is_tuned
        if step == 0:
            self._before = record
            if self.config.patience is not None and self.labelled_pairs is None and len(self.measured) < FEWEST:
                logger.warning(
                    f"--patience {self.config.patience} can hardly end this run: without --eval, {len(self.measured)} "
                    f"sentences are too few to see whether it improves ({FEWEST} are needed); only two views of a "
                    "sentence that move apart are seen."
                )
        log_metrics(self.run, step, record)
        improved = self._choose(step, record)
        if improved:
            self._spaces = {measured: kept for measured, kept in self._spaces.items() if measured == 0} | {step: space}
        loss = f"loss {record['loss']:.4f}  " if "loss" in record else ""
        best = "  best so far" if improved and self.labelled_pairs else ""
        logger.info(f"step {step:>6}  {loss}{describe(record)}{best}")
        return improved and step > 0

    @property
    def unlogged(self) -> tuple[tuple[float, float], ...]:
        """Loss and norm of the gradient of each step since the last logged line, which a resumed run logs as well."""
        return tuple((result.loss, result.norm) for result in self._results)

    def restore(
        self,
        best: Best | None,
        without_improvement: int,
        start: Encoder | None,
        unlogged: Sequence[tuple[float, float]],
    ) -> None:
        """Continue with what a checkpoint holds; `start` is the encoder before training, if it can be had."""
        self.best, self.without_improvement = best, without_improvement
        self._results = [
            Readback(0, torch.tensor(loss), torch.tensor(True), torch.tensor(norm)) for loss, norm in unlogged
        ]
        self._before = next((line for line in read_metrics(self.run) if line["step"] == 0), {})
        if start is not None:
            self._nearest = nearest_rows(embed_rows(start, self.measured).cpu())

    def spaces(self, step: int) -> tuple[Space, Space] | None:
        """Return what the encoders before training and at the best `step` make of what is measured, if it is known."""
        found = self._spaces
        return (found[0], found[step]) if 0 in found and step in found else None

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last `--patience` evaluations brought no improvement."""
        return self.config.patience is not None and self.without_improvement >= self.config.patience

    def say_that_patience_ends(self) -> None:
        """Say why the run ends before its last step, or a resumed one at once."""
        if self._is_main:
            best = "" if self.best is None else f", the best was step {self.best.step}"
            logger.info(
                f"The run ends before its {self.total:,} steps: the last {self.without_improvement} evaluations "
                f"brought no improvement (--patience {self.config.patience}){best}. A new run can start from its "
                f"encoder: --model {shlex.quote(str(self.run))}"
            )

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def _warn_of_rest(self, step: int) -> None:
        """Warn once if no gradient since the last logged line was large enough to move a weight."""
        if self._warned_of_rest or not self._is_main or not all(result.norm < EPSILON for result in self._results):
            return
        self._warned_of_rest = True
        temperature = objective_setting(self.config, "temperature")
        logger.warning(
            f"Step {step}: nothing is learned. The gradients since the last logged line are too small to move a weight "
            f"(below {EPSILON:g}). --objective {self.config.objective} at --temperature {temperature:g} "
            "asks no more of this encoder on this text. Try a higher --temperature or another --objective."
        )

    def _choose(self, step: int, record: dict[str, Any]) -> bool:
        """Update the best step; warn at the first measurement that shows harm. Return whether this step is the best."""
        if self.labelled_pairs is not None:
            score = record["score"]  # None where all cosines are equal: the encoder has collapsed
            improved = score is not None and (self.best is None or self.best.score is None or score > self.best.score)
            if score is None:
                logger.warning(f"Step {step}: all labelled pairs have the same cosine, so they have no score.")
        else:
            verdict = judge(self._before, record)
            # Pairs that the user has say what belongs together; neighbours may change as they demand.
            improved = verdict.outcome != Outcome.HARMED or self.config.pairs is not None
            if not improved and not self._warned:
                self._warned = True
                logger.warning(f"Step {step}: training harms the encoder. {verdict.reason}.")
        if improved:
            self.best = Best(step, record.get("score"))
        self.without_improvement = 0 if improved else self.without_improvement + 1
        return improved

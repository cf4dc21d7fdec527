"""What a run logs and measures on its way, and which of its steps is the best so far."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from simcse_train.config import TrainConfig
from simcse_train.data.pairs import Pair
from simcse_train.encoders.encoder import Encoder
from simcse_train.evaluation.geometry import alignment_and_uniformity
from simcse_train.evaluation.sts import similarity_score
from simcse_train.report.verdict import describe
from simcse_train.runs.metrics import log_metrics

logger = logging.getLogger(__name__)


class Monitor:
    """Writes `metrics.jsonl` and lines on the screen, measures the encoder, and remembers the best step and its score."""

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        encoder: Encoder,
        measured: Sequence[Sequence[int]],
        pairs: list[Pair] | None,
        total: int,
    ) -> None:
        self.run, self.config, self.encoder, self.pairs, self.total = run, config, encoder, pairs, total
        self.measured = measured  # token ids of the sentences for alignment and uniformity
        self.best: tuple[int, float] | None = None
        self._losses: list[float] = []  # since the last logged line
        self._sentences, self._seconds = 0, 0.0
        self._bar: tqdm[Any] | None = None

    def after_step(self, step: int, epoch: float, loss: float, rate: float, sentences: int, seconds: float) -> bool:
        """Count a step, log and measure where that is due; return whether the labelled score is the best so far."""
        self._losses.append(loss)
        self._sentences += sentences
        self._seconds += seconds
        if self._bar is None:
            self._bar = tqdm(total=self.total, initial=step - 1, desc="train", unit="step", disable=None)
        self._bar.update()
        record: dict[str, Any] = {}
        if step % self.config.log_every == 0 or step == self.total:
            record = {
                "epoch": round(epoch, 4),
                "loss": sum(self._losses) / len(self._losses),
                "learning_rate": rate,
                "sentences_per_second": round(self._sentences / self._seconds, 1),
            }
            self._bar.set_postfix_str(f"loss {record['loss']:.4f}, {record['sentences_per_second']:.0f} sentences/s")
            self._losses, self._sentences, self._seconds = [], 0, 0.0
        if step % self.config.eval_every == 0 or step == self.total:
            return self.measure(step, record)
        if record:
            log_metrics(self.run, step, record)
        return False

    def measure(self, step: int, logged: dict[str, Any] | None = None) -> bool:
        """Measure the encoder and log that with what is `logged` at this step; return whether it is the best so far."""
        aligned, uniform = alignment_and_uniformity(self.encoder, self.measured)
        record = {**(logged or {}), "alignment": aligned, "uniformity": uniform}
        improved = False
        if self.pairs is not None:
            score = similarity_score(self.encoder, self.pairs)
            record["score"] = score
            if step > 0 and score is not None and (self.best is None or score > self.best[1]):
                self.best, improved = (step, score), True
        log_metrics(self.run, step, record)
        loss = f"loss {record['loss']:.4f}  " if "loss" in record else ""
        logger.info(f"step {step:>6}  {loss}{describe(record)}" + ("  best so far" if improved else ""))
        return improved

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()

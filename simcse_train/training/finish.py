"""What comes after the last step: the export, and what was measured before and after training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from simcse_train import distributed
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError, TrainingError
from simcse_train.export.folder import load_chosen, write_export
from simcse_train.report.summary import Seen
from simcse_train.report.verdict import Outcome, describe, judge_run, measures_by_step
from simcse_train.runs.folder import ENCODER, checkpoint_path
from simcse_train.runs.metrics import read_metrics
from simcse_train.training.loop import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its encoder, what was measured before and after training, and what a report shows."""

    folder: Path
    encoder: Encoder = field(repr=False)
    before: Mapping[str, float]
    after: Mapping[str, float]
    seen: Seen | None = field(default=None, repr=False)  # where it is known without embedding again


def finish(trainer: Trainer) -> Run:
    """Export the encoder, the best where there is one, and report what was measured before and after training."""
    run = trainer.run
    newest = checkpoint_path(run, trainer.step)
    try:
        state, encoder = load_chosen(run, newest, None)
    except InputError as error:  # what this very run saved is damaged or gone: not a fault of the input
        raise TrainingError(f"The run is trained, but its encoder can't be exported. {error}") from None
    write_export(encoder, state, run, run / ENCODER)
    encoder.head, encoder.source = None, str(run)
    lines = read_metrics(run)
    measured = measures_by_step(lines)
    before, last, after = (measured.get(step, {}) for step in (0, trainer.step, state.step))
    if before:
        logger.info(f"before training  {describe(before)}")
    logger.info(f"after training   {describe(last)}")
    if state.step not in (0, trainer.step):
        logger.info(f"best, step {state.step:<5}  {describe(after)}")
    verdict = judge_run(lines, state.step)
    logger.info(str(verdict))
    if verdict.outcome == Outcome.HARMED and state.step and trainer.config.pairs and not trainer.config.eval:
        logger.warning(
            "The trained encoder is exported all the same: --pairs may ask for other neighbours. Labelled pairs "
            "(--eval) can tell whether they are better."
        )
    if state.step == 0:
        logger.info(f"Training did not help here. Encoder: {run / ENCODER}, the one you started with.")
    else:
        logger.info(f"Encoder: {run / ENCODER} (step {state.step}), ready for SentenceTransformer or AutoModel.")
    return Run(run, encoder, before, after, trainer.seen(state.step))


@torch.no_grad()
def shared(run: Run) -> Run:
    """Return on every process what the main process has finished: the encoder that was exported, and its measures."""
    before, after = distributed.from_main(lambda: [dict(run.before), dict(run.after)])
    for parameter in run.encoder.parameters():
        parameter.copy_(distributed.tensor_from_main(parameter.detach().cpu()))
    run.encoder.source = str(run.folder)
    return replace(run, before=before, after=after)

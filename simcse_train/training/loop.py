"""The training loop.

Read from top to bottom this is unsupervised SimCSE (Gao, Yao & Chen 2021, section 3): each sentence passes through the
encoder twice, dropout makes the two embeddings differ, and the loss pulls them together and pushes the other sentences
of the batch away. Several processes run it side by side: each embeds its pieces of every batch, and all take the same
step (see `step`). All embed what is measured. The main process alone logs and saves; the others wait for it at the next
step.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from simcse_train import distributed
from simcse_train.config import TrainConfig, objective_setting
from simcse_train.data.batches import Batch
from simcse_train.data.order import LATEST
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.sources import model_name
from simcse_train.errors import InputError, Stopped, TrainingError
from simcse_train.manifest import damage
from simcse_train.objectives.infonce import InfoNCE
from simcse_train.objectives.registry import make_objective
from simcse_train.randomness import seeded
from simcse_train.report.summary import Seen
from simcse_train.runs.atomic import flush
from simcse_train.runs.checkpoint import State, load_objective_state, load_optimizer, prune, save_checkpoint
from simcse_train.runs.folder import METRICS, checkpoint_path, checkpoints, last_saved
from simcse_train.runs.metrics import forget_metrics, read_metrics
from simcse_train.runs.start import frozen_weights, load_start, weights_fingerprint
from simcse_train.training.compiled_optimizer import CompiledAdamW
from simcse_train.training.computation import choose_kernels, computation
from simcse_train.training.monitor import Before, Best, Monitor
from simcse_train.training.optimizer import clear_gradients, keep_embedding_gradient, learning_rate_at, make_optimizer
from simcse_train.training.plan import absolute, make_batches, total_steps
from simcse_train.training.readback import Readback
from simcse_train.training.step import forward_backward
from simcse_train.training.stopping import StopRequests
from simcse_train.training.teachers import Teachers
from simcse_train.training.texts import Texts

logger = logging.getLogger(__name__)


class Trainer:
    """A run in memory: what it trains, with what, and at which step it is."""

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        encoder: Encoder,
        texts: Texts,
        order_version: int = LATEST,
        kernels: str = "",
        before: Before | None = None,
    ) -> None:
        """Prepare a run at step 0.

        `order_version` and `kernels` are those of the checkpoint from which a run goes on; `before` is what a new run
        knows already.
        """
        self.run, self.config, self.texts = run, config, texts
        self.accelerator = _accelerator(config)
        self.encoder = encoder.to(self.accelerator.device)
        for name, parameter in encoder.named_parameters():
            if "pooler" in name:  # a part of the model that no embedding passes through
                parameter.requires_grad_(False)
        self.kernels = choose_kernels(encoder, config, kernels)
        encoder.zero_grad()  # an encoder that was given may come with gradients
        keep_embedding_gradient(encoder.model)
        self.objective = make_objective(config)
        self.paired_objective = InfoNCE(objective_setting(config, "temperature"))  # with hard negatives (equation 5)
        self.adamw = make_optimizer(encoder, config)
        self.optimizer = self.accelerator.prepare(self.adamw)  # skips a step that overflows in float16
        self.batches = make_batches(config, encoder, texts, order_version)
        named = "{} {}".format(*texts.fingerprints)
        self.teachers = Teachers(run, config, encoder, self.batches, named, self.objective, self.accelerator.autocast)
        self.total = total_steps(config, self.batches)
        self.step = 0  # steps that are done
        self.start: str | None = weights_fingerprint(encoder)  # of the encoder before training
        source = encoder.source or config.model
        self.source = absolute(source) if Path(source).expanduser().is_dir() else source
        self.monitor = Monitor(run, config, encoder, self.batches.measured(), texts.labelled_pairs, self.total, before)
        self._saved_at = time.monotonic()
        # On a GPU a step that is not finite is found one step later, so that the CPU can prepare the next meanwhile.
        self.reads_late = self.accelerator.device.type == "cuda"
        self.abandoned: list[Path] = []  # checkpoints after the one from which the run goes on
        self._last: tuple[Readback, Batch] | None = None  # of the last step taken

    def fit(self, stop: StopRequests) -> None:
        """Train to the last step; raises `Stopped` after a signal's step."""
        stop.begun = True
        if self.step == 0:
            self.monitor.measure(self.step)
        self.encoder.train()
        self._saved_at = time.monotonic()
        while self.step < self.total:
            # A signal to any process stops all of them at this step, and what the main process has measured does too.
            signal_number, is_over = distributed.highest(stop.signal_number or 0, self.monitor.is_out_of_patience)
            if signal_number:
                self.save()
                self.monitor.close()
                distributed.wait()  # as soon as one process ends, a launcher ends the others
                raise Stopped(signal_number, self.run)
            if is_over:
                self.monitor.say_that_patience_ends()
                break
            began = time.perf_counter()
            batch = self.batches.at(self.step)  # [a, a, b, b, ...], a function of (seed, step)
            rate = learning_rate_at(self.step, self.total, self.config)
            result = self.train_step(batch, rate)
            self.step += 1
            epoch, seconds = self.step / self.batches.per_epoch, time.perf_counter() - began
            if self.monitor.is_logged(self.step) or self.monitor.is_measured(self.step):
                self._require_finite()
            improved = self.monitor.after_step(self.step, epoch, result, rate, len(batch.sentences), seconds)
            if improved or self.is_save_due():
                self.save()
        if self.step < self.total:  # a checkpoint of this step may be that of an abandoned run
            self.save()
        self.monitor.close()

    def train_step(self, batch: Batch, rate: float) -> Readback:
        """Take one optimiser step and return its loss.

        Raises `TrainingError` if the loss or its gradient is not finite, where it `reads_late` if those of the step
        before are not. Nothing here asks a GPU for a value of this step, which would make the CPU wait for it.
        """
        for group in self.adamw.param_groups:
            group["lr"] = rate
        rows = self.teachers.rows(batch)
        parts = batch.parts(self.config.micro_batch_size)
        loss = forward_backward(
            self.encoder,
            self.paired_objective if batch.paired else self.objective,
            parts,
            rows,
            noise=partial(seeded, self.config.seed, self.step),  # a function of (seed, step, part): resuming is exact
            autocast=self.accelerator.autocast,
            scale=self._scale,
        )
        if isinstance(self.adamw, CompiledAdamW):
            norm = self.adamw.clip(self.config.max_grad_norm, torch.cat([tokens for tokens, _ in parts]))
        else:
            parameters = self.encoder.parameters()
            norm = torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm))
        # In float16 the scaler itself skips a step whose gradients overflow.
        finite = torch.isfinite(loss)
        if self.config.precision != "fp16":
            finite = finite & torch.isfinite(norm)
        if self.reads_late:
            self._require_finite()
        self._last = Readback(self.step + 1, loss, finite, norm), batch
        if not self.reads_late:
            self._require_finite()  # before the weights change
        self.optimizer.step()
        self.teachers.after_step(self.encoder)
        if not batch.paired:
            self.objective.after_step(rows)
        if isinstance(self.adamw, CompiledAdamW):
            self.adamw.zero_grad()
        else:
            clear_gradients(self.encoder)
        return self._last[0]

    def is_save_due(self) -> bool:
        """Return whether the settings ask for a checkpoint at the present step."""
        minutes = self.config.save_minutes
        by_clock = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return self.step % self.config.save_every == 0 or self.step == self.total or by_clock

    def save(self) -> None:
        """Save a checkpoint, and only then delete those that are no longer kept; only the main process does."""
        self._require_finite()
        if not distributed.is_main():
            return
        if (self.run / METRICS).exists():  # of which a resumed run needs the lines up to this step
            flush(self.run / METRICS)
        save_checkpoint(
            self.run, self.state(), self.encoder, self.adamw, self.objective.state() | self.teachers.state()
        )
        best = self.monitor.best
        prune(self.run, self.config.keep, self.step, best.step if best else None, self.abandoned)
        forget_metrics(self.run)
        self.abandoned = []
        self._saved_at = time.monotonic()

    def state(self) -> State:
        """Return what a checkpoint of the present step has to hold besides tensors."""
        best = self.monitor.best
        scaler = self.accelerator.scaler
        of_text, of_training_pairs, of_labelled_pairs = self.texts.fingerprints
        return State(
            step=self.step,
            best_step=best.step if best else None,
            best_score=best.score if best else None,
            without_improvement=self.monitor.without_improvement,
            corpus=of_text,
            sentences=self.batches.sentences,
            steps=self.total,
            settings=self.config.model_dump(),
            base_model=model_name(self.source),
            scaler=scaler.state_dict() if scaler is not None and scaler.is_enabled() else None,
            versions=computation(self.encoder, self.kernels),
            pairs=of_labelled_pairs,
            training_pairs=of_training_pairs,
            counts=asdict(self.texts.corpus.counts) if self.texts.corpus is not None else None,
            processes=distributed.world_size(),
            order=self.batches.order_version,
            start=self.start,
            unlogged=self.monitor.unlogged,
            source=self.source,
            for_sentences=self.encoder.folder.for_sentences,
            frozen=frozen_weights(self.encoder),
        )

    def seen(self, step: int) -> Seen | None:
        """Return the held-out sentences as the encoders before training and of the best `step` see them, if known."""
        spaces, corpus = self.monitor.spaces(step), self.texts.corpus
        if corpus is None or spaces is None or not len(self.batches.held_out):
            return None
        return Seen(corpus.counts, corpus.texts(self.batches.held_out), spaces)

    def restore(self, checkpoint: Path, state: State) -> None:
        """Continue from the state of a checkpoint; raises `InputError` if it does not fit the settings."""
        if self.total < state.steps:
            raise InputError(
                f"The run was begun with {state.steps:,} steps, and its learning rate follows from them: their number "
                f"can be raised, and not be lowered to {self.total:,}. Raise --max-steps or --epochs, or leave it out."
            )
        load_optimizer(checkpoint, self.encoder, self.adamw)
        tensors = {name: t.to(self.accelerator.device) for name, t in load_objective_state(checkpoint).items()}
        self.objective.load_state(tensors)
        self.teachers.load_state(tensors)
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.step = state.step
        self.start, self.source = state.start, state.source or state.base_model
        self.abandoned = [path for path in checkpoints(self.run) if path.name > checkpoint.name]
        if distributed.is_main():
            start = self._start()
            self.monitor.restore(*self._best(state, start), start, state.unlogged)

    def _best(self, state: State, start: Encoder | None) -> tuple[Best | None, int]:
        """Return the best step of a checkpoint's run, if it can still be exported, and the evaluations since then."""
        if not state.step:  # step 0 is measured again
            return None, 0
        if state.best_step is None:
            return None, state.without_improvement
        best = checkpoint_path(self.run, state.best_step)
        if state.best_step not in (0, state.step) and (reason := damage(best)):
            logger.warning(f"The best checkpoint {best} can't be used: {reason}. The best step from here on is kept.")
            first = next((line for line in read_metrics(self.run) if line["step"] == 0), None)
            return (Best(0, first.get("score")) if first and start else None), 0  # what follows may be worse than that
        return Best(state.best_step, state.best_score), state.without_improvement

    def _start(self) -> Encoder | None:
        """Return the encoder before training, or None where it is gone and the objective does not need it."""
        try:
            return load_start(self.run, self.config, self.start).to(self.accelerator.device)
        except InputError as error:
            logger.warning(f"{error} Without it, the neighbours kept are not measured from here on.")
            return None

    def _scale(self, loss: Tensor) -> Tensor:
        scaler = self.accelerator.scaler
        return loss if scaler is None else scaler.scale(loss)

    def _require_finite(self) -> None:
        """Raise `TrainingError`, with the sentences of the batch, if the last step taken was not finite."""
        if self._last is None or self._last[0].is_finite:
            return
        result, batch = self._last
        shown = "; ".join(repr(text[:80]) for text in self.batches.texts(batch.sentences)[:8])
        raise TrainingError(
            f"Step {result.step}: the loss is {result.loss} or its gradient is not finite. The batch begins with "
            f"{shown}. {last_saved(self.run)} Try a lower --learning-rate, a higher --temperature, or --precision fp32."
        )


def _accelerator(config: TrainConfig) -> Accelerator:
    # accelerate keeps one precision for the whole process; a second run in it may need another.
    AcceleratorState._reset_state(reset_partial_state=True)
    mixed_precision = "no" if config.precision == "fp32" else config.precision
    return Accelerator(cpu=config.device == "cpu", mixed_precision=mixed_precision)

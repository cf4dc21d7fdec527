"""The loop: batches in, loss, step, log, evaluate, save.

Read top to bottom this is unsupervised SimCSE (Gao, Yao & Chen 2021, section 3): each sentence goes through the encoder twice, dropout
makes the two embeddings differ, and the loss pulls them together and pushes the other sentences of the batch away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from simcse_train import __version__
from simcse_train.batches import Batch, epoch_batches, micro_batches, not_held_out, steps_per_epoch, two_views
from simcse_train.checkpoint import (
    State,
    checkpoint_path,
    checkpoints,
    find_checkpoint,
    load_checkpoint_encoder,
    load_optimizer,
    load_state,
    never_saved,
    prune,
    run_to_resume,
    save_checkpoint,
)
from simcse_train.config import STARTER, InputError, TrainConfig, config_yaml, make_config, read_settings
from simcse_train.corpus import Corpus, open_corpus
from simcse_train.encoder import Encoder, projection_head, seeded
from simcse_train.evaluation import Pair, alignment_and_uniformity, read_pairs, similarity_score
from simcse_train.export import choose_checkpoint, read_metrics, write_export
from simcse_train.gradients import clear_gradients, keep_embedding_gradient
from simcse_train.loading import load_encoder
from simcse_train.loss import OBJECTIVES
from simcse_train.plan import changed, check_space, find_device, new_run_folder, remove_unused, resolve
from simcse_train.report import measures, only_measures, verdict
from simcse_train.stopping import StopRequests
from simcse_train.texts import find_files
from simcse_train.writing import SaveError, only_writer, sweep, write_text

HELD_OUT = 512
logger = logging.getLogger(__name__)


class TrainingError(Exception):
    """The run failed while running; what was saved before is intact."""


class Stopped(Exception):
    """A signal stopped the run; its state is saved."""

    def __init__(self, signal_number: int, run: Path) -> None:
        super().__init__(f"Stopped. To go on: simcse-train --resume {run}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its encoder, and what was measured before and after training."""

    folder: Path
    encoder: Encoder
    before: Mapping[str, float]
    after: Mapping[str, float]


def train(config: TrainConfig) -> Run:
    """Train an encoder as the settings say and return the finished run.

    Raises `InputError` if a setting or a file can't be used, `TrainingError` or `SaveError` if the run fails on its way, `Stopped`
    after a signal, and `Interrupted`, a `KeyboardInterrupt`, after one that came before training began.
    """
    run = new_run_folder(config)
    with only_writer(run), StopRequests() as stop:
        sweep(run)
        try:
            training = _begin(run, config)
        except BaseException:
            remove_unused(run)
            raise
        return training.run(stop)


def _begin(run: Path, config: TrainConfig) -> _Training:
    """Prepare a run from its first step."""
    # Whatever can be known to be wrong in a moment is said before the encoder is loaded.
    find_files(entry for entry in config.data if entry != "-")
    pairs = _labelled_pairs(config)
    encoder = load_encoder(config.model, pooling=config.pooling, dropout=config.dropout)
    if config.model == STARTER:
        logger.info("Encoder: the bundled starter, a small English BERT. --model takes any other, such as bert-base-uncased.")
    config = resolve(config, encoder, run)
    check_space(encoder, config, run)
    # From here on a run that is killed can be resumed, also while a long text is tokenised.
    write_text(run / "config.yaml", config_yaml(config))
    if config.projection == "on":
        spread = encoder.model.config.initializer_range
        encoder.head = projection_head(encoder.hidden_size, seed=config.seed, initializer_range=spread)
    corpus = open_corpus(config.data, config.text_column, encoder, config.max_length)
    return _Training(run, config, encoder, corpus, pairs)


def resume(path: Path, changes: Mapping[str, Any]) -> Run:
    """Go on where a run stopped: from its newest intact checkpoint, or from the checkpoint given.

    A run that was stopped before its first checkpoint starts from the beginning. `changes` may raise the number of epochs or steps,
    name the text's or the pairs' new place, or alter how often the run saves and logs. Raises as `train` does, and `InputError` if the
    text or another setting is not that of the run.
    """
    run = run_to_resume(path)
    with only_writer(run), StopRequests() as stop:
        sweep(run)
        if path == run and never_saved(run):
            logger.info(f"{run} was stopped before its first checkpoint: starting from the beginning.")
            settings = read_settings(run / "config.yaml") | {"output": str(run)}
            training = _begin(run, changed(make_config(settings, source=f"{run}/config.yaml"), changes))
            (run / "metrics.jsonl").unlink(missing_ok=True)
            return training.run(stop)
        checkpoint, skipped = find_checkpoint(path)
        for line in skipped:
            logger.warning(line)
        state = load_state(checkpoint)
        config = changed(state.config(), changes)
        find_device(config.device)
        pairs = _labelled_pairs(config)
        if state.pairs is not None and _fingerprint(pairs) != state.pairs:
            raise InputError(
                f"--eval {config.eval} does not hold the labelled pairs of the run: its content has changed, and scores would not "
                "compare. Put the old pairs back, or start a new run from the encoder with --model."
            )
        encoder = load_checkpoint_encoder(checkpoint, config)
        check_space(encoder, config, run)
        corpus = open_corpus(config.data, config.text_column, encoder, config.max_length, expected=state.corpus)
        training = _Training(run, config, encoder, corpus, pairs)
        training.restore(checkpoint, state)
        return training.run(stop)


def _labelled_pairs(config: TrainConfig) -> list[Pair] | None:
    if config.eval is None:
        return None
    if not Path(config.eval).is_file():
        raise InputError(f"--eval {config.eval}: there is no such file. Check the path; a run that goes on may be given the new place.")
    return read_pairs(Path(config.eval))


def _fingerprint(pairs: list[Pair] | None) -> str | None:
    return None if pairs is None else hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _versions() -> dict[str, str]:
    """Return what decides, beside the state, whether a run ends with the same bits."""
    return {
        "simcse-train": __version__,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "python": sys.version.split()[0],
    }


def learning_rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Return the rate of a step (from 0): linear to the peak over the warm-up, then linear to 0 at `total`."""
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * (total - step) / max(1, total - warmup)


def parameter_groups(encoder: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in two groups: matrices decay, biases and layer norms do not (as in BERT)."""
    trained = [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]
    return [
        {"params": [p for _, p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for _, p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def add_gradients(encoder: Encoder, batch: Batch, config: TrainConfig, step: int, accelerator: Accelerator) -> Tensor:
    """Add the gradients of a step's loss to those of the parameters, and return the loss.

    With `micro_batch_size` no more sentences than that are held at once (gradient caching, Gao et al. 2021, arXiv 2101.06983,
    section 3.2): the loss of all embeddings gives the gradient by each, and a second pass over each micro batch, under the same
    noise, carries it on to the parameters. The sum is the gradient of the undivided batch.
    """
    parts = micro_batches(batch, config.micro_batch_size)

    def embed(part: int) -> Tensor:  # (rows of the part, hidden)
        # The noise is a function of (seed, step, part): nothing that happens between two steps can change it, and it can be replayed.
        with seeded(config.seed, step, part), accelerator.autocast():
            return encoder(*parts[part])  # type: ignore[no-any-return]

    if len(parts) == 1:
        embeddings = embed(0)  # (2N, hidden)
    else:
        with torch.no_grad():
            embeddings = torch.cat([embed(part) for part in range(len(parts))])  # (2N, hidden)
        embeddings.requires_grad_()
    loss = OBJECTIVES[config.objective](embeddings, config.temperature, batch.texts)
    accelerator.backward(loss)
    if len(parts) > 1:
        assert embeddings.grad is not None
        for part, gradient in enumerate(embeddings.grad.split([len(lengths) for _, lengths in parts])):
            embed(part).backward(gradient)
    return loss.detach()


class _Training:
    """The state of a run in memory, and the loop over it."""

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        encoder: Encoder,
        corpus: Corpus,
        pairs: list[Pair] | None,
    ) -> None:
        self.folder, self.config, self.corpus, self.pairs = run, config, corpus, pairs
        # accelerate keeps one precision for the whole process; a second run in it may want another.
        AcceleratorState._reset_state(reset_partial_state=True)
        mixed = "no" if config.precision == "fp32" else config.precision
        self.accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision=mixed)
        self.encoder = encoder.to(self.accelerator.device)
        for name, parameter in encoder.named_parameters():
            if "pooler" in name:  # the family's own, which no embedding passes through
                parameter.requires_grad_(False)
        keep_embedding_gradient(encoder.model)
        self.adamw = torch.optim.AdamW(parameter_groups(encoder, config.weight_decay), lr=config.learning_rate, fused=True)
        self.optimizer = self.accelerator.prepare(self.adamw)

        held_out = min(HELD_OUT, len(corpus) // 10)
        # Evenly spaced and the same for every seed, so that the figures of two seeds compare.
        self.held_out = np.linspace(0, len(corpus) - 1, held_out if held_out >= 2 else 0, dtype=np.int64)
        self.measured = corpus.tokens(self.held_out if len(self.held_out) else np.arange(len(corpus)))
        self.sentences = len(corpus) - len(self.held_out)  # learned from
        self.per_epoch = steps_per_epoch(self.sentences, config.batch_size)
        self.total = config.max_steps or config.epochs * self.per_epoch
        self.step = 0
        self.best: tuple[int, float] | None = None
        self.announce()

    def announce(self) -> None:
        """Say what is about to happen."""
        counts, config = self.corpus.counts, self.config
        logger.info(
            f"Text: {counts.lines:,} lines, {counts.empty:,} empty and {counts.duplicates:,} duplicates dropped, {counts.cut:,} cut at "
            f"{config.max_length} tokens; {counts.sentences:,} sentences remain, "
            + (f"{len(self.held_out)} of them held out." if len(self.held_out) else "too few to hold any out.")
        )
        logger.info(
            f"Training: {self.total:,} steps of {config.batch_size} sentences"
            + (f" in parts of {config.micro_batch_size}" if config.micro_batch_size else "")
            + f", {config.objective}, {self.encoder.pooling} pooling, "
            f"{'with' if self.encoder.head else 'without'} head, {config.precision} on {self.accelerator.device}, "
            f"{'packed' if self.encoder.packed else 'padded'} batches. Folder: {self.folder}"
        )
        if not self.encoder.packed:
            logger.info("This encoder's attention can't be packed; padding is computed too, which is slower but gives the same result.")

    def restore(self, checkpoint: Path, state: State) -> None:
        """Take up the state of a checkpoint."""
        load_optimizer(checkpoint, self.encoder, self.adamw)
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        if state.step > self.total:
            raise InputError(f"{checkpoint} is at step {state.step}, beyond the {self.total} asked for. --max-steps can only be raised.")
        self.step = state.step
        if state.best_step is not None and state.best_score is not None:
            self.best = (state.best_step, state.best_score)
        # What was logged after the checkpoint will be logged again, and so will the start if nothing came after it.
        kept = [line for line in read_metrics(self.folder) if line["step"] <= self.step and self.step > 0]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        write_text(self.folder / "config.yaml", config_yaml(self.config))
        logger.info(f"Going on from {checkpoint}, step {self.step} of {self.total}.")
        differ = [f"{name} {old}, now {new}" for name, new in _versions().items() if (old := state.versions.get(name)) != new]
        if differ:
            logger.warning(f"The checkpoint was saved by {'; '.join(differ)}: the end may differ in its last bits from an unbroken run's.")
        later = [path for path in checkpoints(self.folder) if path.name > checkpoint.name]
        if later:
            logger.warning(f"The checkpoints after it, up to {later[-1].name}, are removed when the next one is saved.")

    def batches(self) -> Iterator[NDArray[np.int64]]:
        """Yield the sentence numbers of each batch from the present step on."""
        while True:
            epoch, position = divmod(self.step, self.per_epoch)
            for rows in epoch_batches(self.sentences, self.config.batch_size, seed=self.config.seed, epoch=epoch, start=position):
                yield not_held_out(rows, self.held_out)

    def run(self, stop: StopRequests) -> Run:
        """Train to the end and export."""
        stop.begun = True
        if self.step == 0:
            self.evaluate()
        self.train_steps(stop)
        return self.finish()

    def train_steps(self, stop: StopRequests) -> None:
        """Train from the present step to the last, or to the boundary of the step in which a signal comes."""
        config, encoder = self.config, self.encoder
        encoder.train()
        losses: list[float] = []
        sentences, seconds, saved_at = 0, 0.0, time.monotonic()
        bar = tqdm(total=self.total, initial=self.step, desc="train", unit="step", disable=None)
        batches = self.batches()
        while self.step < self.total:
            if stop.signal_number:
                self.save()
                bar.close()
                raise Stopped(stop.signal_number, self.folder)
            began = time.perf_counter()
            rows = next(batches)
            batch = two_views(self.corpus.tokens(rows), self.accelerator.device)  # [a, a, b, b, ...]
            for group in self.adamw.param_groups:
                group["lr"] = learning_rate_at(self.step, self.total, config)
            loss = add_gradients(encoder, batch, config, self.step, self.accelerator)
            norm = self.accelerator.clip_grad_norm_(encoder.parameters(), config.max_grad_norm)
            # With fp16 the scaler itself skips a step whose gradients overflow.
            if not torch.isfinite(loss) or (config.precision != "fp16" and not torch.isfinite(torch.as_tensor(norm))):
                raise self.not_finite(loss.item(), rows)
            self.optimizer.step()
            clear_gradients(encoder)
            self.step += 1
            losses.append(loss.item())
            sentences += len(rows)
            seconds += time.perf_counter() - began
            bar.update()

            record: dict[str, Any] = {}
            if self.step % config.log_every == 0 or self.step == self.total:
                record = {
                    "epoch": round(self.step / self.per_epoch, 4),
                    "loss": sum(losses) / len(losses),
                    "learning_rate": self.adamw.param_groups[0]["lr"],
                    "sentences_per_second": round(sentences / seconds, 1),
                }
                bar.set_postfix_str(f"loss {record['loss']:.4f}, {record['sentences_per_second']:.0f} sentences/s")
                losses, sentences, seconds = [], 0, 0.0
            improved = False
            if self.step % config.eval_every == 0 or self.step == self.total:
                improved = self.evaluate(record)
            elif record:
                self.log(record)
            by_clock = config.save_minutes is not None and time.monotonic() - saved_at >= 60 * config.save_minutes
            if self.step % config.save_every == 0 or self.step == self.total or improved or by_clock:
                self.save()
                saved_at = time.monotonic()
        bar.close()

    def not_finite(self, loss: float, rows: NDArray[np.int64]) -> TrainingError:
        """Return the error for a loss or gradient that is not a number, with the sentences that gave it."""
        shown = "; ".join(repr(text[:80]) for text in self.corpus.texts(rows)[:8])
        saved = checkpoints(self.folder)
        last = f"The last checkpoint is {saved[-1]}." if saved else "No checkpoint was saved before."
        return TrainingError(
            f"Step {self.step + 1}: the loss is {loss} or its gradient is not finite. The batch begins with {shown}. {last} Try a lower "
            "--learning-rate, a higher --temperature, or --precision fp32."
        )

    def evaluate(self, record: dict[str, Any] | None = None) -> bool:
        """Measure, log and report; return whether the labelled score is the best so far."""
        record = dict(record or {})
        aligned, uniform = alignment_and_uniformity(self.encoder, self.measured)
        record |= {"alignment": aligned, "uniformity": uniform}
        improved = False
        if self.pairs is not None:
            score = similarity_score(self.encoder, self.pairs)
            record["score"] = score
            if self.step > 0 and score is not None and (self.best is None or score > self.best[1]):
                self.best, improved = (self.step, score), True
        self.log(record)
        loss = f"loss {record['loss']:.4f}  " if "loss" in record else ""
        logger.info(f"step {self.step:>6}  {loss}{measures(record)}" + ("  best so far" if improved else ""))
        return improved

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        try:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": self.step, **record}) + "\n")
        except OSError as error:
            raise SaveError(f"{self.folder}/metrics.jsonl can't be written: {error.strerror}. The checkpoints are intact.") from None

    def state(self) -> State:
        """Return what a checkpoint of this moment has to hold."""
        epoch, position = divmod(self.step, self.per_epoch)
        scaler = self.accelerator.scaler
        return State(
            step=self.step,
            epoch=epoch,
            position=position,
            best_step=self.best[0] if self.best else None,
            best_score=self.best[1] if self.best else None,
            corpus=self.corpus.fingerprint,
            sentences=self.sentences,
            steps=self.total,
            settings=self.config.model_dump(),
            base_model=Path(self.config.model).name,
            scaler=scaler.state_dict() if scaler is not None and scaler.is_enabled() else None,
            versions=_versions(),
            pairs=_fingerprint(self.pairs),
        )

    def save(self) -> None:
        """Save a checkpoint, and only then remove those that are no longer kept."""
        save_checkpoint(self.folder, self.state(), self.encoder, self.adamw)
        prune(self.folder, self.config.keep, self.step, self.best[0] if self.best else None)

    def finish(self) -> Run:
        """Export the encoder, the best where there is one, and report before and after."""
        newest = checkpoint_path(self.folder, self.step)
        try:
            chosen = choose_checkpoint(self.folder, newest, None)
            state = load_state(chosen)
            encoder = load_checkpoint_encoder(chosen, self.config)
        except InputError as error:  # what this very run saved is harmed or gone: no fault of the input
            raise TrainingError(f"The run is trained, but its encoder can't be exported. {error}") from None
        target = self.folder / "encoder"
        write_export(encoder, state, self.folder, target)
        encoder.head = None
        measured = {line["step"]: line for line in read_metrics(self.folder) if "uniformity" in line}
        before, after = (only_measures(measured.get(step, {})) for step in (0, state.step))
        if before:
            logger.info(f"before training  {measures(before)}")
        logger.info(f"after training   {measures(after)}")
        logger.info(verdict(before, after, self.pairs is not None))
        logger.info(f"Encoder: {target} (step {state.step}), ready for SentenceTransformer or AutoModel.")
        return Run(self.folder, encoder, before, after)

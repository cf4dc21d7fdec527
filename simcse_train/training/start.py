"""Start and resume runs: check everything that can be known to be wrong, build the trainer, train, export."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simcse_train.config import STARTER, TrainConfig, config_yaml, make_config, read_settings
from simcse_train.data.corpus import Corpus, open_corpus
from simcse_train.data.files import find_files, one_file
from simcse_train.data.pairs import Pair, fingerprint, read_pairs
from simcse_train.data.training_pairs import TrainingPairs, open_training_pairs
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.head import projection_head
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError, TrainingError
from simcse_train.export.folder import load_chosen, write_export
from simcse_train.objectives.registry import make_objective
from simcse_train.report.verdict import announcement, describe, judge, only_measures
from simcse_train.runs.atomic import write_text
from simcse_train.runs.checkpoint import find_checkpoint, load_checkpoint_encoder, load_state, run_to_resume
from simcse_train.runs.folder import (
    CONFIG,
    ENCODER,
    METRICS,
    checkpoint_path,
    checkpoints,
    never_saved,
    new_run_folder,
    only_writer,
    remove_unused,
)
from simcse_train.runs.metrics import drop_metrics_after, read_metrics
from simcse_train.runs.start import keep_start
from simcse_train.runs.trackers import tracked
from simcse_train.training.loop import Trainer
from simcse_train.training.plan import (
    changed,
    check_disk,
    choose_epochs,
    choose_objective,
    find_device,
    make_batches,
    resolve,
    versions,
)
from simcse_train.training.stopping import StopRequests
from simcse_train.training.teachers import needs_start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its encoder, and what was measured before and after training."""

    folder: Path
    encoder: Encoder
    before: Mapping[str, float]
    after: Mapping[str, float]


def train(config: TrainConfig, encoder: Encoder | None = None) -> Run:
    """Train an encoder as the settings say and return the finished run.

    `encoder` is trained in place of the one that `config.model` names, for example one loaded with `packed=False`.
    Raises `InputError` if a setting or a file cannot be used, `TrainingError` or `SaveError` if the run fails,
    `Stopped` after a signal, and `Interrupted`, a `KeyboardInterrupt`, after a signal before training began.
    """
    run = new_run_folder(config)
    with only_writer(run), StopRequests() as stop:
        try:
            trainer = _new_trainer(run, config, encoder)
        except BaseException:
            remove_unused(run)
            raise
        with tracked(run, trainer.config):
            trainer.fit(stop)
        return finish(trainer)


def resume(path: str | Path, changes: Mapping[str, Any] | None = None) -> Run:
    """Continue a run where it stopped: from its newest intact checkpoint, or from the checkpoint given.

    A run that was stopped before its first checkpoint starts from the beginning. `changes` may raise the number of
    epochs or steps, name the new place of the text or the pairs, or alter how often the run saves and logs. Raises as
    `train` does, and `InputError` if the text or another setting is not that of the run.
    """
    path = Path(path)
    run = run_to_resume(path)
    changes = changes or {}
    with only_writer(run), StopRequests() as stop:
        if path == run and never_saved(run):
            logger.info(f"{run} was stopped before its first checkpoint: starting from the beginning.")
            settings = read_settings(run / CONFIG) | {"output": str(run)}
            trainer = _new_trainer(run, changed(make_config(settings, source=str(run / CONFIG)), changes))
            (run / METRICS).unlink(missing_ok=True)
        else:
            checkpoint, skipped = find_checkpoint(path)
            for line in skipped:
                logger.warning(line)
            trainer = _resumed_trainer(run, checkpoint, changes)
        with tracked(run, trainer.config):
            trainer.fit(stop)
        return finish(trainer)


def _new_trainer(run: Path, config: TrainConfig, encoder: Encoder | None = None) -> Trainer:
    # What can be known to be wrong at once is reported before the encoder is loaded.
    find_files(entry for entry in config.data if entry != "-")
    if config.pairs:
        one_file(Path(config.pairs), "--pairs")
    pairs = _labelled_pairs(config)
    encoder = encoder or load_encoder(config.model, pooling=config.pooling, dropout=config.dropout)
    if config.model == STARTER:
        logger.info(
            "Encoder: the bundled starter, a small English BERT. --model takes any other, such as bert-base-uncased."
        )
    config = resolve(config, encoder, run)
    check_disk(encoder, config, run)
    # From here on a run that is killed can be resumed, also while a long text is tokenised.
    write_text(run / CONFIG, config_yaml(config))
    if config.projection == "on":
        spread = getattr(encoder.model.config, "initializer_range", None) or 0.02  # XLM has none
        encoder.head = projection_head(encoder.hidden_size, seed=config.seed, initializer_range=spread)
    corpus, training_pairs = _open_texts(config, encoder)
    batches = make_batches(config, encoder, corpus, training_pairs)
    config = choose_epochs(config, batches)
    if config.objective == "auto":
        config, reason = choose_objective(config, encoder, batches)
        logger.info(reason)
    write_text(run / CONFIG, config_yaml(config))
    if needs_start(config, make_objective(config)):
        keep_start(run, encoder)
    trainer = Trainer(run, config, encoder, corpus, training_pairs, pairs)
    _announce(trainer)
    return trainer


def _resumed_trainer(run: Path, checkpoint: Path, changes: Mapping[str, Any]) -> Trainer:
    state = load_state(checkpoint)
    config = changed(state.config(), changes)
    find_device(config.device)
    pairs = _labelled_pairs(config)
    if state.pairs is not None and fingerprint(pairs) != state.pairs:
        raise InputError(
            f"--eval {config.eval} does not hold the labelled pairs of the run: its content has changed, and scores "
            "would not compare. Restore the old pairs, or start a new run from the encoder with --model."
        )
    encoder = load_checkpoint_encoder(checkpoint, config)
    check_disk(encoder, config, run)
    corpus, training_pairs = _open_texts(config, encoder, expected=state.corpus)
    if training_pairs is not None and training_pairs.fingerprint != state.training_pairs:
        raise InputError(
            f"--pairs {config.pairs} does not hold the pairs that the run was trained on: its content has changed. "
            "Restore the old pairs, or start a new run from the encoder with --model."
        )
    trainer = Trainer(run, config, encoder, corpus, training_pairs, pairs)
    trainer.restore(checkpoint, state)
    _announce(trainer)
    drop_metrics_after(run, state.step)
    write_text(run / CONFIG, config_yaml(config))
    logger.info(f"Continuing from {checkpoint}, step {state.step} of {trainer.total}.")
    before = {"kernels": "off"} | state.versions  # version 0.1.0 had none
    now = versions(trainer.kernels)
    differ = [f"{name} {before.get(name)}, now {new}" for name, new in now.items() if before.get(name) != new]
    if differ:
        logger.warning(
            f"The checkpoint was saved by {'; '.join(differ)}: the result may differ in its last bits from that of an "
            "uninterrupted run."
        )
    later = [path for path in checkpoints(run) if path.name > checkpoint.name]
    if later:
        logger.warning(f"Checkpoints after it, up to {later[-1].name}, will be deleted when the next one is saved.")
    return trainer


def _open_texts(
    config: TrainConfig, encoder: Encoder, expected: str | None = None
) -> tuple[Corpus | None, TrainingPairs | None]:
    """Return the text and the training pairs that the settings name; `expected` is the text's fingerprint."""
    pairs = None
    if config.pairs:
        # Alone, the pairs are the text that --encoding is for; beside a text they may have another encoding.
        encodings = (None, config.encoding) if config.data else (config.encoding, None)
        pairs = open_training_pairs(
            Path(config.pairs), encoder.tokenizer, config.max_length, encodings[0], fallback_encoding=encodings[1]
        )
    if not config.data:
        return None, pairs
    corpus = open_corpus(
        config.data,
        config.text_column,
        encoder.tokenizer,
        config.max_length,
        expected=expected,
        encoding=config.encoding,
    )
    return corpus, pairs


def _labelled_pairs(config: TrainConfig) -> list[Pair] | None:
    if config.eval is None:
        return None
    if not Path(config.eval).exists():
        raise InputError(
            f"--eval {config.eval}: there is no such file. Check the path; a resumed run may be given the new place."
        )
    return read_pairs(one_file(Path(config.eval), "--eval"), "--eval", fallback_encoding=config.encoding)


def _announce(trainer: Trainer) -> None:
    for line in announcement(
        trainer.run,
        trainer.config,
        trainer.encoder,
        trainer.corpus.counts if trainer.corpus is not None else None,
        len(trainer.training_pairs.rows) if trainer.training_pairs is not None else 0,
        len(trainer.batches.held_out),
        trainer.total,
    ):
        logger.info(line)


def finish(trainer: Trainer) -> Run:
    """Export the encoder, the best where there is one, and report what was measured before and after training."""
    run = trainer.run
    newest = checkpoint_path(run, trainer.step)
    try:
        state, encoder = load_chosen(run, newest, None)
    except InputError as error:  # what this very run saved is damaged or gone: not a fault of the input
        raise TrainingError(f"The run is trained, but its encoder can't be exported. {error}") from None
    write_export(encoder, state, run, run / ENCODER)
    encoder.head = None
    measured = {line["step"]: line for line in read_metrics(run) if "uniformity" in line}
    before, last, after = (only_measures(measured.get(step, {})) for step in (0, trainer.step, state.step))
    if before:
        logger.info(f"before training  {describe(before)}")
    logger.info(f"after training   {describe(last)}")
    if state.step not in (0, trainer.step):
        logger.info(f"best, step {state.step:<5}  {describe(after)}")
    logger.info(str(judge(before, last if state.step == 0 else after)))
    if state.step == 0:
        logger.info(f"Training did not help here. Encoder: {run / ENCODER}, the one you started with.")
    else:
        logger.info(f"Encoder: {run / ENCODER} (step {state.step}), ready for SentenceTransformer or AutoModel.")
    return Run(run, encoder, before, after)

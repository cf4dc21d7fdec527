"""Prepare a run: from its settings, or from a checkpoint, to a trainer that can take the next step.

Everything that can be known to be wrong is found here, what takes no time first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from simcse_train import distributed
from simcse_train.config import STARTER, TrainConfig, make_config
from simcse_train.config_file import config_yaml
from simcse_train.data.batches import Batches
from simcse_train.data.files import find_files, one_file, require_lasting
from simcse_train.data.pairs import fingerprint
from simcse_train.encoders.encoder import Encoder
from simcse_train.encoders.head import projection_head
from simcse_train.errors import InputError
from simcse_train.evaluation.diagnosis import Diagnosis
from simcse_train.objectives.registry import make_objective
from simcse_train.report.verdict import announcement
from simcse_train.runs.atomic import write_text
from simcse_train.runs.checkpoint import load_checkpoint_encoder, load_state
from simcse_train.runs.folder import (
    CONFIG,
    START,
)
from simcse_train.runs.metrics import drop_metrics_after, read_metrics
from simcse_train.runs.start import freeze_again, keep_start, load_beginning
from simcse_train.training.changes import changed, risk_of_more_steps
from simcse_train.training.computation import computation, prepare_kernels
from simcse_train.training.equality import require_equal_data, require_equal_kernels, require_equal_settings
from simcse_train.training.loop import Trainer
from simcse_train.training.monitor import Before, look_before
from simcse_train.training.plan import (
    check_disk,
    choose_epochs,
    choose_objective,
    find_device,
    make_batches,
    require_own_settings,
    require_reached_pairs,
    resolve,
    total_steps,
)
from simcse_train.training.teachers import needs_start
from simcse_train.training.texts import Texts, labelled_pairs, open_texts

logger = logging.getLogger(__name__)


def new_trainer(run: Path, config: TrainConfig, encoder: Encoder | None = None) -> Trainer:
    """Return the trainer of a new run at step 0, with an encoder that is given or the one that the settings name."""
    _require_places(config)
    labelled = labelled_pairs(config)
    config, encoder = _begin(run, config, encoder)
    prepare_kernels(encoder, config)
    texts = open_texts(config, encoder, labelled)
    config, before = _plan(run, config, encoder, texts)
    trainer = Trainer(run, config, encoder, texts, before=before)
    require_equal_kernels(trainer.kernels)
    _announce(trainer)
    return trainer


def _require_places(config: TrainConfig) -> None:
    """Raise `InputError` at once if a file is not there, or will not be there when the run is resumed."""
    require_lasting(find_files(entry for entry in config.data if entry != "-"), "--data")
    for option, entry in (("--pairs", config.pairs), ("--eval", config.eval)):
        if entry:
            require_lasting([one_file(Path(entry), option)], option)


def _begin(run: Path, config: TrainConfig, given: Encoder | None) -> tuple[TrainConfig, Encoder]:
    """Return the encoder to train and what the settings mean for it; from then on the run can be resumed."""
    if given is not None:
        require_own_settings(config, given)
    encoder = load_beginning(run, config) if given is None else given
    if config.model == STARTER and given is None:
        logger.info(
            "Encoder: the bundled starter, a small English BERT. --model takes any other, such as bert-base-uncased."
        )
    config = resolve(config, encoder, run)
    encoder.to(config.device, torch.float32)  # AdamW on fewer digits rounds most of its updates away
    if distributed.is_main():
        check_disk(encoder, config, run)
        if given is not None:  # no file of the user's has it: resuming, the report and an export of the start need it
            keep_start(run, encoder)
    if given is not None:
        config = config.model_copy(update={"model": str((run / START).absolute())})
    if distributed.is_main():
        # From here on a run that is killed can be resumed, also while a long text is tokenised.
        write_text(run / CONFIG, config_yaml(config))
    encoder.head = None  # an encoder that was given may have one
    if config.projection == "on":
        spread = getattr(encoder.model.config, "initializer_range", None) or 0.02  # XLM has none
        encoder.head = projection_head(encoder.hidden_size, seed=config.seed, initializer_range=spread)
    return config, encoder


def _plan(run: Path, config: TrainConfig, encoder: Encoder, texts: Texts) -> tuple[TrainConfig, Before]:
    """Return the settings with what was left to text and encoder together, and what was measured to choose it."""
    batches = make_batches(config, encoder, texts)
    config = choose_epochs(config, batches)
    require_reached_pairs(config, batches)
    require_equal_data(config, encoder, texts)
    before = look_before(encoder, batches)
    if config.objective == "auto":
        config = _with_chosen_objective(config, before.diagnosis, batches)
    if distributed.is_main():
        write_text(run / CONFIG, config_yaml(config))
        if needs_start(config, make_objective(config)):
            keep_start(run, encoder)
    distributed.wait()
    return config, before


def _with_chosen_objective(config: TrainConfig, diagnosis: Diagnosis, batches: Batches) -> TrainConfig:
    """Return the settings with the objective that the main process chooses; see `choose_objective`."""

    def choose() -> dict[str, Any]:
        chosen, reason = choose_objective(config, diagnosis, batches)
        logger.info(reason)
        return chosen.model_dump()

    return make_config(distributed.from_main(choose))


def resumed_trainer(run: Path, checkpoint: Path, changes: Mapping[str, Any], from_file: Mapping[str, Any]) -> Trainer:
    """Return the trainer of a run that goes on from a checkpoint; see `changes.changed` for what may differ."""
    state = load_state(checkpoint)
    # Where --kernels compile found nothing that it may do, the run goes on without, and was begun with it all the same.
    own = ("kernels", state.settings.get("kernels"))
    given = [{name: value for name, value in each.items() if (name, value) != own} for each in (changes, from_file)]
    config = changed(state.config(), *given)
    require_equal_settings(config)
    find_device(config.device)
    labelled = labelled_pairs(config)
    if state.pairs is not None and fingerprint(labelled) != state.pairs:
        raise InputError(
            f"--eval {config.eval} does not hold the labelled pairs of the run: its content has changed, and scores "
            "would not compare. Restore the old pairs, or start a new run from the encoder with --model."
        )
    padded = state.versions.get("batches") == "padded"  # it goes on so, also if it could be packed now
    encoder = freeze_again(load_checkpoint_encoder(checkpoint, config, packed=not padded), state.frozen)
    if distributed.is_main():
        check_disk(encoder, config, run)
    texts = open_texts(config, encoder, labelled, expected=state.corpus)
    if texts.training_pairs is not None and texts.training_pairs.fingerprint != state.training_pairs:
        raise InputError(
            f"--pairs {config.pairs} does not hold the pairs that the run was trained on: its content has changed. "
            "Restore the old pairs, or start a new run from the encoder with --model."
        )
    require_equal_data(config, encoder, texts)
    before = None
    encoder.folder.for_sentences = state.for_sentences
    if not state.step:  # it is measured again
        encoder.to(config.device)
        before = look_before(encoder, make_batches(config, encoder, texts, state.order))
    kernels = state.versions.get("kernels", "")
    trainer = Trainer(run, config, encoder, texts, state.order, kernels, before)
    require_equal_kernels(trainer.kernels)
    trainer.restore(checkpoint, state)
    _announce(trainer)
    if distributed.is_main():
        drop_metrics_after(run, state.step or -1, abandons=bool(trainer.abandoned))  # step 0 is measured again
        write_text(run / CONFIG, config_yaml(config))
    logger.info(f"Continuing from {checkpoint}, step {state.step} of {trainer.total}.")
    is_longer = trainer.total > total_steps(state.config(), trainer.batches)
    first = next((line for line in read_metrics(run) if line["step"] == 0), {})
    if is_longer and (risk := risk_of_more_steps(config, trainer.total, first)):
        logger.warning(risk)
    now = computation(encoder, trainer.kernels)
    saved_by = {"kernels": "off", "batches": now["batches"]} | state.versions  # version 0.1.0 had none, or did not say
    differ = [f"{name} {saved_by.get(name)}, now {new}" for name, new in now.items() if saved_by.get(name) != new]
    if state.processes != distributed.world_size():
        differ.append(f"a run of {state.processes} processes, now {distributed.world_size()}")
    if differ:
        logger.warning(
            f"The checkpoint was saved by {'; '.join(differ)}: the result may differ in its last bits from that of an "
            "uninterrupted run."
        )
    if trainer.abandoned:
        latest = trainer.abandoned[-1].name
        logger.warning(f"Checkpoints after it, up to {latest}, will be deleted when the next one is saved.")
    return trainer


def _announce(trainer: Trainer) -> None:
    corpus, training_pairs = trainer.texts.corpus, trainer.texts.training_pairs
    for line in announcement(
        trainer.run,
        trainer.config,
        trainer.encoder,
        corpus.counts if corpus is not None else None,
        len(training_pairs.rows) if training_pairs is not None else 0,
        trainer.batches.paired_before(trainer.total),
        len(trainer.batches.held_out),
        trainer.total,
    ):
        logger.info(line)

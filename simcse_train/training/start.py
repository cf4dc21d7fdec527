"""Start and resume runs: check everything that can be known to be wrong, build the trainer, train, export."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from simcse_train import distributed, launcher
from simcse_train.config import STARTER, TrainConfig, make_config
from simcse_train.config_file import config_yaml, read_settings
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
from simcse_train.runs.checkpoint import find_checkpoint, load_checkpoint_encoder, load_state, run_to_resume
from simcse_train.runs.folder import (
    CONFIG,
    METRICS,
    START,
    has_standard_input,
    never_saved,
    new_run_folder,
    only_writer,
    remove_unused,
    run_folder,
)
from simcse_train.runs.metrics import drop_metrics_after, read_metrics
from simcse_train.runs.start import freeze_again, keep_start, load_beginning
from simcse_train.runs.trackers import tracked
from simcse_train.training.changes import changed, risk_of_more_steps, without_own_folder
from simcse_train.training.computation import computation, one_training, prepare_kernels
from simcse_train.training.equality import require_equal_data, require_equal_kernels, require_equal_settings
from simcse_train.training.finish import Run, finish
from simcse_train.training.loop import Trainer
from simcse_train.training.monitor import look_before
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
from simcse_train.training.stopping import StopRequests
from simcse_train.training.teachers import needs_start
from simcse_train.training.texts import labelled_pairs, open_texts

logger = logging.getLogger(__name__)


def train(config: TrainConfig, encoder: Encoder | None = None) -> Run:
    """Train an encoder as the settings say and return the finished run.

    `encoder` is trained in place of the one that `config.model` names, for example one loaded with `packed=False`. The
    run keeps a copy of it, which its settings name.
    Raises `InputError` if a setting or a file cannot be used, `TrainingError` or `SaveError` if the run fails,
    `Stopped` after a signal, and `Interrupted`, a `KeyboardInterrupt`, after a signal before training began.

    Under `torchrun` or `accelerate launch` all processes call it. Where these start them again after a failure, the run
    continues. On a CPU torch keeps compiled products of up to 1,024 shapes, some 2 GiB: LRU_CACHE_CAPACITY=96 and
    ONEDNN_PRIMITIVE_CACHE_CAPACITY=96 in the environment, as the command line sets them, bound that.
    """
    run: Path | None = None
    if encoder is not None:
        config = config.model_copy(update={"model": encoder.source or type(encoder.model).__name__})
    with one_training(), distributed.connected(lambda: _how_to_continue(run)):
        require_equal_settings(config)
        restarted, name = distributed.from_main(lambda: _folder_to_train_in(config))
        run = Path(name)
        if restarted:
            return _resume(run, {}, {})
        with _only_writer(run), StopRequests() as stop:
            try:
                trainer = _new_trainer(run, config, encoder)
            except BaseException as error:
                # Standard input cannot be read again: the run that has read it is kept where the input is not at fault.
                is_kept = not isinstance(error, InputError) and has_standard_input(run)
                if distributed.is_main() and not is_kept:
                    remove_unused(run)
                raise
            return _fit(trainer, stop)


def resume(
    path: str | Path, changes: Mapping[str, Any] | None = None, from_file: Mapping[str, Any] | None = None
) -> Run:
    """Continue a run where it stopped: from its newest intact checkpoint, or from the checkpoint given.

    A run that was stopped before its first checkpoint starts from the beginning. `changes` may raise the number of
    epochs or steps, name the new place of the text or the pairs, or alter how often the run saves and logs; `from_file`
    holds settings that may be those that began the run. Raises as `train` does, and `InputError` if the text or another
    setting is not that of the run.
    """
    path = Path(path)
    with one_training(), distributed.connected(lambda: _how_to_continue(path)):
        return _resume(path, changes or {}, from_file or {})


def _resume(path: Path, changes: Mapping[str, Any], from_file: Mapping[str, Any]) -> Run:
    run = run_to_resume(path)
    changes, from_file = (without_own_folder(given, run) for given in (changes, from_file))
    with _only_writer(run), StopRequests() as stop:
        # The other processes read what the main process has found and checked.
        is_new, checkpoint = distributed.from_main(lambda: _where_to_continue(path, run))
        if is_new:
            logger.info(f"{run} was stopped before its first checkpoint: starting from the beginning.")
            settings = read_settings(run / CONFIG) | {"output": str(run)}
            config = changed(make_config(settings, source=str(run / CONFIG)), changes, from_file)
            require_equal_settings(config)
            trainer = _new_trainer(run, config)
            if distributed.is_main():
                (run / METRICS).unlink(missing_ok=True)
        else:
            trainer = _resumed_trainer(run, Path(checkpoint), changes, from_file)
        return _fit(trainer, stop)


def _fit(trainer: Trainer, stop: StopRequests) -> Run:
    with tracked(trainer.run, trainer.config) if distributed.is_main() else nullcontext():
        trainer.fit(stop)
    finished = finish(trainer) if distributed.is_main() else Run(trainer.run, trainer.encoder, {}, {})
    distributed.wait()
    return finished


def _only_writer(run: Path) -> AbstractContextManager[None]:
    return only_writer(run) if distributed.is_main() else nullcontext()


def _folder_to_train_in(config: TrainConfig) -> tuple[bool, str]:
    """Return the folder of the run, and whether the launcher started the run before and it is to be continued."""
    run = run_folder(config)
    restarted = launcher.attempt() > 0 and (run / CONFIG).exists()
    return restarted, str(run if restarted else new_run_folder(config))


def _where_to_continue(path: Path, run: Path) -> tuple[bool, str]:
    """Return whether the run starts from the beginning, else the checkpoint to continue from."""
    if path == run and never_saved(run):
        return True, ""
    checkpoint, skipped = find_checkpoint(path)
    for line in skipped:
        logger.warning(line)
    return False, str(checkpoint)


def _how_to_continue(run: Path | None) -> str:
    # The main process removes the folder of a run that never began.
    if run is None or (distributed.is_main() and not run.exists()):
        return "Start the run again."
    return f"To continue: {launcher.resuming(run)}"


def _new_trainer(run: Path, config: TrainConfig, encoder: Encoder | None = None) -> Trainer:
    # What can be known to be wrong at once is reported before the encoder is loaded.
    require_lasting(find_files(entry for entry in config.data if entry != "-"), "--data")
    for option, entry in (("--pairs", config.pairs), ("--eval", config.eval)):
        if entry:
            require_lasting([one_file(Path(entry), option)], option)
    pairs = labelled_pairs(config)
    given = encoder is not None
    if encoder is None:
        encoder = load_beginning(run, config)
    else:
        require_own_settings(config, encoder)
    if config.model == STARTER and not given:
        logger.info(
            "Encoder: the bundled starter, a small English BERT. --model takes any other, such as bert-base-uncased."
        )
    config = resolve(config, encoder, run)
    encoder.to(config.device, torch.float32)  # AdamW on fewer digits rounds most of its updates away
    if distributed.is_main():
        check_disk(encoder, config, run)
        if given:  # no file of the user's has it: resuming, the report and an export of the start need a copy
            keep_start(run, encoder)
    if given:
        config = config.model_copy(update={"model": str((run / START).absolute())})
    if distributed.is_main():
        # From here on a run that is killed can be resumed, also while a long text is tokenised.
        write_text(run / CONFIG, config_yaml(config))
    encoder.head = None  # an encoder that was given may have been trained before
    if config.projection == "on":
        spread = getattr(encoder.model.config, "initializer_range", None) or 0.02  # XLM has none
        encoder.head = projection_head(encoder.hidden_size, seed=config.seed, initializer_range=spread)
    prepare_kernels(encoder, config)
    corpus, training_pairs = open_texts(config, encoder)
    batches = make_batches(config, encoder, corpus, training_pairs)
    config = choose_epochs(config, batches)
    require_reached_pairs(config, batches)
    require_equal_data(config, encoder, corpus, training_pairs, pairs)
    before = look_before(encoder, batches)
    if config.objective == "auto":
        config = _with_chosen_objective(config, before.diagnosis, batches)
    if distributed.is_main():
        write_text(run / CONFIG, config_yaml(config))
        if needs_start(config, make_objective(config)):
            keep_start(run, encoder)
    distributed.wait()
    trainer = Trainer(run, config, encoder, corpus, training_pairs, pairs, before=before)
    require_equal_kernels(trainer.kernels)
    _announce(trainer)
    return trainer


def _with_chosen_objective(config: TrainConfig, diagnosis: Diagnosis, batches: Batches) -> TrainConfig:
    """Return the settings with the objective that the main process chooses; see `choose_objective`."""

    def choose() -> dict[str, Any]:
        chosen, reason = choose_objective(config, diagnosis, batches)
        logger.info(reason)
        return chosen.model_dump()

    return make_config(distributed.from_main(choose))


def _resumed_trainer(run: Path, checkpoint: Path, changes: Mapping[str, Any], from_file: Mapping[str, Any]) -> Trainer:
    state = load_state(checkpoint)
    # Where --kernels compile found nothing that it may do, the run goes on without, and was begun with it all the same.
    own = ("kernels", state.settings.get("kernels"))
    given = [{name: value for name, value in each.items() if (name, value) != own} for each in (changes, from_file)]
    config = changed(state.config(), *given)
    require_equal_settings(config)
    find_device(config.device)
    pairs = labelled_pairs(config)
    if state.pairs is not None and fingerprint(pairs) != state.pairs:
        raise InputError(
            f"--eval {config.eval} does not hold the labelled pairs of the run: its content has changed, and scores "
            "would not compare. Restore the old pairs, or start a new run from the encoder with --model."
        )
    padded = state.versions.get("batches") == "padded"  # it goes on so, also if it could be packed now
    encoder = freeze_again(load_checkpoint_encoder(checkpoint, config, packed=not padded), state.frozen)
    if distributed.is_main():
        check_disk(encoder, config, run)
    corpus, training_pairs = open_texts(config, encoder, expected=state.corpus)
    if training_pairs is not None and training_pairs.fingerprint != state.training_pairs:
        raise InputError(
            f"--pairs {config.pairs} does not hold the pairs that the run was trained on: its content has changed. "
            "Restore the old pairs, or start a new run from the encoder with --model."
        )
    require_equal_data(config, encoder, corpus, training_pairs, pairs)
    before = None
    encoder.folder.for_sentences = state.for_sentences
    if not state.step:  # it is measured again
        encoder.to(config.device)
        before = look_before(encoder, make_batches(config, encoder, corpus, training_pairs, state.order))
    kernels = state.versions.get("kernels", "")
    trainer = Trainer(run, config, encoder, corpus, training_pairs, pairs, state.order, kernels, before)
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
    for line in announcement(
        trainer.run,
        trainer.config,
        trainer.encoder,
        trainer.corpus.counts if trainer.corpus is not None else None,
        len(trainer.training_pairs.rows) if trainer.training_pairs is not None else 0,
        trainer.batches.paired_before(trainer.total),
        len(trainer.batches.held_out),
        trainer.total,
    ):
        logger.info(line)

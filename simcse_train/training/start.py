"""Start and resume runs: the folder, its lock, signals, and what is left when something fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from simcse_train import distributed, launcher
from simcse_train.config import TrainConfig, make_config
from simcse_train.config_file import read_settings
from simcse_train.encoders.encoder import Encoder
from simcse_train.errors import InputError
from simcse_train.runs.checkpoint import find_checkpoint, run_to_resume
from simcse_train.runs.folder import (
    CONFIG,
    METRICS,
    has_standard_input,
    never_saved,
    new_run_folder,
    only_writer,
    remove_unused,
    run_folder,
)
from simcse_train.runs.trackers import tracked
from simcse_train.training.changes import changed, without_own_folder
from simcse_train.training.computation import one_training, release
from simcse_train.training.equality import require_equal_settings
from simcse_train.training.finish import Run, finish, shared
from simcse_train.training.loop import Trainer
from simcse_train.training.prepare import new_trainer, resumed_trainer
from simcse_train.training.stopping import StopRequests

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
    if not isinstance(config, TrainConfig):
        raise InputError(f"train takes its settings as TrainConfig(data=[...], ...), not as {type(config).__name__}.")
    if encoder is not None:
        config = config.model_copy(update={"model": encoder.source or type(encoder.model).__name__})
    with one_training(), distributed.connected(lambda: _how_to_continue(run)):
        require_equal_settings(config)
        is_own = not (config.output and run_folder(config).exists())
        restarted, name = distributed.from_main(lambda: _folder_to_train_in(config))
        run = Path(name)
        if restarted:
            return _resume(run, {}, _as_begun(config, encoder))
        with _only_writer(run), StopRequests() as stop:
            try:
                trainer = new_trainer(run, config, encoder)
            except BaseException as error:
                # Standard input cannot be read again: the run that has read it is kept where the input is not at fault.
                if distributed.is_main() and (isinstance(error, InputError) or not has_standard_input(run)):
                    remove_unused(run, is_own=is_own)
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
            trainer = new_trainer(run, config)
            if distributed.is_main():
                (run / METRICS).unlink(missing_ok=True)
        else:
            trainer = resumed_trainer(run, Path(checkpoint), changes, from_file)
        return _fit(trainer, stop)


def _fit(trainer: Trainer, stop: StopRequests) -> Run:
    try:
        with tracked(trainer.run, trainer.config) if distributed.is_main() else nullcontext():
            trainer.fit(stop)
    finally:
        release(trainer.encoder)
    finished = finish(trainer) if distributed.is_main() else Run(trainer.run, trainer.encoder, {}, {})
    return shared(finished)


def _as_begun(config: TrainConfig, encoder: Encoder | None) -> dict[str, Any]:
    """Return the settings as given. If those of the run in the folder differ, it is another run, from before."""
    # The settings of a run name its own copy of an encoder that is given.
    return config.model_dump(exclude=None if encoder is None else {"model"})


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

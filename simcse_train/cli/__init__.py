"""The command line: parse, call, print. No logic.

This module holds the training and the exit status; `runs`, `encoders` and `compare` hold the commands that use what
was trained. The options of a training are made from `TrainConfig`. Heavy modules are imported inside the commands, so
that `--help` answers at once.
"""

from __future__ import annotations

import errno
import inspect
import io
import itertools
import logging
import os
import signal
import sys
import types
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, Union, cast, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from simcse_train import launcher
from simcse_train.cli import compare, encoders, runs, texts  # noqa: F401 (their commands register themselves)
from simcse_train.cli.app import app, import_quietly, require_path, require_text
from simcse_train.cli.screen import Screen, Unfailing
from simcse_train.config import TrainConfig, choices, make_config, option
from simcse_train.config_file import read_settings
from simcse_train.data.display import shorten, visible
from simcse_train.data.files import require_utf8
from simcse_train.errors import InputError, ProcessLost, SaveError, Stopped, TrainingError
from simcse_train.training.stopping import StopRequests
from simcse_train.version import __version__

DONE, FAILED, WRONG_INPUT, SIGNALLED = 0, 1, 2, 128
SHARED = ("encode", "evaluate")  # commands that several processes share; of the others the first alone does the work
# What a path that cannot be used ends with, wherever it is first looked at.
UNREACHABLE = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EROFS)
NEEDED = "simcse_train.training.start"  # by every training

# Read by the libraries when they are first used; what the user has set stays.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "true",
    # On a CPU torch keeps a compiled matrix product for each shape, 1,024 in each of two caches. Without kernels every
    # packed batch has new shapes, so both fill with products that are never used again: some 2 GiB within 1,000 steps.
    # With kernels a step has 15 products for each number of tokens (`stack.padded_tokens`) and some 30 others.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "96",
    "LRU_CACHE_CAPACITY": "96",
}


def train_command(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Settings from a YAML file; options given here win.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN_OR_CHECKPOINT", help="Continue where this run or checkpoint stopped."),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    **settings: Any,
) -> None:
    """Turn a text file into a sentence encoder by unsupervised SimCSE.

    simcse-train --data corpus.txt trains; the commands below use what was trained.
    """
    given = {name: value for name, value in settings.items() if value not in (None, [], ())}
    if context.invoked_subcommand is not None:
        of_training = [*map(option, given), *(["--config"] if config else []), *(["--resume"] if resume else [])]
        if of_training:
            command = context.invoked_subcommand
            raise InputError(
                f"{of_training[0]} stands before {command}, where it is an option of a training. Put it after "
                f"{command} if that command has such an option (simcse-train {command} --help), or leave it out."
            )
        if launcher.rank() > 0 and context.invoked_subcommand not in SHARED:
            raise typer.Exit(DONE)
        return
    if version:
        typer.echo(f"simcse-train {__version__}")
        return
    from_file: dict[str, Any] = read_settings(config) if config else {}
    if resume is None and not given and not config:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG_INPUT)
    try:
        if resume is not None:
            require_path(resume, "--resume")
            import_quietly(NEEDED)
            from simcse_train.training.start import resume as resume_run

            run = resume_run(resume, given, from_file)
        else:
            validated = make_config({**from_file, **given})
            require_text(entry for entry in validated.data if entry != "-")
            for option_name, path in (("--pairs", validated.pairs), ("--eval", validated.eval)):
                require_text([path] if path else [], option_name)
            import_quietly(NEEDED)
            from simcse_train.training.start import train

            run = train(validated)
        if launcher.rank() == 0:
            from simcse_train.report.page import report_at_end

            report_at_end(run.folder, run.seen)
    except KeyboardInterrupt as error:  # typer would turn it into a silent 130, whatever the signal
        number = getattr(error, "signal_number", signal.SIGINT)
        _exit(_stopped_at_once(resume, {**from_file, **given}.get("output")), SIGNALLED + number)


def _stopped_at_once(resume: Path | None, output: str | None) -> str:
    """Return what to do after an interrupt that did not wait for the end of a step.

    `resume` and `output` are what the command names. Before training begins, nothing is left of a new run.
    """
    run = resume or (Path(output).expanduser() if output else None)
    if run is None:
        return (
            "Stopped at once. Start the run again; had training begun, or standard input been read, --resume continues "
            "the newest folder in runs/."
        )
    if resume is None and not (run / "config.yaml").exists():
        return "Stopped at once. Start the run again."
    return f"Stopped at once. To continue: {launcher.resuming(run)}"


def _option_for(name: str, field: FieldInfo) -> inspect.Parameter:
    """Return the parameter from which typer makes the option of a setting; without a value it is None or empty."""
    extra: Any = field.json_schema_extra
    allowed = choices(field)
    default = extra["auto"] or (field.default if field.default not in (None, ...) and not field.is_required() else "")
    note = f" [default: {default}]" if default != "" else ""
    settings = typer.Option(
        option(name),
        metavar="|".join(allowed) or extra["metavar"],
        help=f"{field.description}{note}",
        rich_help_panel=extra["group"],
        show_default=False,
    )
    kind = list[str] if name in ("data", "track") else str if allowed else _plain_type(field.annotation)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, settings]
    )


def _plain_type(annotation: Any) -> Any:
    """Return int, float or str: what an annotation such as `Annotated[float, ...] | None` holds."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return _plain_type(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation


def _with_settings(command: Any) -> Any:
    """Give the training command one option for each setting of `TrainConfig`, in place of `**settings`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
    parameters = [_option_for(name, field) for name, field in TrainConfig.model_fields.items()]
    signature = [
        own[0],
        *parameters,
        *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own[1:]),
    ]
    command.__signature__ = inspect.Signature(signature)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    return command


app.callback(invoke_without_command=True)(_with_settings(train_command))


def main() -> NoReturn:
    """Run the command line and exit with the status that the README lists."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logger = logging.getLogger("simcse_train")
    logger.setLevel(logging.INFO)
    # Of several processes one prints; the first on each machine says why they ended.
    logger.handlers = [Screen() if launcher.rank() == 0 else logging.NullHandler()]
    if not isinstance(sys.stderr, Unfailing | None):
        sys.stderr = cast(TextIO, Unfailing(sys.stderr))
    if sys.stdin is None:  # closed by whatever started this process: there is nothing to read
        sys.stdin = Path(os.devnull).open(encoding="utf-8")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # queries and answers; a text to train on is read as bytes
    try:
        for before, argument in itertools.pairwise(sys.argv):
            require_utf8(argument)
            if not argument:
                raise InputError(
                    f"{before} is followed by an empty argument, as of a shell variable that is not set. Write its "
                    "value, or leave it out."
                )
        with StopRequests():  # every command, not only training, removes what it has half-written
            sys.exit(app(standalone_mode=False) or DONE)
    except (typer.Abort, KeyboardInterrupt):
        _exit("Stopped.", SIGNALLED + signal.SIGINT)
    except InputError as error:
        _exit(str(error), WRONG_INPUT)
    except Stopped as error:
        _exit(str(error), SIGNALLED + error.signal_number)
    except ProcessLost as error:
        _exit(str(error), FAILED, speaks=error.is_first_left)
    except (SaveError, TrainingError) as error:
        _exit(str(error), FAILED)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # wherever a path is first looked at
            _exit(f"{shorten(str(error.filename))}: this name is too long for a file. Check the path.", WRONG_INPUT)
        if error.errno in UNREACHABLE and error.filename:
            _exit(f"{error.filename}: {error.strerror}. Check the path and its permissions.", WRONG_INPUT)
        if error.errno != errno.ENOSPC:
            raise
        # Whatever else is written is named where it fails.
        _exit("Standard output can't be written: no space is left. Free some, and run the command again.", FAILED)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of click, which typer has under several names
            message = error.format_message().rstrip(".")
            listed = "commands" if message.startswith("No such command") else "options"
            end = "" if message.endswith("?") else "."
            context = getattr(error, "ctx", None)
            named = f" {context.info_name}" if context is not None and context.parent is not None else ""
            _exit(f"{message}{end} The {listed} are listed by simcse-train{named} --help.", WRONG_INPUT)
        raise


def _exit(message: str, status: int, *, speaks: bool | None = None) -> NoReturn:
    """Print a message and exit; of several processes on a machine the first speaks, unless it is said otherwise."""
    if launcher.local_rank() == 0 if speaks is None else speaks:
        typer.echo(visible(message), err=True)
    sys.exit(status)

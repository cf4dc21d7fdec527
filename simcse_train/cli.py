"""The command line: parse, call, print. No logic.

The options of a training are made from `TrainConfig`. Heavy modules are imported inside the commands, so that `--help`
answers at once.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
import types
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from simcse_train.config import TrainConfig, choices, make_config, option, read_settings
from simcse_train.errors import InputError, SaveError, Stopped, TrainingError
from simcse_train.version import __version__

DONE, FAILED, WRONG_INPUT, SIGNALLED = 0, 1, 2, 128

EncoderArgument = Annotated[
    str, typer.Argument(metavar="ENCODER", help="An export, a run, a checkpoint, or a model's name.")
]
PoolingOption = Annotated[
    str, typer.Option(metavar="WAY", help="auto, cls or mean; auto: as the model's files say, else cls.")
]


class GroupedHelp(TyperGroup):
    """Lists the options in `--help` under the groups that `TrainConfig` gives them."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per group, then the commands."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or "Run", []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)
        self.format_commands(ctx, formatter)


app = typer.Typer(
    cls=GroupedHelp,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


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
    if context.invoked_subcommand is not None:
        return
    if version:
        typer.echo(f"simcse-train {__version__}")
        return
    given = {name: value for name, value in settings.items() if value not in (None, [], ())}
    from_file: dict[str, Any] = read_settings(config) if config else {}
    if resume is None and not given and not config:
        typer.echo(context.get_help())
        raise typer.Exit(WRONG_INPUT)
    try:
        if resume is not None:
            _quiet()
            from simcse_train.training.start import resume as resume_run

            resume_run(resume, {**from_file, **given})
        else:
            validated = make_config({**from_file, **given})
            _quiet()
            from simcse_train.training.start import train

            train(validated)
    except KeyboardInterrupt as error:  # typer would turn it into a silent 130, whatever the signal
        number = getattr(error, "signal_number", signal.SIGINT)
        _exit(
            "Stopped at once. If a checkpoint was saved before, this continues from it: simcse-train --resume RUN",
            SIGNALLED + number,
        )


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
    kind = list[str] if name == "data" else str if allowed else _plain_type(field.annotation)
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


@app.command("export")
def export_command(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    target: Annotated[Path, typer.Argument(metavar="OUT")],
    checkpoint: Annotated[
        str | None, typer.Option(metavar="WHICH", help="best or last. [default: best where there is one]")
    ] = None,
) -> None:
    """Write the encoder of a run as a folder that sentence-transformers and transformers load."""
    if checkpoint not in (None, "best", "last"):
        raise InputError(f"--checkpoint {checkpoint} must be best or last.")
    _quiet()
    from simcse_train.export.folder import export

    used = export(source, target, checkpoint)
    typer.echo(f"Exported {used} to {target}.")


@app.command("evaluate")
def evaluate_command(
    encoder: EncoderArgument,
    data: Annotated[Path, typer.Option(metavar="PATH", help="Folder with the STS sets, or a file of labelled pairs.")],
    pooling: PoolingOption = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Score an encoder: Spearman x 100 on STS tables or your own pairs."""
    _quiet()
    from simcse_train.evaluation.sts import as_json, evaluate, table
    from simcse_train.export.folder import load_saved_encoder

    rows = evaluate(load_saved_encoder(encoder, pooling=pooling), data, show_progress=sys.stderr.isatty())
    typer.echo(as_json(rows) if json else table(rows))


@app.command("encode")
def encode_command(
    encoder: EncoderArgument,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Text file, one sentence a line, or - for standard input.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT.npy")],
    normalize: Annotated[bool, typer.Option(help="Scale every row to length 1.")] = True,
    pooling: PoolingOption = "auto",
) -> None:
    """Write one float32 row per input line."""
    _quiet()
    from simcse_train.export.folder import load_saved_encoder
    from simcse_train.search.encode import encode_file

    rows, width = encode_file(load_saved_encoder(encoder, pooling=pooling), source, target, normalized=normalize)
    typer.echo(f"Wrote {rows:,} rows of {width} to {target}.")


class _Screen(logging.Handler):
    """Writes messages above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _quiet() -> None:
    """Silence the messages and progress bars of transformers; only the command line may, not the library."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def main() -> NoReturn:
    """Run the command line and exit with the status that the README lists."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logger = logging.getLogger("simcse_train")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Screen()]
    try:
        sys.exit(app(standalone_mode=False) or DONE)
    except (typer.Abort, KeyboardInterrupt):
        _exit("Stopped.", SIGNALLED + signal.SIGINT)
    except InputError as error:
        _exit(str(error), WRONG_INPUT)
    except Stopped as error:
        _exit(str(error), SIGNALLED + error.signal_number)
    except (SaveError, TrainingError) as error:
        _exit(str(error), FAILED)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of click, which typer has under several names
            message = error.format_message().rstrip(".")
            _exit(f"{message}. The options are listed by simcse-train --help.", WRONG_INPUT)
        raise


def _exit(message: str, status: int) -> NoReturn:
    typer.echo(message, err=True)
    sys.exit(status)

"""The command line: parse, call, print. No logic.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from simcse_train import __version__
from simcse_train.config import InputError, TrainConfig, make_config, read_settings

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DONE, FAILED, WRONG_INPUT, SIGNALLED = 0, 1, 2, 128


def _default(field: str) -> str:
    return f"[default: {TrainConfig.model_fields[field].default}]"


@app.callback(invoke_without_command=True)
def train_command(
    context: typer.Context,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Text to learn from: file, folder, glob, or - for standard input."),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of csv, tsv, jsonl or parquet. [default: the only one with text]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME_OR_PATH", help="Hugging Face encoder, a name or a folder. [default: the bundled starter]"),
    ] = None,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Run folder. [default: runs/<model>-<date>-<time>]")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Settings from a YAML file; options given here win.")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help=f"Times to go through the text. {_default('epochs')}")] = None,
    max_steps: Annotated[int | None, typer.Option(metavar="N", help="Stop after this many steps, whatever the epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help=f"Sentences in a batch. {_default('batch_size')}")] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sentences held in memory at once; the gradients stay the batch's. [default: the whole batch]"),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help=f"Peak, falls linearly to 0. {_default('learning_rate')}")
    ] = None,
    warmup_ratio: Annotated[
        float | None, typer.Option(metavar="X", help=f"Share of the steps that warm up. {_default('warmup_ratio')}")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(metavar="X", help=f"Of matrices, decoupled. {_default('weight_decay')}")] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help=f"Tokens after which a sentence is cut. {_default('max_length')}")
    ] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help=f"Divides the cosines. {_default('temperature')}")] = None,
    dropout: Annotated[
        float | None,
        typer.Option(metavar="P", help="Dropout of hidden states and attention. [default: the model's own]"),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(metavar="WAY", help="auto, cls or mean; auto: as the model's files say, else cls. [default: auto]"),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"ntxent or infonce (the paper's form). {_default('objective')}")
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(metavar="X", help=f"Gradients are clipped to this norm. {_default('max_grad_norm')}")
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Head in training: auto, on or off; auto: on for cls. [default: auto]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help=f"Decides order, dropout and head. {_default('seed')}")] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="auto, fp32, bf16 or fp16; auto: what the device has. [default: auto]"),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="KIND", help="auto, cpu, cuda or mps. [default: auto]")] = None,
    eval: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Labelled pairs to score while training; keeps the best checkpoint."),
    ] = None,
    eval_every: Annotated[int | None, typer.Option(metavar="N", help=f"Steps between measurements. {_default('eval_every')}")] = None,
    save_every: Annotated[int | None, typer.Option(metavar="N", help=f"Steps between checkpoints. {_default('save_every')}")] = None,
    save_minutes: Annotated[float | None, typer.Option(metavar="M", help="Minutes between checkpoints, beside --save-every.")] = None,
    keep: Annotated[int | None, typer.Option(metavar="N", help=f"Newest checkpoints to keep, beside the best. {_default('keep')}")] = None,
    log_every: Annotated[
        int | None, typer.Option(metavar="N", help=f"Steps between lines of metrics.jsonl. {_default('log_every')}")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN_OR_CHECKPOINT", help="Go on where this run or checkpoint stopped.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Turn a text file into a sentence encoder by unsupervised SimCSE.

    simcse-train --data corpus.txt trains; the commands below use what was trained.
    """
    if context.invoked_subcommand is not None:
        return
    if version:
        typer.echo(f"simcse-train {__version__}")
        return
    given = {name: value for name, value in context.params.items() if name in TrainConfig.model_fields and value not in (None, [], ())}
    from_file: dict[str, Any] = read_settings(config) if config else {}
    try:
        if resume is not None:
            from simcse_train.training import resume as go_on

            go_on(resume, {**from_file, **given})
            return
        if not given and not config:
            typer.echo(context.get_help())
            raise typer.Exit(WRONG_INPUT)
        settings = make_config({**from_file, **given})
        from simcse_train.training import train

        train(settings)
    except KeyboardInterrupt as error:  # typer would turn it into a silent 130, whatever the signal
        number = getattr(error, "signal_number", signal.SIGINT)
        _leave("Stopped at once. If a checkpoint was saved before, this goes on from it: simcse-train --resume RUN", SIGNALLED + number)


@app.command("export")
def export_command(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    target: Annotated[Path, typer.Argument(metavar="OUT")],
    checkpoint: Annotated[str | None, typer.Option(metavar="WHICH", help="best or last. [default: best where there is one]")] = None,
) -> None:
    """Write the encoder of a run as a folder that sentence-transformers and transformers load."""
    if checkpoint not in (None, "best", "last"):
        raise InputError(f"--checkpoint {checkpoint} must be best or last.")
    from simcse_train.export import export

    used = export(source, target, checkpoint)
    typer.echo(f"Exported {used} to {target}.")


@app.command("evaluate")
def evaluate_command(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="An export, a run, a checkpoint, or a model's name.")],
    data: Annotated[Path, typer.Option(metavar="PATH", help="Folder with the STS sets, or a file of labelled pairs.")],
    pooling: Annotated[str, typer.Option(metavar="WAY", help="auto, cls or mean; auto: as the model's files say, else cls.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Score an encoder: Spearman x 100 on STS tables or your own pairs."""
    from simcse_train.evaluation import as_json, evaluate, table

    rows = evaluate(_load(encoder, pooling), data, show_progress=sys.stderr.isatty())
    typer.echo(as_json(rows) if json else table(rows))


@app.command("encode")
def encode_command(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="An export, a run, a checkpoint, or a model's name.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Text file, one sentence a line, or - for standard input.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT.npy")],
    normalize: Annotated[bool, typer.Option(help="Scale every row to length 1.")] = True,
    pooling: Annotated[str, typer.Option(metavar="WAY", help="auto, cls or mean; auto: as the model's files say, else cls.")] = "auto",
) -> None:
    """Write one float32 row per input line."""
    from simcse_train.encoder import encode_file

    rows, width = encode_file(_load(encoder, pooling), source, target, normalized=normalize)
    typer.echo(f"Wrote {rows:,} rows of {width} to {target}.")


def _load(name_or_path: str, pooling: str) -> Any:
    """Return the encoder that a user means: the export of a finished run, the newest checkpoint of one that was stopped."""
    from simcse_train.checkpoint import checkpoints, find_checkpoint
    from simcse_train.loading import load_encoder

    path = Path(name_or_path)
    if checkpoints(path) and not (path / "encoder").exists():
        path = find_checkpoint(path)[0]
        return load_encoder(path, pooling=pooling)
    return load_encoder(name_or_path, pooling=pooling)


class _Screen(logging.Handler):
    """Writes messages above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def main() -> NoReturn:
    """Run the command line and leave with the status that the README lists."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logger = logging.getLogger("simcse_train")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Screen()]
    try:
        sys.exit(app(standalone_mode=False) or DONE)
    except (typer.Abort, KeyboardInterrupt):
        _leave("Stopped.", SIGNALLED + signal.SIGINT)
    except InputError as error:
        _leave(str(error), WRONG_INPUT)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of click, which typer has under several names
            _leave(f"{error.format_message().rstrip('.')}. The options are listed by simcse-train --help.", WRONG_INPUT)
        from simcse_train.training import Stopped, TrainingError
        from simcse_train.writing import SaveError

        if isinstance(error, Stopped):
            _leave(str(error), SIGNALLED + error.signal_number)
        if isinstance(error, SaveError | TrainingError):
            _leave(str(error), FAILED)
        raise


def _leave(message: str, status: int) -> NoReturn:
    typer.echo(message, err=True)
    sys.exit(status)

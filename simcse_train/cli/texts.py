"""Commands on a text before training: inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from simcse_train.cli.app import EncodingOption, PoolingOption, TextColumnOption, app, import_quietly, require_text
from simcse_train.config import STARTER, TrainConfig, make_config

_DEFAULTS = {name: field.default for name, field in TrainConfig.model_fields.items()}


@app.command("inspect", short_help="Look at a text and an encoder before training.")
def inspect_command(
    data: Annotated[
        list[str], typer.Option(metavar="PATH", help="Text: file, folder, glob or hf://datasets/OWNER/NAME.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME_OR_PATH", help="Encoder to embed the text with.")] = STARTER,
    text_column: TextColumnOption = None,
    encoding: EncodingOption = None,
    max_length: Annotated[int, typer.Option(metavar="N", help="Tokens after which a sentence is cut.")] = _DEFAULTS[
        "max_length"
    ],
    batch_size: Annotated[int, typer.Option(metavar="N", help="Sentences in a batch.")] = _DEFAULTS["batch_size"],
    pooling: PoolingOption = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Look at a text and an encoder before training: lengths, similar sentences, settings that fit."""
    # The limits are those of a training.
    make_config({"data": data, "max_length": max_length, "batch_size": batch_size, "pooling": pooling})
    require_text(data)
    import_quietly()
    from simcse_train.report.inspect import as_text, inspect_text

    found = inspect_text(
        data,
        model,
        text_column=text_column,
        encoding=encoding,
        max_length=max_length,
        batch_size=batch_size,
        pooling=pooling,
    )
    typer.echo(found.as_json() if json else as_text(found, max_length))

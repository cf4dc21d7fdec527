"""Commands on a trained encoder: evaluate and encode."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from simcse_train.cli.app import EncoderArgument, PoolingOption, app, quiet


@app.command("evaluate")
def evaluate_command(
    encoder: EncoderArgument,
    data: Annotated[Path, typer.Option(metavar="PATH", help="Folder with the STS sets, or a file of labelled pairs.")],
    pooling: PoolingOption = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Score an encoder: Spearman x 100 on STS tables or your own pairs."""
    quiet()
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
    quiet()
    from simcse_train.export.folder import load_saved_encoder
    from simcse_train.search.encode import encode_file

    rows, width = encode_file(load_saved_encoder(encoder, pooling=pooling), source, target, normalized=normalize)
    typer.echo(f"Wrote {rows:,} rows of {width} to {target}.")

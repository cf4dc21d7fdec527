"""Commands on a run: export and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simcse_train.cli.app import EncodingOption, TextColumnOption, app, import_quietly, require_path
from simcse_train.errors import InputError


@app.command("export", short_help="Write the encoder of a run as a folder, or as ONNX.")
def export_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run or a checkpoint; with --format onnx also an encoder."),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the encoder to.")],
    checkpoint: Annotated[
        str | None, typer.Option(metavar="WHICH", help="Which checkpoint of a run: best or last. [default: best]")
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="safetensors|onnx", help="File format of the weights.")
    ] = "safetensors",
    int8: Annotated[bool, typer.Option("--int8", help="With --format onnx: weights of eight bits.")] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="With --format onnx: text to check it on. [default: the run's own]"),
    ] = None,
    text_column: TextColumnOption = None,
    encoding: EncodingOption = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload OUT to the Hugging Face hub, as a private model.")
    ] = None,
) -> None:
    """Write the encoder of a run as a folder that sentence-transformers and transformers load."""
    if format not in ("safetensors", "onnx"):
        raise InputError(f"--format {format} must be safetensors or onnx.")
    if format != "onnx" and (int8 or data):
        raise InputError(f"{'--int8' if int8 else '--data'} is for --format onnx.")
    if not data and (text_column or encoding):
        raise InputError(f"{'--text-column' if text_column else '--encoding'} is for the text of --data.")
    if checkpoint not in (None, "best", "last"):
        raise InputError(f"--checkpoint {checkpoint} must be best or last.")
    if format != "onnx":
        require_path(source, "RUN_OR_CHECKPOINT")
    import_quietly()
    from simcse_train.export import push as hub

    if push is not None:
        hub.check_hub(push)
    if format == "onnx":
        from simcse_train.export.onnx import describe, export_onnx

        found = export_onnx(
            source,
            target,
            which=checkpoint,
            int8=int8,
            data=data or (),
            text_column=text_column,
            encoding=encoding,
        )
        typer.echo(f"Exported {source} to {target}. {describe(found)}")
    else:
        from simcse_train.export.folder import export

        step = export(source, target, checkpoint)
        of = f"step {step}" if step else "the encoder before training, since training did not help,"
        typer.echo(f"Exported {of} of {source} to {target}.")
    if push is not None:
        typer.echo(f"Uploaded {target} to {hub.push(target, push)}.")


@app.command("report", short_help="Write one or several runs as one HTML page.")
def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, finished or not.")],
) -> None:
    """Write a run, or several side by side, as one HTML page that opens offline."""
    for run in runs:
        require_path(run, "RUN")
    import_quietly()
    from simcse_train.report.page import write_report

    typer.echo(f"Report: {write_report(runs)}")

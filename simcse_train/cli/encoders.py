"""Commands on a trained encoder: evaluate, encode and search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from simcse_train.cli.app import (
    EncoderArgument,
    EncodingOption,
    PoolingOption,
    TextColumnOption,
    app,
    import_quietly,
    load,
    require_path,
    require_text,
)
from simcse_train.cli.serving import PortOption, ServeOption, check_serve, serve_pages
from simcse_train.errors import InputError

SearchedText = Annotated[
    list[str], typer.Option(metavar="PATH", help="Text to search: file, folder, glob or hf://datasets/OWNER/NAME.")
]


@app.command("evaluate", short_help="Score an encoder on STS, transfer tasks, pairs or labels.")
def evaluate_command(
    encoder: EncoderArgument,
    data: Annotated[
        Path, typer.Option(metavar="PATH", help="Folder with the STS or transfer sets, or a file of pairs or labels.")
    ],
    pooling: PoolingOption = "auto",
    tasks: Annotated[str, typer.Option(metavar="sts|transfer", help="Which data sets of SentEval to score.")] = "sts",
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="--data is a table of sentences; this column has their labels.")
    ] = None,
    text_column: TextColumnOption = None,
    encoding: EncodingOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Score an encoder on STS tables, your own pairs or labels, or the transfer tasks."""
    if tasks not in ("sts", "transfer"):
        raise InputError(f"--tasks {tasks} must be sts or transfer.")
    if label_column is not None and tasks == "transfer":
        raise InputError("--label-column and --tasks transfer can't be used together: choose one of them.")
    if encoding is not None and tasks == "transfer":
        raise InputError("--encoding is for a file of pairs or labels, not for --tasks transfer. Leave it out.")
    if text_column is not None and label_column is None:
        raise InputError("--text-column is for labelled sentences: name the column of the labels with --label-column.")
    require_path(data, "--data")
    import_quietly()
    from simcse_train import distributed
    from simcse_train.evaluation import labels, sts, transfer

    with distributed.connected(lambda: "Run it again."):
        loaded = load(encoder, pooling)
        progress = sys.stderr.isatty() and distributed.is_main()
        if label_column is not None:
            scores = labels.evaluate_labels(loaded, data, label_column, text_column, encoding, show_progress=progress)
            found = labels.as_json(scores) if json else labels.table(scores, data.name)
        elif tasks == "transfer":
            results = transfer.evaluate_transfer(loaded, data, show_progress=progress)
            found = transfer.as_json(results) if json else transfer.table(results)
        else:
            rows = sts.evaluate(loaded, data, encoding, show_progress=progress)
            found = sts.as_json(rows) if json else sts.table(rows)
        if distributed.is_main():
            typer.echo(found)


@app.command("encode", short_help="Write the embeddings of a text, one row per record.")
def encode_command(
    encoder: EncoderArgument,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="File to encode: text or table, or - for standard input.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="File to write; its name ends in .npy, .safetensors or .parquet.")
    ],
    text_column: TextColumnOption = None,
    encoding: EncodingOption = None,
    normalize: Annotated[bool, typer.Option(help="Scale every row to length 1.")] = True,
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16", help="Number format of matrix products; bf16 is faster.")
    ] = "fp32",
    pooling: PoolingOption = "auto",
) -> None:
    """Write one float32 row per record of a text."""
    if precision not in ("fp32", "bf16"):
        raise InputError(f"--precision {precision} must be fp32 or bf16.")
    require_text([source] if source != "-" else [], "INPUT")
    import_quietly()
    from simcse_train import distributed
    from simcse_train.search.encode import encode_file
    from simcse_train.training.plan import find_precision

    with distributed.connected(lambda: "Nothing was written. Run it again."):
        loaded = load(encoder, pooling)
        rows, width = encode_file(
            loaded,
            source,
            target,
            text_column=text_column,
            encoding=encoding,
            normalized=normalize,
            precision=find_precision(precision, loaded.device.type, loaded.float32_only),
        )
        if distributed.is_main():
            typer.echo(f"Wrote {rows:,} rows of {width} to {target}.")


@app.command("search", short_help="Find the sentences of a text nearest to a query.")
def search_command(
    encoder: EncoderArgument,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="Without it, queries are read from standard input.")
    ] = None,
    data: SearchedText = ...,  # type: ignore[assignment]  # required, after an argument that is not
    text_column: TextColumnOption = None,
    encoding: EncodingOption = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Sentences to print per query.")] = 5,
    serve: ServeOption = False,
    beside: Annotated[
        str | None, typer.Option(metavar="ENCODER", help="With --serve: a second encoder, side by side.")
    ] = None,
    port: PortOption = None,
    pooling: PoolingOption = "auto",
) -> None:
    """Print the sentences of a text that are nearest to a query, or open a page that does."""
    check_serve(serve, port)
    if beside is not None and not serve:
        raise InputError("--beside is for --serve.")
    if serve and query is not None:
        raise InputError("--serve takes its queries from the page: leave the query out.")
    require_text(data)
    import_quietly()
    from simcse_train.data.display import shown
    from simcse_train.search.search import open_text, search

    if serve:
        from simcse_train.pages.search import SearchedSide, search_routes

        names = [encoder] if beside is None else [encoder, beside]
        encoders = [load(name, pooling) for name in names]
        texts = [open_text(loaded, data, text_column, encoding) for loaded in encoders]
        sides = [SearchedSide(*side) for side in zip(names, encoders, texts, strict=True)]
        serve_pages(search_routes(sides, count), port)
        return
    loaded = load(encoder, pooling)
    text = open_text(loaded, data, text_column, encoding)
    for sentence in [query] if query is not None else (line.strip() for line in sys.stdin):
        if not sentence:
            continue
        if query is None:
            typer.echo(f"> {shown(sentence)}")
        for hit in search(loaded, text, [sentence], count)[0]:
            typer.echo(f"{hit.cosine:.4f}  {shown(hit.sentence)}")

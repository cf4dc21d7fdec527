"""The command that compares two encoders, and the questions that it asks in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)
from simcse_train.cli.serving import PortOption, ServeOption, check_serve, serve_pages
from simcse_train.data.files import find_files, one_file, require_other_file
from simcse_train.errors import InputError

if TYPE_CHECKING:
    from simcse_train.evaluation.answers import Choice
    from simcse_train.evaluation.comparison import Question, Side

JUDGED = 500  # questions that a file of labels answers
KEYS: dict[str, Side] = {"1": "left", "2": "right", "b": "both", "n": "neither"}


@app.command("compare", short_help="Judge which of two encoders finds better neighbours.")
def compare_command(
    old: EncoderArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The encoder to compare with the first.")],
    data: Annotated[
        list[str], typer.Option(metavar="PATH", help="Text: file, folder, glob or hf://datasets/OWNER/NAME.")
    ],
    text_column: TextColumnOption = None,
    encoding: EncodingOption = None,
    questions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Stop after N questions, earlier answers included. [default: no end; 500 with --judge]",
        ),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Where answers are kept. [default: compare-<hash>.jsonl]")
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer from this file of scored pairs, or of labels with --label-column."),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the --judge file that has the labels.")
    ] = None,
    judge_text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the --judge file that has the sentences.")
    ] = None,
    write_eval: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write the answers as labelled pairs for --eval.")
    ] = None,
    write_pairs: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write the answers as pairs to learn from, for --pairs.")
    ] = None,
    serve: ServeOption = False,
    port: PortOption = None,
    pooling: PoolingOption = "auto",
) -> None:
    """Ask which of two encoders finds the better neighbours: a blind test."""
    check_serve(serve, port)
    if serve and judge is not None:
        raise InputError("--serve asks a person and --judge does not: choose one of them.")
    for option, path in (("--write-eval", write_eval), ("--write-pairs", write_pairs)):
        if path is not None and path.suffix != ".jsonl":
            raise InputError(f"{option} {path} must end in .jsonl.")
    texts = find_files(data)
    if judge is not None:
        require_path(judge, "--judge")
    kept = [*texts, *filter(None, [judge])]
    for option, path in (("--answers", answers), ("--write-eval", write_eval), ("--write-pairs", write_pairs)):
        if path is not None:
            require_other_file(path, option, kept)
            if not path.absolute().parent.is_dir():
                raise InputError(f"{option} {path}: there is no folder {path.parent}. Make it first.")
            kept.append(path)
    import_quietly()
    from simcse_train.data.cache import digest
    from simcse_train.data.pairs import read_pairs
    from simcse_train.evaluation import comparison as blind
    from simcse_train.evaluation.answers import describe, outcome
    from simcse_train.evaluation.answers import write_pairs as write_answers
    from simcse_train.evaluation.labels import read_labelled

    decide: Callable[[blind.Question], Choice | None] = _ask_person
    judged_by = ""
    if judge is not None and label_column is not None:
        labelled = read_labelled(judge, label_column, judge_text_column, option="--judge", fallback_encoding=encoding)
        decide, judged_by = blind.labels_as_judge(*labelled), digest(labelled)
    elif judge is not None:
        known = read_pairs(one_file(judge, "--judge"), "--judge", fallback_encoding=encoding)
        decide, judged_by = blind.pairs_as_judge(known), digest(known)
    if judge is not None:
        questions = questions or JUDGED
    elif label_column is not None:
        raise InputError("--label-column is for a file of labels: name it with --judge.")
    if judge_text_column is not None and label_column is None:
        raise InputError("--judge-text-column is for a file of labels: name their column with --label-column.")
    encoders = [load(name, pooling) for name in (old, new)]
    asked = blind.Comparison(encoders[0], encoders[1], data, text_column, encoding, judged_by)
    path = answers or Path(f"compare-{asked.answers_fingerprint[:8]}.jsonl")
    for option, target in (("--write-eval", write_eval), ("--write-pairs", write_pairs)):
        if target is not None:
            require_other_file(target, option, [path])
    if judge is None:
        keys = "" if serve else " 1 or 2: this one fits better. b: both fit. n: neither. q: stop."
        typer.echo(f"Answers are kept in {path}.{keys}")
    if serve:
        from simcse_train.pages.compare import compare_routes

        sheet = blind.Sheet(asked, path)
        serve_pages(compare_routes(sheet, questions), port)
        found = sheet.answers
    else:
        found = blind.ask(asked, decide, path, questions)
    if not found and judge is None:
        typer.echo("Nothing was answered. Where nothing was asked either, the encoders find the same neighbours.")
    elif not found:
        typer.echo("Nothing was answered: the encoders find the same neighbours, or no question could be judged.")
    typer.echo(describe(outcome(found)))
    for target, scored in ((write_eval, True), (write_pairs, False)):
        if target is not None:
            typer.echo(f"Wrote {write_answers(found, target, scored=scored):,} pairs to {target}.")


def _ask_person(question: Question) -> Choice:
    """Show a question in the terminal and return the choice; raises `StopIteration` at q or the end of the input."""
    from simcse_train.data.display import shown
    from simcse_train.evaluation.comparison import choice_of

    left, right = question.sides
    typer.echo(f"\n{shown(question.query)}\n  1  {shown(left)}\n  2  {shown(right)}")
    while True:
        try:
            key = input("Which fits better? [1/2/b/n/q] ").strip().lower()
        except EOFError:
            raise StopIteration from None
        if key == "q":
            raise StopIteration
        if key in KEYS:
            return choice_of(question, KEYS[key])

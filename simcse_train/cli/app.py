"""What all commands share: the application, its help, and the arguments that several of them take."""

from __future__ import annotations

import functools
import gc
import signal
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from simcse_train.data.files import find_files
from simcse_train.errors import InputError, Stopped

if TYPE_CHECKING:
    from simcse_train.encoders.encoder import Encoder

EncoderArgument = Annotated[
    str, typer.Argument(metavar="ENCODER", help="An export, a run, a checkpoint, or a model's name.")
]
TextColumnOption = Annotated[str | None, typer.Option(metavar="NAME", help="Column of a table that has the sentences.")]
EncodingOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Encoding of the text. [default: UTF-8, or what the text itself shows]"),
]
PoolingOption = Annotated[
    str,
    typer.Option(
        metavar="WAY",
        help="auto, cls, mean or last; auto: as the model's files say, else cls, or mean where the tokenizer puts no "
        "token before a sentence.",
    ),
]


NO_COMMANDS = {"train": "--data FILE", "resume": "--resume RUN"}  # what trains, and how


class GroupedHelp(TyperGroup):
    """Lists the options in `--help` under the groups that `TrainConfig` gives them.

    It says how to train where a text, or the word, stands in the place of a command.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments begin with, and the rest of them; raises `InputError` for a text."""
        name = args[0] if args else ""
        if self.get_command(ctx, name) is None:
            if name in NO_COMMANDS:
                raise InputError(f"{name} is no command: simcse-train {NO_COMMANDS[name]} does that.")
            if name and Path(name).exists():
                raise InputError(f"{name} stands in the place of a command. To train on it: simcse-train --data {name}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; raises `Stopped` after a signal, since typer ends any interrupt in silence with 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped(getattr(error, "signal_number", signal.SIGINT)) from None

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


def require_text(data: Iterable[str], option: str = "--data") -> None:
    """Raise `InputError` if a text is not there, before the seconds that importing and loading the encoder take."""
    find_files(data, option)


def require_path(path: Path, option: str) -> None:
    """Raise `InputError` if a file or folder is not there, as early as `require_text` does."""
    if not path.exists():
        raise InputError(f"{option} {path}: there is no such file or folder. Check the path.")


def load(name_or_path: str, pooling: str) -> Encoder:
    """Load what a user calls an encoder, onto the GPU where there is one.

    Raises `InputError` as `load_encoder` does.
    """
    import torch

    from simcse_train.export.folder import load_saved_encoder

    encoder = load_saved_encoder(name_or_path, pooling=pooling)
    return encoder.to("cuda") if torch.cuda.is_available() else encoder


@functools.cache
def import_quietly(*more: str) -> None:
    """Import torch, transformers and more modules, which takes seconds, and silence transformers.

    Only the command line may do so, not the library, and once.
    """
    # They make hundreds of thousands of objects, and all of them stay. To look for garbage among them meanwhile, again
    # and again, takes a fifth of the time.
    gc.disable()
    try:
        import transformers.modeling_utils

        for module in more:
            import_module(module)
    finally:
        gc.freeze()  # nor is it looked for among them later
        gc.enable()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

"""What the commands with --serve share: their options, and the server's life from its address to Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from simcse_train.errors import InputError

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

PORT = 8000
ServeOption = Annotated[bool, typer.Option("--serve", help="Serve a page that a browser of this machine can open.")]
PortOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1024, max=65535, help=f"With --serve: port of the page. [default: {PORT}]"),
]


def check_serve(serve: bool, port: int | None) -> None:
    """Raise `InputError` if the options cannot be used together, or the libraries of --serve are missing."""
    if port is not None and not serve:
        raise InputError("--port is for --serve.")
    if serve:
        from simcse_train.pages.server import check_available

        check_available()


def serve_pages(routes: Sequence[BaseRoute], port: int | None) -> None:
    """Say where the pages are, and answer until Ctrl-C; raises `InputError` if the port cannot be used."""
    from simcse_train.pages.server import address, listen, make_server

    with listen(PORT if port is None else port) as listener:
        typer.echo(f"Open {address(listener)} in a browser of this machine. Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            make_server(routes, listener).run(sockets=[listener])

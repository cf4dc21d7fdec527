"""A server for pages that only this machine can open.

It listens on the loopback address, which other machines cannot reach. A page of another site can still make the user's
own browser ask it, so requests are refused whose `Host` is not this address (a foreign name that was pointed here: DNS
rebinding) or whose `Origin` is another page. Needs starlette, uvicorn and jinja2, of the extra `demo`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from simcse_train.errors import InputError, SaveError

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

ADDRESS = "127.0.0.1"
QUERY_LENGTH = 2000  # characters of a query that are taken
BODY_LENGTH = 1000  # bytes of an answer that are read
CONNECTIONS = 64  # more are told to come later
PACKAGES = ("starlette", "uvicorn", "jinja2")
INSTALL = "pip install 'simcse-train[demo]'"
HEADERS = {
    # The page holds no script. With no-referrer in place of same-origin, browsers would send forms with `Origin: null`.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def check_available() -> None:
    """Raise `InputError` if a library that serves pages is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"--serve needs {', '.join(missing)}. Install what is missing: {INSTALL}.")


def listen(port: int) -> socket.socket:
    """Return a socket that listens on a port of the loopback address, any free one for 0.

    Raises `InputError` if the port cannot be used.
    """
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # the error's own text ends with the address
        raise InputError(f"--port {port} can't be used: {reason}. Choose another port.") from None


def address(listener: socket.socket) -> str:
    """Return the address of the pages, as a browser takes it."""
    return f"http://{ADDRESS}:{listener.getsockname()[1]}"


def make_server(routes: Sequence[BaseRoute], listener: socket.socket) -> uvicorn.Server:
    """Return the server of some pages; its `run(sockets=[listener])` answers until Ctrl-C."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware

    port = listener.getsockname()[1]
    application = Starlette(
        routes=routes,
        middleware=[Middleware(OwnPagesOnly, port=port)],
        exception_handlers={SaveError: _say, InputError: _say},
    )
    config = uvicorn.Config(
        application,
        # What is installed beside uvicorn must not decide how requests are parsed.
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
    )
    return uvicorn.Server(config)


def _say(_: Request, error: Exception) -> Response:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(str(error), 500)


class OwnPagesOnly:
    """Refuses requests with a foreign `Host` or `Origin`, and adds the headers that keep a page to itself (ASGI)."""

    def __init__(self, app: Any, port: int) -> None:
        self.app = app
        self.hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import PlainTextResponse

        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self.hosts.issuperset(hosts) or not self.origins.issuperset(origins):
            await PlainTextResponse("This server answers only its own pages.", 403)(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)

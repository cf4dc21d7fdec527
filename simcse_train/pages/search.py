"""The search page: a query, and the sentences that one encoder, or two side by side, finds nearest to it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simcse_train.encoders.encoder import Encoder
from simcse_train.pages.server import QUERY_LENGTH
from simcse_train.report.html import make_environment
from simcse_train.search.search import Hit, SearchedText, search

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute


@dataclass(frozen=True)
class SearchedSide:
    """An encoder with the text that it searches, and the name under which the page shows it."""

    name: str
    encoder: Encoder
    text: SearchedText


@dataclass(frozen=True)
class Found:
    """What the page shows of a side: its hits, and of each whether no other side found that sentence."""

    name: str
    hits: list[tuple[Hit, bool]]


def search_routes(sides: Sequence[SearchedSide], count: int) -> list[BaseRoute]:
    """Return the page that answers `/?q=QUERY` with the `count` nearest sentences of each side."""
    from starlette.responses import HTMLResponse
    from starlette.routing import Route

    template = make_environment().get_template("pages/search.html.j2")
    alone = threading.Lock()  # an encoder embeds one query at a time

    def page(request: Request) -> Response:
        query = request.query_params.get("q", "").strip()
        too_long = len(query) > QUERY_LENGTH
        found: list[Found] = []
        if query and not too_long:
            with alone:
                found = compare_hits(sides, query, count)
        shown = template.render(
            title="Search",
            query=query[:QUERY_LENGTH],
            characters=len(query) if too_long else None,
            limit=QUERY_LENGTH,
            sentences=len(sides[0].text.corpus),
            found=found,
        )
        return HTMLResponse(shown, 400 if too_long else 200)

    return [Route("/", page)]


def compare_hits(sides: Sequence[SearchedSide], query: str, count: int) -> list[Found]:
    """Return what each side finds, with the sentences that it alone finds marked where there are several sides."""
    hits = [search(side.encoder, side.text, [query], count)[0] for side in sides]
    found = []
    for number, side in enumerate(sides):
        others = {hit.sentence for other, row in enumerate(hits) if other != number for hit in row}
        marked = [(hit, len(sides) > 1 and hit.sentence not in others) for hit in hits[number]]
        found.append(Found(side.name, marked))
    return found

"""The page of the blind comparison: a sentence and two neighbours of it, without the names of the encoders."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, get_args
from urllib.parse import parse_qs

from simcse_train.evaluation.answers import describe, outcome
from simcse_train.evaluation.comparison import Sheet, Side, choice_of
from simcse_train.pages.server import BODY_LENGTH
from simcse_train.report.html import make_environment

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

SIDES: tuple[Side, ...] = get_args(Side)


def compare_routes(sheet: Sheet, count: int | None) -> list[BaseRoute]:
    """Return the page that asks up to `count` questions, those answered before included, and the one with the result.

    Each answer is on the disk before the next question is shown.
    """
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, RedirectResponse
    from starlette.routing import Route

    environment = make_environment()
    alone = threading.Lock()

    def page(request: Request) -> Response:
        with alone:
            question = sheet.question(count)
            answered = len(sheet.answers)
        if question is None:
            return RedirectResponse("/result", 303)
        shown = environment.get_template("pages/question.html.j2").render(
            title="Which fits better?", question=question, answered=answered, count=count
        )
        return HTMLResponse(shown)

    def result(request: Request) -> Response:
        with alone:
            found, is_done = outcome(sheet.answers), sheet.question(count) is None
        shown = environment.get_template("pages/result.html.j2").render(
            title="Result", found=describe(found), is_done=is_done
        )
        return HTMLResponse(shown)

    def keep(number: int, side: Side) -> None:
        with alone:
            question = sheet.question(count)
            # A second click, or a page from before, answers a question that is no longer asked.
            if question is not None and number == len(sheet.answers):
                sheet.answer(choice_of(question, side))

    async def answer(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > BODY_LENGTH:
                raise HTTPException(413)
        fields = parse_qs(body.decode("latin-1"))
        number, side = (fields.get(name, [""])[0] for name in ("number", "side"))
        chosen = next((known for known in SIDES if known == side), None)
        if chosen is None or not (number.isascii() and number.isdigit()):
            raise HTTPException(400)
        await run_in_threadpool(keep, int(number), chosen)
        return RedirectResponse("/", 303)

    return [Route("/", page), Route("/result", result), Route("/answer", answer, methods=["POST"])]

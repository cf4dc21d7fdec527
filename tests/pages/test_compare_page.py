from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from scripts.browser import served
from simcse_train.encoders.loading import load_encoder
from simcse_train.evaluation.answers import read_answers
from simcse_train.evaluation.comparison import Comparison, Sheet
from simcse_train.pages.compare import compare_routes
from tests.browser import HOSTILE, complaints, follow, requests, themes_of, visit
from tests.cli.test_commands import refused, run
from tests.pages.test_search_page import ask


@pytest.fixture(scope="module")
def comparison(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    data = tmp_path_factory.mktemp("compared") / "corpus.txt"
    data.write_text("\n".join([*text.read_text(encoding="utf-8").splitlines(), *HOSTILE]) + "\n", encoding="utf-8")
    return Comparison(load_encoder(tiny, pooling="cls"), load_encoder(tiny, pooling="mean"), [str(data)])


def test_clicks_answer_questions_and_end_with_the_result(browser: Any, comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    expected = []
    with served(compare_routes(Sheet(comparison, path), 3)) as port:
        visit(browser, f"http://127.0.0.1:{port}/")
        for question, place in zip(comparison.questions(), (0, 1, 2), strict=False):
            text = browser.find_element("tag name", "body").text
            assert " ".join(question.query.split())[:100] in text
            assert "old" not in text.lower().split() or "old" in (question.query + "".join(question.sides)).lower()
            follow(browser, browser.find_elements("css selector", "form button")[place])
            side = ("left", "right", "both")[place]
            expected.append(side if side == "both" else "new" if (side == "left") == question.new_left else "old")
        assert browser.current_url == f"http://127.0.0.1:{port}/result"
        assert "both 1, neither 0." in browser.find_element("tag name", "body").text
        assert complaints(browser) == []
        assert all(url.startswith(f"http://127.0.0.1:{port}/") for url in requests(browser))
    assert [answer.choice for answer in read_answers(path, comparison.answers_fingerprint)] == expected


def test_the_page_is_readable_on_a_phone_and_in_both_themes(
    browser: Any, comparison: Comparison, tmp_path: Path
) -> None:
    with served(compare_routes(Sheet(comparison, tmp_path / "a.jsonl"), None)) as port:
        for width in (360, 1280):
            assert len(themes_of(browser, f"http://127.0.0.1:{port}/", width)) == 2


def test_an_answer_counts_once_and_only_to_its_question(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with served(compare_routes(Sheet(comparison, path), 2)) as port:
        for body, status in (
            ("number=0&side=both", 303),
            ("number=0&side=left", 303),  # a second click, or a page from before
            ("number=1&side=best", 400),
            ("number=x&side=left", 400),
            ("side=left", 400),
            ("number=1&side=left&x=" + "x" * 2000, 413),
        ):
            assert post(port, body) == status
        assert post(port, "number=1&side=neither", {"Origin": "http://example.com"}) == 403
        assert [a.choice for a in read_answers(path, comparison.answers_fingerprint)] == ["both"]
        assert "More questions" in ask(port, "/result")[1]
        assert post(port, "number=1&side=neither") == 303
        assert post(port, "number=2&side=left") == 303  # all have been answered
        assert "nothing more to ask" in ask(port, "/result")[1]
    assert [a.choice for a in read_answers(path, comparison.answers_fingerprint)] == ["both", "neither"]


def post(port: int, body: str, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        "POST", "/answer", body, {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
    )
    status = connection.getresponse().status
    connection.close()
    return status


def test_an_answer_that_cannot_be_saved_is_said_on_the_page(comparison: Comparison, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    sheet = Sheet(comparison, folder / "a.jsonl")
    (folder / "a.jsonl").unlink()
    folder.rmdir()
    with served(compare_routes(sheet, None)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/answer", "number=0&side=both")
        answer = connection.getresponse()
        assert answer.status == 500
        assert "a.jsonl can't be written: No such file" in answer.read().decode()
        connection.close()
    assert sheet.answers == []


def test_the_command_serves_until_ctrl_c_and_prints_the_result(
    tiny: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["compare", tiny, "starter", "--data", text, "--answers", tmp_path / "a.jsonl", "--serve"]
    statuses = []

    def answer_and_interrupt() -> None:
        for _ in range(2000):
            try:
                statuses.append(post(port, "number=0&side=both"))
                os.kill(os.getpid(), signal.SIGINT)
                return
            except ConnectionRefusedError:  # it has not begun
                time.sleep(0.05)

    user = threading.Thread(target=answer_and_interrupt, daemon=True)
    user.start()
    assert run(*command, "--port", port) == 0
    user.join()
    assert statuses == [303]
    shown = capsys.readouterr().out
    assert f"Open http://127.0.0.1:{port} in a browser" in shown
    assert "New 0, old 0, both 1, neither 0." in shown
    assert "choose one of them" in refused(capsys, *command, "--judge", text)

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import string
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from scripts.browser import served
from simcse_train.encoders.loading import load_encoder
from simcse_train.errors import InputError
from simcse_train.pages import server
from simcse_train.pages.search import SearchedSide, search_routes
from simcse_train.pages.server import QUERY_LENGTH, address, listen
from simcse_train.search.search import open_text, search
from tests.browser import HOSTILE, complaints, follow, requests, themes_of, visit
from tests.cli.test_commands import refused

for package in server.PACKAGES:
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def sides(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SearchedSide]:
    """Two poolings of one model over a text with hostile lines; one has a hostile name."""
    data = tmp_path_factory.mktemp("served") / "corpus.txt"
    data.write_text("\n".join([*text.read_text(encoding="utf-8").splitlines(), *HOSTILE]) + "\n", encoding="utf-8")
    encoders = [load_encoder(tiny, pooling=pooling) for pooling in ("cls", "mean")]
    names = ("starter", "<b>runs/mine</b>")
    return [SearchedSide(n, e, open_text(e, [str(data)])) for n, e in zip(names, encoders, strict=True)]


@pytest.fixture(scope="module")
def port(sides: list[SearchedSide]) -> Iterator[int]:
    with served(search_routes(sides, 5)) as port:
        yield port


def ask(port: int, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    content = answer.read().decode("utf-8")
    connection.close()
    return answer.status, content


def test_a_query_and_a_click_work_in_a_browser(browser: Any, port: int, sides: list[SearchedSide]) -> None:
    visit(browser, f"http://127.0.0.1:{port}/")
    field = browser.find_element("name", "q")
    field.send_keys("a man plays")
    follow(browser, browser.find_element("tag name", "button"))
    sections = sections_of(browser)
    for section, side in zip(sections, sides, strict=True):
        assert section.find_element("tag name", "h2").text == side.name
        expected = [hit.sentence for hit in search(side.encoder, side.text, ["a man plays"], 5)[0]]
        links = section.find_elements("tag name", "a")
        assert [link.text for link in links] == [" ".join(sentence.split()) for sentence in expected]
    chosen = sections[1].find_elements("tag name", "a")[3]
    sentence = chosen.text
    follow(browser, chosen)
    assert browser.find_element("name", "q").get_attribute("value") == sentence
    assert browser.find_element("tag name", "section").find_element("tag name", "a").text == sentence
    marked = [{link.text for link in s.find_elements("css selector", ".new a")} for s in sections_of(browser)]
    found = [{link.text for link in s.find_elements("tag name", "a")} for s in sections_of(browser)]
    assert marked == [found[0] - found[1], found[1] - found[0]]
    assert complaints(browser) == []
    assert all(url.startswith(f"http://127.0.0.1:{port}/") for url in requests(browser))


def sections_of(browser: Any) -> list[Any]:
    found: list[Any] = browser.find_elements("tag name", "section")
    return found


@pytest.mark.parametrize("width", [360, 1280])
def test_hostile_sentences_are_shown_and_do_nothing(browser: Any, port: int, width: int) -> None:
    for hostile in HOSTILE[:8]:
        query = hostile[:QUERY_LENGTH]
        visit(browser, f"http://127.0.0.1:{port}/?q={quote(query)}", width=width)
        assert complaints(browser) == []
        assert len(requests(browser)) == 1
        assert browser.execute_script("return window.ran") is None
        assert browser.execute_script("return document.scripts.length + document.images.length") == 0
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert len(browser.find_elements("tag name", "li")) == 10
        if hostile.isprintable() and "long" not in hostile:
            assert browser.find_element("tag name", "li").find_element("tag name", "a").text == hostile
    assert len(themes_of(browser, f"http://127.0.0.1:{port}/?q=man", width)) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "example.com"},
        {"Host": "example.com:{port}"},
        {"Host": "127.0.0.1.example.com:{port}"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://example.com"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
)
def test_a_foreign_host_or_origin_is_refused(port: int, headers: dict[str, str]) -> None:
    status, content = ask(port, "/?q=man", {key: value.format(port=port) for key, value in headers.items()})
    assert status == 403
    assert "<html" not in content


def test_its_own_pages_may_ask_under_both_names(port: int) -> None:
    for name in ("127.0.0.1", "localhost"):
        own = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
        assert ask(port, "/?q=man", own)[0] == 200


def test_a_long_query_is_refused_and_only_known_paths_answer(port: int) -> None:
    assert ask(port, "/?q=" + "x" * QUERY_LENGTH)[0] == 200
    status, content = ask(port, "/?q=" + "x" * (QUERY_LENGTH + 1))
    assert status == 400
    assert "has 2,001 characters, and at most 2,000 are taken" in content
    assert "<section" not in content
    with contextlib.suppress(ConnectionError):  # it may hang up before all of it is sent
        assert ask(port, "/?q=" + "x" * 200_000)[0] in (400, 431)
    assert ask(port, "/elsewhere")[0] == 404
    assert ask(port, "/?q=man", method="POST")[0] == 405


def test_other_machines_cannot_reach_it() -> None:
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        assert address(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(InputError, match="--port .* can't be used: Address already in use. Choose another port."):
            listen(listener.getsockname()[1])


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_requests_do_not_end_it(port: int, count: int) -> None:
    generator = random.Random(0)
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(random_request(generator, port))
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):  # it may hang up on what is no request
                while connection.recv(65536):
                    pass
    assert ask(port, "/?q=man")[0] == 200


def random_request(generator: random.Random, port: int) -> bytes:
    """Return bytes, a request with random parts, or a valid request for a random query."""
    kind = generator.randrange(4)
    if kind == 0:
        return generator.randbytes(generator.randrange(300))
    text = "".join(chr(generator.randrange(1, 0xD800)) for _ in range(generator.randrange(40)))
    query = quote(text) if kind == 1 else quote(generator.randbytes(30))
    method = generator.choice(["GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS", "G\xe9T"])
    path = generator.choice(["/", "/", "/", "//", "/../../etc/passwd", "/answer", "*", "http://example.com/"])
    version = generator.choice(["1.1", "1.1", "1.1", "1.0", "2.0", "9"])
    host = generator.choice([f"127.0.0.1:{port}", f"localhost:{port}", "example.com", ""])
    name = "".join(generator.choices(string.printable, k=8)) if kind == 3 else "X-Header"
    length = generator.choice(
        ["", "Content-Length: 10\r\n", "Content-Length: -1\r\n", "Transfer-Encoding: chunked\r\n"]
    )
    head = f"{method} {path}?q={query} HTTP/{version}\r\nHost: {host}\r\n{name}: {text!a}\r\n{length}\r\n"
    return head.encode("latin-1", "replace")


def test_two_queries_at_once_get_their_own_answers(port: int, sides: list[SearchedSide]) -> None:
    queries = ["a man runs", "the cat", "guitar", "a dog in the park"] * 3
    answers: dict[int, str] = {}

    def fetch(number: int) -> None:
        answers[number] = ask(port, f"/?q={quote(queries[number])}")[1]

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers.values())) == 4
    for number, query in enumerate(queries):
        assert f'value="{query}"' in answers[number]
        assert answers[number] == answers[number % 4]


def test_the_command_refuses_options_that_do_not_fit(
    capsys: pytest.CaptureFixture[str], tiny: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("search", tiny, "--data", text)
    assert "--beside is for --serve" in refused(capsys, *command, "--beside", tiny)
    assert "--port is for --serve" in refused(capsys, *command, "--port", "2000")
    assert "leave the query out" in refused(capsys, *command, "a query", "--serve")
    assert "--port" in refused(capsys, *command, "--serve", "--port", "80")
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "uvicorn" else True)
    assert "--serve needs uvicorn. Install" in refused(capsys, *command, "--serve")


def test_an_encoder_alone_marks_nothing(sides: list[SearchedSide]) -> None:
    with served(search_routes(sides[:1], 3)) as port:
        content = ask(port, "/?q=man")[1]
    assert content.count("<a href") == 3
    assert 'class="new"' not in content
    assert np.isfinite(float(content.split('class="cosine">')[1].split("<")[0]))


def test_the_page_reads_its_text_in_the_encoding_given(capsys: Any, tiny: Path, text: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that the command ends if it ignores the encoding
        serve = ("--serve", "--port", str(taken.getsockname()[1]))
        assert "is valid UTF-8, not --encoding utf-32" in refused(
            capsys, "search", tiny, "--data", text, "--encoding", "utf-32", *serve
        )

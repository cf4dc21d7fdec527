"""Pages in a real browser, and texts that would break a page which does not escape them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.browser import emulate

HOSTILE = (
    "<script>window.ran = true; fetch('http://example.com/')</script>",
    '<img src=x onerror="window.ran = true"> & \'quoted\' "twice"',
    "</summary></details><style>body { display: none }</style>",
    "{{ 7 * 7 }} {% raise %} ${alert(1)} $x^2$ \\frac",
    "عربي \u202eright to left override without an end, and עברית",
    "👩‍👩‍👧‍👦 🇩🇪 é combining a\u0301\u0301\u0301\u0301 zero\u200bwidth",
    "control \x01\x02\x1b[31m\x7f\x85 characters \ufffe\uffff",
    "long " + "x" * 10_000,
    "many words " * 900,
)


def visit(browser: Any, page: Path | str, *, width: int = 1280, dark: bool = False) -> None:
    """Open a page with an emptied log, in a window of a width and a theme."""
    emulate(browser, width=width, dark=dark)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.resolve().as_uri() if isinstance(page, Path) else page)


def follow(browser: Any, element: Any) -> None:
    """Click on a link or a button, and wait for the page that it opens."""
    from selenium.webdriver.support.expected_conditions import staleness_of
    from selenium.webdriver.support.wait import WebDriverWait

    page = browser.find_element("tag name", "html")
    element.click()
    WebDriverWait(browser, 60).until(staleness_of(page))
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script("return document.readyState") == "complete")


def complaints(browser: Any) -> list[str]:
    """Return the errors and warnings on the browser's console."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(browser: Any) -> list[str]:
    """Return the addresses that were asked for, but those of data that the page itself holds."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith("data:")]


def themes_of(browser: Any, page: Path | str, width: int) -> set[str]:
    """Open a page in both themes; return their background colours after checking width and contrast."""
    backgrounds = set()
    for dark in (False, True):
        visit(browser, page, width=width, dark=dark)
        for details in browser.find_elements("tag name", "details"):
            browser.execute_script("arguments[0].open = true", details)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        paper, ink = (
            browser.execute_script(f"return getComputedStyle(document.body).{name}")
            for name in ("backgroundColor", "color")
        )
        assert contrast(paper, ink) > 7
        backgrounds.add(paper)
    return backgrounds


def contrast(first: str, second: str) -> float:
    """Return the contrast of two CSS colours (WCAG 2.1, 1.4.3)."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

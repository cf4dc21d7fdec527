"""Headless Chromium, and pages for it, for the tests that open pages and for scripts/screenshots.py.

Debian's packages chromium and chromium-driver, or any Chromium or Chrome with its driver on the path.
"""

from __future__ import annotations

import shutil
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from simcse_train.pages.server import listen, make_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "there is no Chromium with its driver: apt-get install chromium chromium-driver"
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # root may not use it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    # Of its own accord it would ask hosts of its maker.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def is_browser_here() -> bool:
    """Return whether a browser and its driver are installed."""
    return shutil.which("chromedriver") is not None and any(map(shutil.which, NAMES))


@contextmanager
def open_browser() -> Iterator[Any]:
    """Yield a driver (selenium) of a headless browser that logs its console and its requests."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(found for found in map(shutil.which, NAMES) if found)
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or ""))
    try:
        yield driver
    finally:
        driver.quit()


def emulate(driver: Any, *, width: int, height: int = 900, scale: float = 1, dark: bool = False) -> None:
    """Give the pages that are opened next a window of a size in pixels, and a theme."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})


@contextmanager
def served(routes: Sequence[Any]) -> Iterator[int]:
    """Answer on a free port in a thread; yield the port."""
    with listen(0) as listener:
        server = make_server(routes, listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()

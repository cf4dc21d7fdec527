"""Make the README's pictures: the report of a run, and the search page with the run's encoder beside its start.

    pip install -c constraints.txt -e ".[dev]"    (and a browser: apt-get install chromium chromium-driver)
    simcse-train --data corpus.txt --output runs/mine
    python -m scripts.screenshots runs/mine --data corpus.txt --query "a question" --out docs

Writes report.png and search.png. With `--all`, it also writes both at the widths of a phone and a desktop, in both
themes, with the page of the comparison, to be looked at.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from scripts.browser import emulate, open_browser, served
from simcse_train.config_file import read_settings
from simcse_train.evaluation.comparison import Comparison, Sheet
from simcse_train.export.folder import load_saved_encoder
from simcse_train.pages.compare import compare_routes
from simcse_train.pages.search import SearchedSide, search_routes
from simcse_train.report.page import write_report
from simcse_train.search.search import open_text

COLOURS = 64  # of a picture in the README, so that it stays small
COUNT = 5
PHONE, DESKTOP = 390, 1200


def shoot(driver: Any, url: str, path: Path, *, width: int, height: int | None, dark: bool = False) -> None:
    """Save a picture of a page, of its whole height where none is given."""
    emulate(driver, width=width, height=height or 900, dark=dark)
    driver.get(url)
    if height is None:
        emulate(driver, width=width, height=driver.execute_script("return document.body.scrollHeight"), dark=dark)
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    typer.echo(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size:,} bytes")


def main(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    data: Annotated[str, typer.Option(help="Text to search.")],
    query: Annotated[str, typer.Option(help="What to search for.")],
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("docs"),
    every: Annotated[bool, typer.Option("--all", help="Also each page at both widths in both themes.")] = False,
) -> None:
    """Make the pictures."""
    start = str(read_settings(run / "config.yaml")["model"])
    encoders = [load_saved_encoder(name) for name in (start, str(run))]
    sides = [SearchedSide(n, e, open_text(e, [data])) for n, e in zip((start, str(run)), encoders, strict=True)]
    report = write_report([run]).resolve().as_uri()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_browser() as driver,
        served(search_routes(sides, COUNT)) as port,
    ):
        search = f"http://127.0.0.1:{port}/?q={query}"
        shoot(driver, report, out / "report.png", width=1000, height=900)
        shoot(driver, search, out / "search.png", width=1000, height=None)
        if not every:
            return
        sheet = Sheet(Comparison(encoders[0], encoders[1], [data]), Path(folder) / "answers.jsonl")
        with served(compare_routes(sheet, None)) as other:
            pages = {"report": report, "search": search, "compare": f"http://127.0.0.1:{other}/"}
            for name, url in pages.items():
                for size, width in (("phone", PHONE), ("desktop", DESKTOP)):
                    for theme in ("light", "dark"):
                        path = out / f"{name}-{size}-{theme}.png"
                        shoot(driver, url, path, width=width, height=None, dark=theme == "dark")


if __name__ == "__main__":
    typer.run(main)

"""The engine that fills the templates of all pages: it escapes the text, and shows its control characters.

Needs jinja2, which several extras bring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simcse_train.data.display import shown

if TYPE_CHECKING:
    from jinja2 import Environment


def make_environment() -> Environment:
    """Return the template engine; templates are named from the package's folder, such as report/page.html.j2."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("simcse_train", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment

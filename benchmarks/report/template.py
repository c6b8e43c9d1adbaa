"""Pages from templates: the words and the layout stand in templates/*.j2, the numbers come from Python."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"


def fill(template: str, **values: Any) -> str:
    """A page in Markdown or HTML with one newline at its end; jinja2's UndefinedError where a value is missing."""
    return _environment().get_template(template).render(**values).rstrip() + "\n"


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
    )
    environment.filters["markdown"] = markdown
    return environment


def markdown(table: pd.DataFrame, left: int = 1) -> str:
    """A table of texts in Markdown, without padding, so that one longer entry changes one line only.

    left: how many columns are aligned to the left; those whose names begin with "verdict" are too, all others are not.
    """
    aligned = [place < left or str(name).startswith("verdict") for place, name in enumerate(table.columns)]
    rule = "|" + "".join("---|" if each else "---:|" for each in aligned)
    head, *rows = (f"| {' | '.join(str(cell).strip() for cell in row)} |" for row in (table.columns, *table.to_numpy()))
    return "\n".join([head, rule, *rows])

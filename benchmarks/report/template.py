"""Pages from templates: the words and the layout stand in templates/*.j2, the numbers come from Python."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from tabulate import TableFormat

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
    columns = list(enumerate(table.columns))
    aligned = ["left" if place < left or str(name).startswith("verdict") else "right" for place, name in columns]
    return table.to_markdown(index=False, tablefmt=_NARROW, disable_numparse=True, colalign=aligned)


def _row(cells: list[str], widths: list[int], aligned: list[str]) -> str:
    return f"| {' | '.join(cell.strip() for cell in cells)} |"


def _rule(widths: list[int], aligned: list[str]) -> str:
    return "|" + "".join("---:|" if side == "right" else "---|" for side in aligned)


_NARROW = TableFormat(
    lineabove=None,
    linebelowheader=_rule,
    linebetweenrows=None,
    linebelow=None,
    headerrow=_row,
    datarow=_row,
    padding=0,
    with_header_hide=None,
)
"""Like tabulate's "pipe"."""

"""Progress of long jobs: a terminal shows a bar, and a log gets a line with the remaining time now and then."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

QUIET = 30.0
"""Seconds between two lines in a log; a shorter job writes no line."""


def progress(*arguments: Any, **options: Any) -> tqdm:
    """Make a bar as `tqdm` does, for jobs that may run for minutes."""
    if not sys.stderr.isatty():
        options |= {"mininterval": QUIET, "delay": QUIET, "ascii": True, "leave": False, "maxinterval": QUIET}
    return tqdm(*arguments, **options)

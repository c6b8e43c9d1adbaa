"""Progress of long jobs: a bar on a terminal, now and then a line with the remaining time in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

QUIET = 30.0
"""Seconds between two lines in a log; a shorter job writes none."""


def progress(*arguments: Any, **options: Any) -> tqdm:
    """As tqdm's, for jobs that may run for minutes."""
    if not sys.stderr.isatty():
        options |= {"mininterval": QUIET, "delay": QUIET, "ascii": True, "leave": False, "maxinterval": QUIET}
    return tqdm(*arguments, **options)

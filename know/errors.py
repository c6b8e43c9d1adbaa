"""The exception for whatever the caller can mend: the command line prints it as one line and ends with exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KnowError(ValueError):
    """A wrong input. The message names it and says what to do about it; users see no traceback."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> KnowError:
    """Error for a name that is not among `choices`: it suggests the nearest one, or lists all of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"
    return KnowError(f"unknown {kind} {name!r}: {hint}")

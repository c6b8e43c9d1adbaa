"""The one exception that means "the caller can mend this": the command line prints it as one line, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KnowError(ValueError):
    """A wrong input, named, with what to do about it. Never carries a traceback to the user."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> KnowError:
    """Error for a name that is not among `choices`; suggests the nearest one, else lists them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"
    return KnowError(f"unknown {kind} {name!r}: {hint}")

"""The exception for whatever the caller can mend: the command line prints it as one line and ends with exit code 2."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any


class KnowError(ValueError):
    """A wrong input. The message names it and says what to do about it; users see no traceback."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> KnowError:
    """Error for a name that is not among `choices`: it suggests the nearest one, or lists all of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    between = "; " if any("," in choice for choice in choices) else ", "
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {between.join(choices)}"
    return KnowError(f"unknown {kind} {name!r}: {hint}")


def number(name: str, value: Any, *, whole: bool = False, least: float | None = None) -> Any:
    """`value`, a number; KnowError that names the argument if it is none, not whole where it must be, or too small."""
    kind = "a whole number" if whole else "a number"
    try:
        answer = operator.index(value) if whole else value
    except TypeError:
        answer = None
    if answer is None or isinstance(value, bool) or not isinstance(answer, Real):
        raise KnowError(f"{name} must be {kind}, got {value!r}, a {type(value).__name__}")
    if least is not None and answer < least:
        raise KnowError(f"{name} must be at least {least}, got {value!r}")
    return answer


def as_path(name: str, value: Any) -> Path:
    """`value` as a path; KnowError that names the argument if it is none."""
    if not isinstance(value, str | Path) or not str(value):
        raise KnowError(f"{name} must be a path, got {value!r}, a {type(value).__name__}")
    path = Path(value)
    return path if path.name not in ("", "..") else path.resolve()

"""What the texts of the command line mean: lists of numbers, roles of tensors, checkpoints, options of a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from know.errors import KnowError


def numbers(text: str, option: str) -> list[float]:
    """Numbers with commas between; KnowError names the option where the text is something else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise KnowError(f"{option} {text!r}: give numbers with commas between, such as 0.25,0.5,1") from error


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    before, equals, after = text.rpartition("=")
    if not equals or not before:
        raise KnowError(f"{option} {text!r}: write it as {form}")
    return before, after


def roles_of(given: list[str] | None) -> dict[str, str]:
    """Patterns to roles from texts PATTERN=ROLE, in an order in which the later wins, also where a pattern was given
    twice; KnowError for another text.
    """
    roles: dict[str, str] = {}
    for pattern, role in (_pair(text, "--role", "PATTERN=ROLE") for text in given or []):
        roles.pop(pattern, None)
        roles[pattern] = role
    return roles


def checkpoints_of(given: list[str] | None) -> dict[str, Path]:
    """Names to paths from texts NAME=CHECKPOINT; KnowError for another text, or for a name that was given twice."""
    found: dict[str, Path] = {}
    for text in given or []:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise KnowError(f"--beside {text!r}: write it as NAME=CHECKPOINT")
        if name in found:
            raise KnowError(f"--beside {text!r}: the name {name} was given before")
        found[name] = Path(path)
    return found


def option_of(text: str) -> tuple[str, Any]:
    """Name and value of a text name=value, the value as bool, int or float where it is one; KnowError for another."""
    key, equals, value = text.partition("=")
    if not equals:
        raise KnowError(f"-o {text!r}: write it as name=value")
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value
